"""Optimizers from other packages, each with its authors' defaults.

Arguments: `salsa`: `c`, `initial_step_size`. `prodigy`, `dadaptation`, `mechanic`: `lr` (a factor of the learning rate
that the method estimates), `weight_decay`, `schedule`, `warmup`. `schedulefree`: `lr`, `weight_decay`, `warmup`. `dog`,
`ldog`: `average` (yes, no). `momo`, `momo-adam`: `lr`, an upper limit. `gen`: `lr`, `every` (steps between corrections
of the learning rate).

None of them is marked resumable: it is not established that `state_dict` returns their whole state.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from armijo_lab.methods.base import Loss, Stepper, StepResult, accumulate_gradients, total_loss
from armijo_lab.methods.row import (
    Keys,
    MethodRow,
    Package,
    Value,
    choice,
    integer,
    number,
    positive,
    trainable_parameters,
)
from armijo_lab.methods.torch_optimizers import SCHEDULE_KEYS, build_with_schedule

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

__all__ = [
    "ROWS",
    "AveragedStepper",
    "EstimatedRateStepper",
    "GenStepper",
    "MomoStepper",
    "SalsaStepper",
    "ScheduleFreeStepper",
    "UnknownRateStepper",
]

# ---------------------------------------------------------------------------------------------------------- steppers


class EstimatedRateStepper(Stepper):
    """Steps with Prodigy or D-Adaptation, whose learning rate is `lr` times their estimate `d`."""

    def _learning_rate(self) -> float | None:
        group = self.optimizer.param_groups[0]
        return float(group["lr"]) * float(group["d"])


class UnknownRateStepper(Stepper):
    """Steps with an optimizer that has torch's interface and does not tell its learning rate."""

    def _learning_rate(self) -> float | None:
        return None


class AveragedStepper(UnknownRateStepper):
    """Steps with DoG and evaluates the average of its iterates, as its authors advise.

    Args:
        optimizer: DoG or LDoG.
        averager: A `dog.PolynomialDecayAverager` over `model`.
        model: The model that is trained.
    """

    def __init__(self, optimizer: Optimizer, averager: Any, model: nn.Module) -> None:
        super().__init__(optimizer)
        self._averager = averager
        self._model = model

    def _update(self, loss: torch.Tensor) -> None:
        self.optimizer.step()
        self._averager.step()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Give the model the averaged weights, then restore the trained ones."""
        import torch

        pairs = list(zip(self._model.parameters(), self._averager.averaged_model.parameters(), strict=True))
        trained = [parameter.detach().clone() for parameter, _ in pairs]
        with torch.no_grad():
            for parameter, average in pairs:
                parameter.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), value in zip(pairs, trained, strict=True):
                    parameter.copy_(value)


class ScheduleFreeStepper(UnknownRateStepper):
    """Steps with Schedule-Free, which has one mode for training and one for evaluation."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        optimizer.train()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Give the model the averaged weights, then restore the trained ones."""
        self.optimizer.eval()
        try:
            yield
        finally:
            self.optimizer.train()


class MomoStepper(UnknownRateStepper):
    """Steps with MoMo, which computes its step size from the loss."""

    def _update(self, loss: torch.Tensor) -> None:
        self.optimizer.step(loss=loss)


class SalsaStepper(Stepper):
    """Steps with SaLSA, whose closure runs a backward pass only on request."""

    def step(self, *parts: Loss) -> StepResult:
        """Search, or update with the current step size."""
        import numpy
        import torch

        optimizer = self.optimizer

        def closure(backwards: bool = False) -> torch.Tensor:
            if not backwards:
                return total_loss(parts)
            optimizer.zero_grad(set_to_none=True)
            return accumulate_gradients(parts)

        module: Any = sys.modules[type(optimizer).__module__]
        forwards = optimizer.state["n_forwards"]
        numpy_state = numpy.random.get_state()
        # SaLSA seeds torch's and NumPy's generators with the time of day, so that each trial repeats the dropout masks
        # of the step. A seed from the count of forward passes makes whole runs repeatable as well.
        clock, module.time = module.time, SimpleNamespace(time=lambda: torch.initial_seed() % 2**31 + forwards)
        # SaLSA prints a line whenever two losses are equal.
        with contextlib.redirect_stdout(None):
            try:
                loss = optimizer.step(closure).item()
            except ValueError as error:
                if "nans detected" not in str(error):
                    raise
                loss = math.nan
            finally:
                module.time = clock
                numpy.random.set_state(numpy_state)
        return StepResult(loss, forwards=optimizer.state["n_forwards"] - forwards, rate=float(optimizer.step_size))


class GenStepper(Stepper):
    """Steps with AdamW, and corrects its learning rate by GeN: a parabola through three losses every few steps.

    Args:
        optimizer: AdamW.
        model: The model that is trained.
        every: Steps between corrections, ≥ 1.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, every: int) -> None:
        super().__init__(optimizer)
        self._model = model
        self._every = every
        self._steps = 0

    def step(self, *parts: Loss) -> StepResult:
        """Correct the learning rate if a correction is due, then update the parameters."""
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.zero_grad(set_to_none=True)
        loss = accumulate_gradients(parts)
        forwards = 1
        if (self._steps + 1) % self._every == 0:
            self._correct_rate(parts)
            forwards += 3
            rate = float(self.optimizer.param_groups[0]["lr"])
        self._steps += 1
        self.optimizer.step()
        return StepResult(loss.item(), forwards=forwards, rate=rate)

    def _correct_rate(self, parts: tuple[Loss, ...]) -> None:
        """Let GeN evaluate the loss at three points along the optimizer's step; it restores the parameters."""
        import torch
        from GeN import lr_parabola

        unused = torch.zeros(())
        net: Any = _LossModel(self._model, lambda: total_loss(parts))
        criterion: Any = _first_argument
        with contextlib.redirect_stdout(None):
            lr_parabola(
                net,
                self.optimizer,
                criterion=criterion,
                tr_iter=iter([(unused, unused)]),
                device="cpu",
                task="image_cls",
                lr_factor=[-1, 0, 1],
            )


