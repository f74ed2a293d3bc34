"""Rows of a task as tensors: tokenized and padded, or as the task encodes them, in batches on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from armijo_lab.tasks import Split, TaskData

__all__ = ["EncodedRows"]


class EncodedRows:
    """One split of a task, encoded once and handed out as batches.

    Args:
        task: The task; it decides the type of the targets, and may encode the rows itself.
        split: The rows.
        tokenizer: The model's; unused where the task encodes the rows.
        max_length: Tokens after which a text is cut.
        device: Where batches go.
    """

    def __init__(self, task: TaskData, split: Split, tokenizer: Any, max_length: int, device: torch.device) -> None:
        self._device = device
        if task.encode is not None:
            self._inputs, self._targets = task.encode(split)
            self._lengths = [0] * len(split)
            return
        from transformers import DataCollatorWithPadding

        self._inputs = None
        pairs = None if split.pairs is None else list(split.pairs)
        encoded = tokenizer(list(split.texts), pairs, truncation=True, max_length=max_length)
        self._rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
        self._lengths = [len(row["input_ids"]) for row in self._rows]
        self._targets = torch.tensor(split.targets, dtype=torch.long if task.labels else torch.float32)
        self._pad = DataCollatorWithPadding(tokenizer)

    def __len__(self) -> int:
        return len(self._lengths)

    def batch(self, indices: Sequence[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the inputs, for texts each of shape (rows, longest row), and the targets."""
        chosen = list(indices)
        if self._inputs is not None:
            inputs = {key: tensor[chosen] for key, tensor in self._inputs.items()}
        else:
            inputs = self._pad([self._rows[index] for index in chosen])
        targets = self._targets[chosen].to(self._device)
        return {key: tensor.to(self._device) for key, tensor in inputs.items()}, targets

    def by_length(self) -> list[int]:
        """Return the indices sorted by row length, so that a batch needs little padding."""
        return sorted(range(len(self)), key=lambda index: self._lengths[index])
