"""What the examples share: sentences that need no download, a real pretrained BERT, and how well it does."""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from armijo_lab.models import embedded_folder
from armijo_lab.tasks import Split, embedded

logging.set_verbosity_error()  # that the head is new is known
MINILM = str(embedded_folder())  # all-MiniLM-L6-v2; any name on the hub or folder of an encoder will do


def options(**more: str) -> argparse.Namespace:
    """How much to train on, two minutes on one core by default; and what else an example lets one choose."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=3)
    for name, default in more.items():
        parser.add_argument(f"--{name}", default=default)
    return parser.parse_args()


def minilm() -> torch.nn.Module:
    """The pretrained encoder under a new head for the classes of the sentences."""
    torch.manual_seed(0)
    labels = embedded.load().labels
    return AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=len(labels), dtype=torch.float32)


def rows(count: int) -> tuple[list[dict], list[dict]]:
    """Tokenised rows to train on, and others to judge by: dicts of `input_ids`, `attention_mask`, `labels`."""
    data = embedded.load().limited(count, min(200, 2 * count))
    return _tokenised(data.train), _tokenised(data.evaluation)


def loaders(count: int, batch_size: int = 32) -> tuple[DataLoader, DataLoader]:
    """The same rows in batches of tensors."""
    train, held_out = rows(count)
    torch.manual_seed(0)
    return (
        DataLoader(train, batch_size, shuffle=True, collate_fn=padded),
        DataLoader(held_out, batch_size, collate_fn=padded),
    )


def padded(batch: list[dict]) -> dict[str, torch.Tensor]:
    """Rows of different lengths as one batch."""
    labels = torch.tensor([row["labels"] for row in batch])
    texts = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in batch]
    return {**AutoTokenizer.from_pretrained(MINILM).pad(texts, return_tensors="pt"), "labels": labels}


@torch.no_grad()
def accuracy(model: torch.nn.Module, loader: DataLoader) -> float:
    """The share of held-out rows whose class is found; the model is in training mode afterwards as before."""
    training = model.training
    model.eval()
    right = total = 0
    for batch in loader:
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
        total += len(labels)
    model.train(training)
    return right / total


def _tokenised(split: Split) -> list[dict]:
    tokens = AutoTokenizer.from_pretrained(MINILM)(list(split.texts), truncation=True, max_length=64)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(tokens["input_ids"], tokens["attention_mask"], split.targets, strict=True)
    ]
