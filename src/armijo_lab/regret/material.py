"""What a run is made of: the rows, and the model with what of it is trained."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from armijo_lab import models
from armijo_lab.regret.grid import Cell
from armijo_lab.tasks import Split, TaskData, embedded, glue

__all__ = ["Material", "prepare"]

_TOKENS = 40
"""Tokens after which a text is cut."""
_DROPOUT = 0.1
"""Before the head, as in BERT's classifier."""
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Material:
    """What a run needs.

    Attributes:
        model: Called with what `batch` returns first; returns logits of shape (rows, classes).
        train: The rows to train on.
        evaluation: All held-out rows.
    """

    model: nn.Module
    train: Rows
    evaluation: Rows


class Rows:
    """Rows as tensors, handed out in batches.

    Args:
        inputs: For each row its tensors by name, of shape (tokens,); or one tensor of features, of shape (rows, width).
        targets: The classes, of shape (rows,).
    """

    def __init__(self, inputs: Sequence[dict[str, torch.Tensor]] | torch.Tensor, targets: torch.Tensor) -> None:
        self._inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The inputs of some rows, padded to the longest."""
        if isinstance(self._inputs, torch.Tensor):
            return {"features": self._inputs[list(indices)]}
        chosen = [self._inputs[index] for index in indices]
        pad = nn.utils.rnn.pad_sequence
        return {name: pad([row[name] for row in chosen], batch_first=True) for name in chosen[0]}

    def by_length(self) -> list[list[int]]:
        """The rows in batches of similar length, so that there is little padding."""
        order, inputs = list(range(len(self))), self._inputs
        if not isinstance(inputs, torch.Tensor):
            order.sort(key=lambda index: len(inputs[index]["input_ids"]))
        return [order[first : first + _ROWS_AT_ONCE] for first in range(0, len(order), _ROWS_AT_ONCE)]


class _Classifier(nn.Module):
    """A linear head, after dropout, on the [CLS] of an encoder or on its features."""

    def __init__(self, encoder: nn.Module | None, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(_DROPOUT)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: torch.Tensor | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        if self.encoder is not None:
            features = self.encoder(**inputs).last_hidden_state[:, 0]
        return self.head(self.dropout(features))


def prepare(cell: Cell, seed: int, data_dir: Path | None, cache: Path) -> Material:
    """Draw the rows of a seed and make its model.

    Args:
        cell: The cell.
        seed: Draws the rows, the head and what LoRA adds.
        data_dir: The folder of GLUE's files; `None` for the hub.
        cache: The folder in which features of frozen encoders are kept.

    Raises:
        BadInputError: The rows cannot be read.
    """
    task, splits, inputs = _inputs(cell.task, cell.regime == "head", cell.rows, seed, data_dir, cache)
    rows = [Rows(x, torch.tensor(split.targets)) for x, split in zip(inputs, splits, strict=True)]
    if cell.regime == "head":
        torch.manual_seed(seed)
        return Material(_Classifier(None, inputs[0].shape[1], task.num_labels), *rows)
    encoder = _encoder(task, inputs)
    if cell.regime == "lora":
        encoder.requires_grad_(False)
        models.adapt(encoder, 8, 16.0, ("query", "value"), seed)
    torch.manual_seed(seed)
    return Material(_Classifier(encoder, encoder.config.hidden_size, task.num_labels), *rows)


@lru_cache(maxsize=4)
def _inputs(
    name: str, frozen: bool, rows: int, seed: int, data_dir: Path | None, cache: Path
) -> tuple[TaskData, tuple[Split, Split], list[Any]]:
    """The task, its rows to train on and held out, and what the model reads of them."""
    task = _task(name, data_dir)
    drawn = random.Random(seed).sample(range(len(task.train)), min(rows, len(task.train)))
    splits = (_subset(task.train, drawn), task.evaluation)
    if frozen:
        return task, splits, [_features(task, split, cache) for split in splits]
    _, tokenizer = models.load(None, task, paper_protocol=True)
    return task, splits, [_tokens(tokenizer, split) for split in splits]


@lru_cache(maxsize=8)
def _task(name: str, data_dir: Path | None) -> TaskData:
    return embedded.load() if name == "embedded" else glue.load(name, data_dir)


def _subset(split: Split, indices: Sequence[int]) -> Split:
    pairs = None if split.pairs is None else tuple(split.pairs[i] for i in indices)
    return Split(tuple(split.texts[i] for i in indices), pairs, tuple(split.targets[i] for i in indices))


def _encoder(task: TaskData, inputs: Sequence[list[dict[str, torch.Tensor]]]) -> Any:
    """The embedded encoder, for these rows alone, whose words are counted anew.

    Embeddings of words that no row has get no gradient: they are left out, half of the parameters of this model.
    """
    encoder = models.inner(models.load(None, task, paper_protocol=True)[0])
    used = torch.unique(torch.cat([row["input_ids"] for rows in inputs for row in rows] + [torch.tensor([0])]))
    words = encoder.get_input_embeddings()
    fewer = nn.Embedding(len(used), words.embedding_dim, padding_idx=0)
    fewer.weight = nn.Parameter(words.weight.detach()[used].clone())
    encoder.set_input_embeddings(_Places(fewer, used))
    return encoder


class _Places(nn.Module):
    """An embedding of some words of a vocabulary, called with their numbers in it."""

    place: torch.Tensor

    def __init__(self, embedding: nn.Embedding, used: torch.Tensor) -> None:
        super().__init__()
        self.embedding = embedding
        place = torch.zeros(int(used.max()) + 1, dtype=torch.long)
        place[used] = torch.arange(len(used))
        self.register_buffer("place", place)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.embedding(self.place[numbers])


def _tokens(tokenizer: Any, split: Split) -> list[dict[str, torch.Tensor]]:
    pairs = None if split.pairs is None else list(split.pairs)
    encoded = tokenizer(list(split.texts), pairs, truncation=True, max_length=_TOKENS)
    return [
        {name: torch.tensor(row) for name, row in zip(encoded, values, strict=True)}
        for values in zip(*encoded.values(), strict=True)
    ]


@torch.no_grad()
def _features(task: TaskData, split: Split, cache: Path) -> torch.Tensor:
    """The [CLS] of each row, of shape (rows, width), computed once for a split."""
    name = hashlib.sha256(repr((split.texts, split.pairs, _TOKENS)).encode()).hexdigest()[:16]
    path = cache / f"{name}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    classifier, tokenizer = models.load(None, task, paper_protocol=True)
    encoder, rows = models.inner(classifier), Rows(_tokens(tokenizer, split), torch.zeros(len(split)))
    features = torch.zeros(len(split), encoder.config.hidden_size)
    for indices in rows.by_length():
        features[indices] = encoder(**rows.batch(indices)).last_hidden_state[:, 0]
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{torch.initial_seed()}.part")
    torch.save(features, unfinished)
    unfinished.replace(path)
    return features
