"""torch's own optimizers, with a schedule of the learning rate.

Arguments: `lr`; `weight_decay`; `schedule` (constant, linear, cosine); `warmup`, the fraction of the steps over which
the learning rate rises from 0; and for `sgd` `momentum`. With a warm-up, the learning rate of the first step is 0, as
in the schedules of transformers: that step changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from armijo_lab.methods.base import Stepper
from armijo_lab.methods.row import Keys, MethodRow, choice, fraction, number, trainable_parameters

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

__all__ = ["ROWS", "SCHEDULE_KEYS", "build_with_schedule"]

SCHEDULE_KEYS: Keys = {
    "lr": number(0),
    "weight_decay": number(0),
    "schedule": choice("constant", "linear", "cosine"),
    "warmup": number(0, 1),
}
"""The arguments of an optimizer whose learning rate follows a schedule."""


def build_with_schedule(
    make: Callable[..., Any], model: nn.Module, settings: dict[str, Any], total_steps: int
) -> tuple[Optimizer, LRScheduler]:
    """Build an optimizer over the trainable parameters, and the schedule of its learning rate.

    Args:
        make: Called with the parameters, and with the settings except `schedule` and `warmup`.
        model: The model that is trained.
        settings: The values of `SCHEDULE_KEYS`, and further keywords of `make`.
        total_steps: The number of steps that the schedule spans, ≥ 1.
    """
    schedule, warmup = settings.pop("schedule"), settings.pop("warmup")
    optimizer = make(trainable_parameters(model), **settings)
    return optimizer, _make_scheduler(optimizer, schedule, warmup, total_steps)


def _make_scheduler(optimizer: Optimizer, schedule: str, warmup: float, total_steps: int) -> LRScheduler:
    from torch.optim.lr_scheduler import LambdaLR

    warmup_steps = math.ceil(warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        remaining = 1 - (step - warmup_steps) / max(1, total_steps - warmup_steps)
        if schedule == "linear":
            return max(0.0, remaining)
        if schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (1 - remaining)))
        return 1.0

    return LambdaLR(optimizer, factor)


def _build_adam(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    import torch

    return Stepper(*build_with_schedule(torch.optim.Adam, model, settings, total_steps))


def _build_adamw(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    import torch

    return Stepper(*build_with_schedule(torch.optim.AdamW, model, settings, total_steps))


def _build_sgd(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
    import torch

    return Stepper(*build_with_schedule(torch.optim.SGD, model, settings, total_steps))


ROWS: tuple[MethodRow, ...] = (
    MethodRow(
        "adam",
        keys=SCHEDULE_KEYS,
        # The baseline of arXiv 2403.18506.
        defaults={"lr": 2e-5, "schedule": "cosine", "weight_decay": 0.0, "warmup": 0.1},
        build=_build_adam,
    ),
    MethodRow(
        "adamw",
        keys=SCHEDULE_KEYS,
        # The defaults of the Hugging Face Trainer.
        defaults={"lr": 5e-5, "schedule": "linear", "weight_decay": 0.0, "warmup": 0.0},
        build=_build_adamw,
    ),
    MethodRow(
        "sgd",
        keys={**SCHEDULE_KEYS, "momentum": fraction},
        # torch's own learning rate, with the usual momentum.
        defaults={"lr": 1e-3, "schedule": "constant", "weight_decay": 0.0, "momentum": 0.9, "warmup": 0.0},
        build=_build_sgd,
    ),
)
