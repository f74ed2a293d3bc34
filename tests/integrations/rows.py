"""A tiny model, rows and batches that the integrations are tested with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

VOCABULARY, LENGTH, LABELS = 40, 10, 3


def rows(count: int = 48, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of different lengths, as numbers, padded; the label depends on what the text holds."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        words = torch.randint(3, VOCABULARY, (LENGTH,), generator=generator)
        length = int(torch.randint(4, LENGTH + 1, (1,), generator=generator))
        mask = (torch.arange(LENGTH) < length).long()
        label = int((words[:length] % LABELS).sum() % LABELS)
        made.append({"input_ids": words * mask, "attention_mask": mask, "labels": label})
    return made


def bert(*, dropout: float = 0.0, layers: int = 2, seed: int = 0) -> Any:
    """A BERT classifier of two layers."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=LENGTH,
            num_labels=LABELS,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )


def batched(items: list[dict[str, Any]], size: int) -> list[dict[str, torch.Tensor]]:
    """Batches in the order of the rows."""
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    return [{key: torch.as_tensor(_stacked([row[key] for row in part])) for key in part[0]} for part in parts]


def _stacked(values: list[Any]) -> Any:
    return torch.stack(values) if isinstance(values[0], torch.Tensor) else torch.tensor(values)


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]
