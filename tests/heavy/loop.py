"""What a trainer did, update by update, and the loop that a person would write over the same batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

import armijo

LossOf = Callable[[Any, list[Any]], torch.Tensor]
"""What one batch adds to the objective of its update: called with the batch and with all batches of the update."""

QUIET: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


@dataclass
class Updates:
    """The batches of each update as the trainer drew them, and what its optimizer reported."""

    batches: list[list[Any]] = field(default_factory=list)
    reports: list[armijo.StepReport] = field(default_factory=list)


class _Watch(TrainerCallback):
    def __init__(self, trainer: Trainer, updates: Updates) -> None:
        self.trainer, self.updates = trainer, updates

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.updates.reports.append(searcher(self.trainer).report)


def searcher(trainer: Trainer) -> Any:
    """The line search below what Accelerate wraps around it."""
    optimizer: Any = trainer.optimizer
    while not isinstance(optimizer, armijo.LineSearch):
        optimizer = optimizer.optimizer
    return optimizer


def watched(trainer: Trainer) -> Updates:
    """From now on keep what each update does; each begins with a seed of its own, so that masks can be repeated."""
    updates = Updates()
    drawn = trainer.get_batch_samples

    def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
        batches, items = drawn(*args, **kwargs)
        if batches:
            updates.batches.append(copy.deepcopy(batches))
        return batches, items

    trainer.get_batch_samples = get_batch_samples
    trainer.add_callback(_Watch(trainer, updates))
    return updates


def plain(
    batches: Iterable[list[Any]], model: nn.Module, optimizer: armijo.LineSearch, loss_of: LossOf
) -> list[armijo.StepReport]:
    """The loop that a person would write."""
    model.train()
    reports = []
    for step, update in enumerate(batches):
        torch.manual_seed(step)
        optimizer.zero_grad()
        objective = armijo.Objective()
        for batch in update:
            objective.baseline(lambda batch=batch, update=update: loss_of(batch, update)).backward()
        optimizer.step(objective)
        assert optimizer.report is not None
        reports.append(optimizer.report)
    return reports


def features(batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The columns of a batch as the losses of sentence-transformers take them."""
    columns = [key.removesuffix("input_ids") for key in batch if key.endswith("_input_ids")]
    return [{key.removeprefix(c): value for key, value in batch.items() if key.startswith(c)} for c in columns]


def same(found: list[armijo.StepReport], wanted: list[armijo.StepReport], rtol: float = 1e-6) -> None:
    """The same steps: outcomes and trials exactly, losses up to rounding, and so step sizes, which follow slopes.

    A slope is a sum of squares in float32, and where a step promises half of the loss, η is that over the slope: it
    agrees as the losses do, to three millionths at worst.
    """
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert [(c.label, c.status, c.trials) for c in one.components] == [
            (c.label, c.status, c.trials) for c in other.components
        ]
        assert one.forwards == other.forwards
        torch.testing.assert_close(one.loss, other.loss, rtol=rtol, atol=1e-9)
        sizes = [[c.step_size for c in report.components] for report in (one, other)]
        torch.testing.assert_close(sizes[0], sizes[1], rtol=min(rtol, 3e-6), atol=0)


def accepted(reports: list[armijo.StepReport], c: float = 0.1) -> int:
    """How many searches took a step, after a look at each: f(w(η)) ≤ f(w) - c·η·S, in numbers that were reported."""
    count = 0
    for report in reports:
        for component in report.components:
            if component.status == "accepted":
                assert component.trial_loss <= report.loss - c * component.step_size * component.slope + 1e-12
                count += 1
    return count


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same parameters, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