class _LossModel:
    """What GeN uses of a model: its parameters, and a call, which here returns the loss of the batch."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.parameters = model.parameters
        self._loss = loss

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._loss()


def _first_argument(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs


# ------------------------------------------------------------------------------------------------- building the rows


def _build_salsa(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    from salsa.SaLSA import SaLSA

    initial_step_size, c = settings["initial_step_size"], settings["c"]
    return SalsaStepper(SaLSA(trainable_parameters(model), init_step_size=initial_step_size, c=c))


def _build_prodigy(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    from prodigyopt import Prodigy

    return EstimatedRateStepper(*build_with_schedule(Prodigy, model, settings, total_steps))


def _build_dadaptation(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    from dadaptation import DAdaptAdam

    return EstimatedRateStepper(*build_with_schedule(DAdaptAdam, model, settings, total_steps))


def _build_mechanic(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    import torch
    from mechanic_pytorch import mechanize

    return UnknownRateStepper(*build_with_schedule(mechanize(torch.optim.AdamW), model, settings, total_steps))


def _build_schedulefree(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    from schedulefree import AdamWScheduleFree

    warmup_steps = math.ceil(settings.pop("warmup") * total_steps)
    return ScheduleFreeStepper(AdamWScheduleFree(trainable_parameters(model), warmup_steps=warmup_steps, **settings))


def _build_dog(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    import dog

    return _dog_stepper(dog.DoG(trainable_parameters(model)), model, settings)


def _build_ldog(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    import dog

    return _dog_stepper(dog.LDoG(trainable_parameters(model)), model, settings)


def _dog_stepper(optimizer: Optimizer, model: nn.Module, settings: dict[str, Any]) -> Stepper:
    import dog

    if settings["average"] == "no":
        return UnknownRateStepper(optimizer)
    return AveragedStepper(optimizer, dog.PolynomialDecayAverager(model), model)


def _build_momo(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    import momo

    return MomoStepper(momo.Momo(trainable_parameters(model), **settings))


def _build_momo_adam(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    import momo

    return MomoStepper(momo.MomoAdam(trainable_parameters(model), **settings))


def _build_gen(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    import torch

    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=settings["lr"], weight_decay=0.0)
    return GenStepper(optimizer, model, settings["every"])


# ------------------------------------------------------------------------------------------------------------ the rows

# `lr` is a factor of the estimated learning rate. The authors advise 1 without a schedule.
_ESTIMATED: Keys = {**SCHEDULE_KEYS, "lr": positive}
_ESTIMATED_DEFAULTS: Mapping[str, Value] = {"lr": 1.0, "schedule": "constant", "weight_decay": 0.0, "warmup": 0.0}
_AVERAGE: Keys = {"average": choice("yes", "no")}

ROWS: tuple[MethodRow, ...] = (
    MethodRow(
        "salsa",
        keys={"c": positive, "initial_step_size": positive},
        defaults={"c": 0.5, "initial_step_size": 1.0},
        package=Package("salsa", "SaLSa-Optimizer"),
        build=_build_salsa,
        resumable=False,
        distributed=False,
    ),
    MethodRow(
        "prodigy",
        keys=_ESTIMATED,
        defaults=_ESTIMATED_DEFAULTS,
        package=Package("prodigyopt", "prodigyopt"),
        build=_build_prodigy,
        resumable=False,
    ),
    MethodRow(
        "dadaptation",
        keys=_ESTIMATED,
        defaults=_ESTIMATED_DEFAULTS,
        package=Package("dadaptation", "dadaptation"),
        build=_build_dadaptation,
        resumable=False,
    ),
    MethodRow(
        "mechanic",
        keys=_ESTIMATED,
        defaults=_ESTIMATED_DEFAULTS,
        package=Package("mechanic_pytorch", "mechanic-pytorch"),
        build=_build_mechanic,
        resumable=False,
    ),
    MethodRow(
        "schedulefree",
        keys={"lr": positive, "weight_decay": number(0), "warmup": number(0, 1)},
        defaults={"lr": 2.5e-3, "weight_decay": 0.0, "warmup": 0.0},
        package=Package("schedulefree", "schedulefree"),
        build=_build_schedulefree,
        resumable=False,
    ),
    MethodRow(
        "dog",
        keys=_AVERAGE,
        defaults={"average": "yes"},
        package=Package("dog", "dog-optimizer"),
        build=_build_dog,
        resumable=False,
    ),
    MethodRow(
        "ldog",
        keys=_AVERAGE,
        defaults={"average": "yes"},
        package=Package("dog", "dog-optimizer"),
        build=_build_ldog,
        resumable=False,
    ),
    MethodRow(
        "momo",
        keys={"lr": positive},
        defaults={"lr": 1.0},
        package=Package("momo", "momo-opt"),
        build=_build_momo,
        resumable=False,
        distributed=False,
    ),
    MethodRow(
        "momo-adam",
        keys={"lr": positive},
        defaults={"lr": 1e-2},
        package=Package("momo", "momo-opt"),
        build=_build_momo_adam,
        resumable=False,
        distributed=False,
    ),
    MethodRow(
        "gen",
        keys={"lr": positive, "every": integer(1)},
        # A fitted correction raises the learning rate by a tenth at most, so the first value matters.
        defaults={"lr": 1e-4, "every": 4},
        package=Package("GeN", "gen-optim"),
        build=_build_gen,
        resumable=False,
        distributed=False,
    ),
)
