"""The Hugging Face Trainer: ArmijoTrainer in place of Trainer, and no learning rate among the arguments."""

import numpy as np
from transformers import AutoTokenizer, DataCollatorWithPadding, TrainingArguments

import armijo
from armijo.integrations.transformers import ArmijoTrainer, line_search
from texts import MINILM, minilm, options, rows

given = options()
train, held_out = rows(given.rows)
arguments = TrainingArguments(
    "runs/transformers_trainer",
    num_train_epochs=given.epochs,
    per_device_train_batch_size=32,
    logging_steps=5,
    eval_strategy="epoch",
    save_strategy="epoch",
    report_to="none",  # "tensorboard", "wandb", "mlflow", "trackio": the step sizes are in the Trainer's own logs
)
trainer = ArmijoTrainer(
    minilm(),
    arguments,
    train_dataset=train,
    eval_dataset=held_out,
    data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(MINILM)),
    compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())},
    optimizer_cls_and_kwargs=line_search(armijo.AdamSLS),  # the default; armijo.PLASLS has a step size for each layer
)
trainer.train()
