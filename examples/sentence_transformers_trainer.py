"""sentence-transformers: the mixin before SentenceTransformerTrainer, and no learning rate among the arguments.

all-MiniLM-L6-v2 learns that sentences about one part of Python's library belong together.
"""

import random

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from texts import MINILM, options

from armijo.integrations.transformers import ArmijoMixin
from armijo_lab.tasks import Split, embedded


class Trainer(ArmijoMixin, SentenceTransformerTrainer):
    """The trainer of sentence-transformers, with a line search."""


def pairs(split: Split, seed: int = 0) -> Dataset:
    """Every sentence beside one of its own part of the library and beside one of another part."""
    draw = random.Random(seed)
    rows = []
    for text, part in zip(split.texts, split.targets, strict=True):
        for alike in (True, False):
            others = [t for t, p in zip(split.texts, split.targets, strict=True) if (p == part) == alike and t != text]
            rows.append({"one": text, "other": draw.choice(others), "label": float(alike)})
    return Dataset.from_list(rows)


def neighbours(model: SentenceTransformer, known: Split, asked: Split) -> float:
    """The share of sentences whose five nearest known ones are, by a majority, of their own part."""
    near = model.similarity(model.encode(list(asked.texts)), model.encode(list(known.texts))).topk(5).indices
    found = torch.tensor(known.targets)[near].mode().values
    return float((found == torch.tensor(asked.targets)).float().mean())


given = options()
data = embedded.load().limited(given.rows, 200)
model = SentenceTransformer(MINILM)
arguments = SentenceTransformerTrainingArguments(
    "runs/sentence_transformers_trainer",
    num_train_epochs=given.epochs,
    per_device_train_batch_size=32,
    logging_steps=10,
    save_strategy="no",
    report_to="none",
)
trainer = Trainer(model=model, args=arguments, train_dataset=pairs(data.train), loss=CosineSimilarityLoss(model))
before = neighbours(model, data.train, data.evaluation)
trainer.train()
print(f"accuracy by neighbours {before:.3f} before, {neighbours(model, data.train, data.evaluation):.3f} after")
