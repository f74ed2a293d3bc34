"""How each optimizer takes a step: one interface over line searches, torch's own optimizers and those of others.

The training loop hands over the function that computes the loss of the batch, or several whose sum it is, for the
micro-batches of a step; what a method makes of them (one backward pass, a search, a second mode for evaluation) stands
here and nowhere else.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from armijo.search.records import Line, Trial

__all__ = [
    "FAILURES",
    "Averaged",
    "FoundRateStepper",
    "GenStepper",
    "HiddenRateStepper",
    "ModalStepper",
    "MomoStepper",
    "SalsaStepper",
    "SearchStepper",
    "Stepper",
    "Taken",
]

Loss = Callable[[], torch.Tensor]
"""The loss of the batch, or what a part of it adds, at the current parameters, of shape (); it does nothing else."""

FAILURES = ("exhausted", "nonfinite", "nondeterministic")
"""The statuses of a search that found no step size."""


@dataclass
class Taken:
    """What one step did; each value is a JSON value.

    Attributes:
        loss: f_k at the start of the step.
        forwards: Forward passes over the whole batch, those with gradients included.
        rate: The learning rate it moved with; `None` for a line search of ours, and where a package keeps it to itself.
        components: For a line search of ours a dict for each component, as `armijo.ComponentReport` has it.
        merges: Pairs of a kept and an absorbed label.
        ties: Trials whose loss was f_k to the last bit.
        moved_loss: See `released.ReleasedOrder`; `None` for all others.
    """

    loss: float
    forwards: int = 1
    rate: float | None = None
    components: list[dict[str, Any]] = field(default_factory=list)
    merges: list[list[str]] = field(default_factory=list)
    ties: int = 0
    moved_loss: float | None = None


class Stepper:
    """One backward pass and one step a batch: torch's optimizers, and all that are used like them.

    Args:
        optimizer: What moves the parameters.
        scheduler: Stepped after each step; `None` for none.
    """

    def __init__(self, optimizer: Optimizer, scheduler: LRScheduler | None = None) -> None:
        self.optimizer: Any = optimizer
        self.scheduler = scheduler

    def step(self, *parts: Loss) -> Taken:
        """Take one step on a batch, whose loss is the sum of its parts."""
        rate = self._rate()
        self.optimizer.zero_grad(set_to_none=True)
        value = _backward(parts)
        self._move(value)
        if self.scheduler is not None:
            self.scheduler.step()
        return Taken(value.item(), rate=rate)

    def _move(self, loss: torch.Tensor) -> None:
        self.optimizer.step()

    def _rate(self) -> float | None:
        return float(self.optimizer.param_groups[0]["lr"])

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """While it lasts the model holds the weights that the method means to be used."""
        yield

    def components(self) -> list[dict[str, Any]]:
        """Label, step size and number of parameters of each component; `[]` for all but line searches of ours."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "scheduler": scheduler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


class SearchStepper(Stepper):
    """armijo's own: `step` takes the closure."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self._counted = optimizer.criterion = _CountedTies(optimizer.criterion)

    def step(self, *parts: Loss) -> Taken:
        """Search and move."""
        self._counted.ties = 0
        value = self.optimizer.step(parts[0] if len(parts) == 1 else self._accumulated(parts)).item()
        report = self.optimizer.report
        return Taken(
            value,
            forwards=report.forwards // len(parts),
            components=[
                {
                    "label": component.label,
                    "status": str(component.status),
                    "step_size": component.step_size,
                    "slope": component.slope,
                    "trials": component.trials,
                    "trial_loss": component.trial_loss,
                }
                for component in report.components
            ],
            merges=[list(merge) for merge in report.merges],
            ties=self._counted.ties,
            moved_loss=getattr(self.optimizer, "moved_loss", None),
        )

    def _accumulated(self, parts: Sequence[Loss]) -> Any:
        from armijo import Objective

        self.optimizer.zero_grad(set_to_none=True)
        objective = Objective()
        for part in parts:
            objective.baseline(part).backward()
        return objective

    def components(self) -> list[dict[str, Any]]:
        """Label, step size and number of parameters of each component."""
        groups = self.optimizer.param_groups
        return [
            {
                "label": component.label,
                "step_size": float(groups[component.groups[0]]["step_size"]),
                "parameters": sum(p.numel() for place in component.groups for p in groups[place]["params"]),
            }
            for component in self.optimizer.partition.components([group["component"] for group in groups])
        ]


class _CountedTies:
    """A criterion that judges as the one it holds, and counts the trials whose loss is that of the start, to the bit.

    Args:
        criterion: The one that judges.
    """

    def __init__(self, criterion: Any) -> None:
        self.judge = criterion
        self.ties = 0

    def violation(self, line: Line, trial: Trial) -> float:
        self.ties += trial.loss == line.loss
        return self.judge.violation(line, trial)


class FoundRateStepper(Stepper):
    """Prodigy and D-Adaptation: the rate that they found stands beside `lr`, as a factor."""

    def _rate(self) -> float | None:
        group = self.optimizer.param_groups[0]
        return float(group["lr"]) * float(group["d"])


class HiddenRateStepper(Stepper):
    """What is used like torch's optimizers, and does not say what it moved with."""

    def _rate(self) -> float | None:
        return None


