"""PEFT: a model with adapters is a model like any other; the search moves what may be trained, and nothing else."""

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, DataCollatorWithPadding, TrainingArguments

import armijo
from armijo.integrations.transformers import ArmijoTrainer, line_search
from texts import MINILM, minilm, options, rows

given = options(rank="8")
train, held_out = rows(given.rows)
torch.manual_seed(0)
rank = int(given.rank)
lora = LoraConfig(
    task_type="SEQ_CLS",
    r=rank,
    lora_alpha=2 * rank,
    target_modules="all-linear",
    # A sentence encoder comes with a pooler that was never trained; it learns as a whole, like the new head.
    exclude_modules=r".*pooler.*",
    modules_to_save=["pooler", "classifier"],
)
model = get_peft_model(minilm(), lora)
model.print_trainable_parameters()

trainer = ArmijoTrainer(
    model,
    TrainingArguments(
        "runs/peft_lora",
        num_train_epochs=given.epochs,
        per_device_train_batch_size=32,
        logging_steps=5,
        eval_strategy="epoch",
        save_strategy="epoch",
        report_to="none",
    ),
    train_dataset=train,
    eval_dataset=held_out,
    data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(MINILM)),
    compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())},
    optimizer_cls_and_kwargs=line_search(armijo.AdamSLS),
)
trainer.train()
reached = trainer.evaluate()["eval_accuracy"]

trainer.save_model("runs/peft_lora/adapter")  # the adapter and the new head, a few hundred kilobytes
again = PeftModel.from_pretrained(minilm(), "runs/peft_lora/adapter")
trainer.model = again.eval()
print(f"accuracy {reached:.3f}; of the adapter as it was saved and loaded {trainer.evaluate()['eval_accuracy']:.3f}")
