"""One run: training, and one evaluation of the last iterate and of the average."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import armijo
from armijo_lab import methods
from armijo_lab.regret.grid import Cell
from armijo_lab.regret.material import Material, Rows, prepare

__all__ = ["do"]


def do(cell: Cell, optimizer: str, seed: int, data_dir: Path | None, cache: Path) -> dict[str, Any]:
    """Do one run.

    Args:
        cell: The cell.
        optimizer: As `methods.parse` reads it.
        seed: Draws rows, head, masks and the order of rows.
        data_dir: The folder of GLUE's files; `None` for the hub.
        cache: The folder for features.

    Returns:
        The cell, optimizer and seed; `steps`; `forwards` per step; of the last iterate and of the average (of all
        iterates, weighted by the cube of their number) `accuracy`, `log_loss` and `majority`, the share of the class
        that is predicted most; `train_loss`, the mean over the last fifth of the steps.
    """
    material = prepare(cell, seed, data_dir, cache)
    torch.manual_seed(1000 + seed)
    model = material.model.train()
    stepper = methods.parse(optimizer).build(model, cell.steps)
    parameters: list[torch.Tensor] = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    update = armijo.polynomial_average(3.0)
    losses: list[float] = []
    forwards = 0
    for step, indices in enumerate(_batches(len(material.train), cell, seed)):
        result = stepper.step(_Loss(model, material.train, indices))
        losses.append(result.loss)
        forwards += result.forwards
        with torch.no_grad():
            update(average, parameters, step)
    with stepper.evaluating():
        last = _evaluate(model, material)
    with torch.no_grad():
        torch._foreach_copy_(parameters, average)
    averaged = _evaluate(model, material)
    tail = losses[-max(1, len(losses) // 5) :]
    return {
        "task": cell.task,
        "regime": cell.regime,
        "rows": cell.rows,
        "batch_size": cell.batch_size,
        "optimizer": optimizer,
        "seed": seed,
        "steps": cell.steps,
        "forwards": forwards / cell.steps,
        "train_loss": sum(tail) / len(tail),
        "last": last,
        "average": averaged,
    }


class _Loss:
    """The loss of one batch, as a closure."""

    def __init__(self, model: nn.Module, rows: Rows, indices: Sequence[int]) -> None:
        self._model = model
        self._inputs = rows.batch(indices)
        self._targets = rows.targets[list(indices)]

    def __call__(self) -> torch.Tensor:
        return cross_entropy(self._model(**self._inputs), self._targets)


def _batches(rows: int, cell: Cell, seed: int) -> list[list[int]]:
    draw, order = random.Random(seed), list[int]()
    while len(order) < cell.steps * cell.batch_size:
        epoch = list(range(rows))
        draw.shuffle(epoch)
        order += epoch
    return [order[k * cell.batch_size : (k + 1) * cell.batch_size] for k in range(cell.steps)]


@torch.no_grad()
def _evaluate(model: nn.Module, material: Material) -> dict[str, float | None]:
    rows = material.evaluation
    model.eval()
    right, loss, predicted = 0, 0.0, list[int]()
    for indices in rows.by_length():
        logits, targets = model(**rows.batch(indices)), rows.targets[indices]
        loss += cross_entropy(logits, targets, reduction="sum").item()
        predicted += logits.argmax(-1).tolist()
        right += int((logits.argmax(-1) == targets).sum())
    model.train()
    return {
        "accuracy": right / len(rows),
        "log_loss": loss / len(rows) if math.isfinite(loss) else None,
        "majority": max(predicted.count(label) for label in set(predicted)) / len(rows),
    }
