"""TRL: the mixin before SFTTrainer. A small decoder without any weights to start from learns to write docstrings.

Any other decoder goes in its place: `model="Qwen/Qwen3-0.6B"`, and a `peft_config` if it is large.
"""

import math

import torch
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import armijo
from armijo.integrations.transformers import ArmijoMixin, line_search
from armijo_lab.tasks import embedded
from texts import options


class Trainer(ArmijoMixin, SFTTrainer):
    """TRL's trainer for supervised fine-tuning, with a line search."""


given = options()
data = embedded.load().limited(given.rows, min(200, 2 * given.rows))
pieces = ByteLevelBPETokenizer()
pieces.train_from_iterator(data.train.texts, vocab_size=2000, special_tokens=["<end>"], show_progress=False)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, eos_token="<end>", pad_token="<end>")
torch.manual_seed(0)
shape = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4
)
trainer = Trainer(
    model=LlamaForCausalLM(shape),
    args=SFTConfig(
        "runs/trl_sft",
        num_train_epochs=2 * given.epochs,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        max_length=64,
        bf16=False,  # TRL's default is True; with float32 weights the search works under both
        logging_steps=5,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=Dataset.from_dict({"text": list(data.train.texts)}),
    eval_dataset=Dataset.from_dict({"text": list(data.evaluation.texts)}),
    processing_class=tokenizer,
    optimizer_cls_and_kwargs=line_search(armijo.AdamSLS),  # as without it
)
before = trainer.evaluate()["eval_loss"]
trainer.train()
after = trainer.evaluate()["eval_loss"]
print(f"perplexity of held-out sentences {math.exp(before):.0f} before, {math.exp(after):.0f} after")
