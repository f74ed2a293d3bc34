"""Quantities that are read out of one record of a run: scores, losses, seconds, step sizes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

__all__ = [
    "best",
    "final",
    "forwards_per_step",
    "has_line_search",
    "last",
    "last_epoch_forwards",
    "last_epoch_seconds",
    "majority",
    "metric",
    "scores",
    "smallest_step_size",
    "train_loss",
    "training_seconds",
]


def metric(record: Mapping[str, Any]) -> str:
    """Return the name of the task's primary metric."""
    return record["task"]["metrics"][0]


def scores(record: Mapping[str, Any]) -> list[float]:
    """Return the primary metric after each epoch, NaN where the loss was not finite."""
    name = metric(record)
    return [
        math.nan if epoch["evaluation"]["loss"] is None else epoch["evaluation"][name] for epoch in record["epochs"]
    ]


def best(record: Mapping[str, Any]) -> float | None:
    """Return the best score of an epoch, `None` where none is finite."""
    return max((score for score in scores(record) if not math.isnan(score)), default=None)


def last(record: Mapping[str, Any]) -> float | None:
    """Return the score after the last epoch, `None` where the loss was not finite."""
    values = scores(record)
    return values[-1] if values and not math.isnan(values[-1]) else None


def final(record: Mapping[str, Any]) -> float | None:
    """Return the score on all held-out rows after the last epoch, or `last` where only those rows were evaluated."""
    evaluation = record["final"]
    if evaluation is None:
        return last(record)
    return None if evaluation["loss"] is None else evaluation[metric(record)]


def majority(record: Mapping[str, Any]) -> float | None:
    """Return the share of the most frequent class in the rows of `final`, in [0, 1]; `None` if unknown."""
    return record["majority"] if record["final"] is None else record.get("final_majority")


def train_loss(record: Mapping[str, Any]) -> float | None:
    """Return the mean batch loss over the last epoch."""
    return record["epochs"][-1]["train_loss"] if record["epochs"] else None


def forwards_per_step(record: Mapping[str, Any]) -> float:
    """Return the forward passes per step; one of them computes gradients."""
    return record["forwards"] / record["steps"]


def training_seconds(record: Mapping[str, Any]) -> float:
    """Return the seconds spent in training steps."""
    return record["seconds"]["training"]


def last_epoch_seconds(record: Mapping[str, Any]) -> float:
    """Return the seconds in training steps of the last epoch, without the longer first searches."""
    *before, last = record["epochs"]
    return last["seconds"]["training"] - (before[-1]["seconds"]["training"] if before else 0.0)


def last_epoch_forwards(record: Mapping[str, Any]) -> float:
    """Return the forward passes per step in the last epoch."""
    before = record["epochs"][:-1]
    return statistics.fmean(record["forwards_a_step"][before[-1]["step"] if before else 0 :])


def smallest_step_size(record: Mapping[str, Any]) -> float | None:
    """Return the smallest step size of any component at any step."""
    return min((size for size in record.get("smallest", []) if size is not None), default=None)


def has_line_search(record: Mapping[str, Any]) -> bool:
    """Whether the optimizer is a line search of this library."""
    return bool(record["components"])