class Averaged(HiddenRateStepper):
    """DoG with the average of its iterates, which its authors ask for, as the weights to be used.

    Args:
        optimizer: DoG or LDoG.
        averager: `dog.PolynomialDecayAverager` over `model`.
        model: What is trained.
    """

    def __init__(self, optimizer: Optimizer, averager: Any, model: nn.Module) -> None:
        super().__init__(optimizer)
        self._averager = averager
        self._model = model

    def _move(self, loss: torch.Tensor) -> None:
        self.optimizer.step()
        self._averager.step()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """While it lasts the model holds the average."""
        pairs = list(zip(self._model.parameters(), self._averager.averaged_model.parameters(), strict=True))
        kept = [parameter.detach().clone() for parameter, _ in pairs]
        with torch.no_grad():
            for parameter, average in pairs:
                parameter.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), before in zip(pairs, kept, strict=True):
                    parameter.copy_(before)


class ModalStepper(HiddenRateStepper):
    """Schedule-Free: the optimizer has a mode for training and one for evaluation."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        optimizer.train()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """While it lasts the model holds the averaged weights."""
        self.optimizer.eval()
        try:
            yield
        finally:
            self.optimizer.train()


class MomoStepper(HiddenRateStepper):
    """MoMo: the step takes the loss, from which it makes its step size."""

    def _move(self, loss: torch.Tensor) -> None:
        self.optimizer.step(loss=loss)


class SalsaStepper(Stepper):
    """SaLSA: the step calls a closure that runs backward where it is told to."""

    def step(self, *parts: Loss) -> Taken:
        """Search, or move with the step size it has."""
        import numpy

        optimizer = self.optimizer

        def closure(backwards: bool = False) -> torch.Tensor:
            if not backwards:
                return _whole(parts)
            optimizer.zero_grad(set_to_none=True)
            return _backward(parts)

        module: Any = sys.modules[type(optimizer).__module__]
        before = optimizer.state["n_forwards"]
        kept = numpy.random.get_state()
        # It seeds torch's and NumPy's generators with the time of day, so that a trial repeats the masks of the step;
        # with the number of the step in its place a run repeats itself, too.
        clock, module.time = module.time, SimpleNamespace(time=lambda: torch.initial_seed() % 2**31 + before)
        # It writes a line where two losses are equal; the record counts its forwards all the same.
        with contextlib.redirect_stdout(None):
            try:
                value = optimizer.step(closure).item()
            except ValueError as error:
                if "nans detected" not in str(error):
                    raise
                value = math.nan
            finally:
                module.time = clock
                numpy.random.set_state(kept)
        return Taken(value, forwards=optimizer.state["n_forwards"] - before, rate=float(optimizer.step_size))


class GenStepper(Stepper):
    """GeN: every few steps a parabola through three losses corrects the rate of AdamW.

    Args:
        optimizer: AdamW.
        model: What is trained.
        every: Steps from one correction to the next, ≥ 1.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, every: int) -> None:
        super().__init__(optimizer)
        self._model = model
        self._every = every
        self._steps = 0

    def step(self, *parts: Loss) -> Taken:
        """Correct the rate where it is time to, and move."""
        from GeN import lr_parabola

        rate = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.zero_grad(set_to_none=True)
        value = _backward(parts)
        forwards = 1
        if (self._steps + 1) % self._every == 0:
            # It moves by the optimizer's own step, evaluates on both sides, and comes back to where it was.
            nothing = torch.zeros(())
            criterion: Any = _first
            with contextlib.redirect_stdout(None):
                lr_parabola(
                    _LossOf(self._model, lambda: _whole(parts)),
                    self.optimizer,
                    criterion=criterion,
                    tr_iter=iter([(nothing, nothing)]),
                    device="cpu",
                    task="image_cls",
                    lr_factor=[-1, 0, 1],
                )
            forwards += 3
            rate = float(self.optimizer.param_groups[0]["lr"])
        self._steps += 1
        self.optimizer.step()
        return Taken(value.item(), forwards=forwards, rate=rate)


def _backward(parts: Sequence[Loss]) -> torch.Tensor:
    """Add up the gradients part by part, so that the activations of one are there at a time; the loss, detached."""
    values = []
    for part in parts:
        value = part()
        value.backward()
        values.append(value.detach())
    first, *others = values
    return sum(others, first)


def _whole(parts: Sequence[Loss]) -> torch.Tensor:
    first, *others = (part() for part in parts)
    return sum(others, first)


def _first(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs


class _LossOf(nn.Module):
    """A model whose output is the loss of the batch, whatever it is given."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._loss()
