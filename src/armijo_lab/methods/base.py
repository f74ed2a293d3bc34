"""How an optimizer takes a step on a batch, and what it reports about that step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

__all__ = ["FAILURES", "Loss", "StepResult", "Stepper", "accumulate_gradients", "total_loss"]

Loss = Callable[[], "torch.Tensor"]
"""Computes the loss of a batch, or one micro-batch's share of it, at the current parameters, of shape ()."""

FAILURES = ("exhausted", "ascent", "nonfinite", "nondeterministic")
"""The statuses of a line search that found no step size."""


@dataclass
class StepResult:
    """What one step did; every value can be written as JSON.

    Attributes:
        loss: The loss f_k at the start of the step.
        forwards: Forward passes over the whole batch, including those with gradients.
        rate: The learning rate of the step; `None` for armijo's line searches, and for packages that do not tell it.
        components: For armijo's line searches, a dict per component with the fields of `armijo.ComponentReport`.
        merges: Pairs of labels: the component that was kept, and the one that was merged into it.
        searches: For armijo's line searches, a dict per search: the labels of its components, its status, the
            constant c of the criterion, its slope, and a pair of step size and loss for each trial.
        ties: Trials whose loss was exactly f_k.
    """

    loss: float
    forwards: int = 1
    rate: float | None = None
    components: list[dict[str, Any]] = field(default_factory=list)
    merges: list[list[str]] = field(default_factory=list)
    searches: list[dict[str, Any]] = field(default_factory=list)
    ties: int = 0


class Stepper:
    """Takes one backward pass and one optimizer step per batch.

    This suits torch's optimizers and every optimizer with the same interface. Subclasses adapt the others.

    Args:
        optimizer: The optimizer over the trainable parameters.
        scheduler: Stepped after each optimizer step; `None` for none.
    """

    def __init__(self, optimizer: Optimizer, scheduler: LRScheduler | None = None) -> None:
        self.optimizer: Any = optimizer
        self.scheduler = scheduler

    def step(self, *parts: Loss) -> StepResult:
        """Take one step on a batch.

        Args:
            parts: One function per micro-batch; the loss of the batch is the sum of what they return.
        """
        rate = self._learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss = accumulate_gradients(parts)
        self._update(loss)
        if self.scheduler is not None:
            self.scheduler.step()
        return StepResult(loss.item(), rate=rate)

    def _update(self, loss: torch.Tensor) -> None:
        """Update the parameters from their gradients."""
        self.optimizer.step()

    def _learning_rate(self) -> float | None:
        """Return the learning rate of the next step, or `None` if the optimizer does not tell it."""
        return float(self.optimizer.param_groups[0]["lr"])

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Give the model the weights to evaluate and save, then return to the weights that are trained."""
        yield

    def components(self) -> list[dict[str, Any]]:
        """Return label, step size and parameter count of each component; `[]` unless it is a line search of armijo."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer and the scheduler for a checkpoint."""
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "scheduler": scheduler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def accumulate_gradients(parts: Sequence[Loss]) -> torch.Tensor:
    """Run backward on each part in turn, so that memory holds one part's activations; return the summed loss."""
    values = []
    for part in parts:
        value = part()
        value.backward()
        values.append(value.detach())
    first, *others = values
    return sum(others, first)


def total_loss(parts: Sequence[Loss]) -> torch.Tensor:
    """Return the summed loss of the parts, without a backward pass."""
    first, *others = (part() for part in parts)
    return sum(others, first)
