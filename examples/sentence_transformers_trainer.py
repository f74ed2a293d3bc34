"""sentence-transformers: the mixin before SentenceTransformerTrainer, and no learning rate among the arguments.

all-MiniLM-L6-v2 learns that sentences about one part of Python's library belong together.
"""

import random

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

import armijo
from armijo.integrations.transformers import ArmijoMixin, line_search
from armijo_lab.tasks import Split, embedded
from texts import MINILM, options


class Trainer(ArmijoMixin, SentenceTransformerTrainer):
    """The trainer of sentence-transformers, with a line search."""


def pairs(split: Split) -> Dataset:
    """Each sentence beside another, in turn of its own part of the library (label 1) and of another part (0)."""
    draw = random.Random(0)
    rows = []
    for place, (text, part) in enumerate(zip(split.texts, split.targets, strict=True)):
        alike = place % 2 == 0
        others = [t for t, p in zip(split.texts, split.targets, strict=True) if (p == part) == alike and t != text]
        rows.append({"one": text, "other": draw.choice(others), "label": float(alike)})
    return Dataset.from_list(rows)


given = options()
data = embedded.load().limited(given.rows, min(200, 2 * given.rows))
model = SentenceTransformer(MINILM)
held_out = pairs(data.evaluation)
correlation = EmbeddingSimilarityEvaluator(held_out["one"], held_out["other"], held_out["label"])
trainer = Trainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        "runs/sentence_transformers_trainer",
        num_train_epochs=given.epochs,
        per_device_train_batch_size=32,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=pairs(data.train),
    loss=CosineSimilarityLoss(model),
    optimizer_cls_and_kwargs=line_search(armijo.AdamSLS),  # as without it
)
before = correlation(model)["spearman_cosine"]
trainer.train()
after = correlation(model)["spearman_cosine"]
print(f"rank correlation of cosines and labels, held out: {before:.3f} before, {after:.3f} after")
