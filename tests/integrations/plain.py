"""The loop that a person would write, which every integration's steps are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import armijo
from integrations.rows import batched, rows

BATCH = 8


def cross_entropy(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).loss


def _part(loss_of: Any, model: nn.Module, batch: dict[str, torch.Tensor], parts: int) -> torch.Tensor:
    return loss_of(model, batch) / parts


def plain(
    model: nn.Module,
    optimizer: armijo.LineSearch,
    loss_of: Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor] = cross_entropy,
    accumulate: int = 1,
) -> list[armijo.StepReport]:
    """The loop that a person would write."""
    model.train()
    reports, step = [], 0
    for _ in range(2):
        batches = batched(rows(), BATCH)
        for start in range(0, len(batches), accumulate):
            torch.manual_seed(step)
            micro = batches[start : start + accumulate]
            optimizer.zero_grad()
            objective = armijo.Objective()
            for batch in micro:
                loss = objective.baseline(functools.partial(_part, loss_of, model, batch, len(micro)))
                loss.backward()
            optimizer.step(objective)
            reports.append(optimizer.report)
            step += 1
    return reports


def same(found: list[Any], wanted: list[armijo.StepReport], rtol: float = 1e-6) -> None:
    assert [[c.trials for c in report.components] for report in found] == [
        [c.trials for c in report.components] for report in wanted
    ]
    assert [[c.status for c in report.components] for report in found] == [
        [c.status for c in report.components] for report in wanted
    ]
    for key in ("loss", "forwards"):
        values = [[getattr(report, key) for report in reports] for reports in (found, wanted)]
        torch.testing.assert_close(values[0], values[1], rtol=rtol, atol=0)
    sizes = [[[c.step_size for c in report.components] for report in reports] for reports in (found, wanted)]
    torch.testing.assert_close(sizes[0], sizes[1], rtol=1e-12, atol=0)


def averaged(iterates: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Their `polynomial_average`."""
    means = [p.clone() for p in iterates[0]]
    for k, iterate in enumerate(iterates[1:], 1):
        armijo.polynomial_average()(means, iterate, k)
    return means
