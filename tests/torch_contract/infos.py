"""What torch's own test machinery wants to know of an optimizer, for the three of armijo."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)

import armijo

_SHARED = (
    OptimizerInput(None, {}, "default"),
    OptimizerInput(None, {"lr": 0.5}, "another lr"),
    OptimizerInput(None, {"lr": torch.tensor(0.5)}, "a tensor for lr"),
    OptimizerInput(None, {"weight_decay": 0.1}, "decoupled weight decay"),
    OptimizerInput(None, {"weight_decay": 0.1, "maximize": True}, "maximize"),
    OptimizerInput(None, {"max_step_size": 0.05}, "a cap"),
    OptimizerInput(None, {"c": 0.4, "initial_step_size": 10.0}, "the line's own settings"),
)
_ADAM = (OptimizerInput(None, {"betas": (0.8, 0.99), "eps": 1e-6}, "betas and eps"),)
_PLASLS = (
    OptimizerInput(None, {"selection": armijo.Cycle(joint_steps=1)}, "a short joint phase"),
    OptimizerInput(None, {"selection": armijo.EachAlone(joint_steps=0)}, "every component every step"),
    OptimizerInput(None, {"selection": armijo.Jointly()}, "jointly"),
    OptimizerInput(None, {"merging": armijo.MergeSmallest(below=1.0)}, "much merging"),
)


def _inputs(*more: OptimizerInput) -> Any:
    return lambda device, dtype=None: [*_SHARED, *more]


def _error_inputs(name: str, **extra: tuple[Any, str]) -> Any:
    """Torch's errors that hold for every optimizer, and ours."""
    own: dict[str, tuple[Any, str]] = {
        "lr": (-1.0, "lr is -1.0; it must be at least 0"),
        "weight_decay": (-1.0, "weight_decay is -1.0; it must be at least 0"),
        "max_step_size": (0.0, "max_step_size is 0.0; it must be more than 0"),
        "initial_step_size": (0.0, "The initial step size is 0.0"),
        "c": (1.0, "c is 1.0; sufficient decrease needs"),
        **extra,
    }

    def inputs(device: Any, dtype: Any) -> list[ErrorOptimizerInput]:
        every = get_error_inputs_for_all_optims(device, dtype)
        for error in every:
            if "Tensor lr" in error.error_regex:  # ours names the value, like every other number
                error.error_regex = r"lr is tensor\(\[0.0010, 0.0010\]\); it must be at least 0"
        return [
            *every,
            *(
                ErrorOptimizerInput(
                    OptimizerInput(None, {key: value}, f"{name}: {key}"),
                    error_type=ValueError,
                    error_regex=regex,
                )
                for key, (value, regex) in own.items()
            ),
            ErrorOptimizerInput(
                OptimizerInput([Parameter(torch.ones(2, dtype=torch.complex64))], {}, f"{name}: complex"),
                error_type=ValueError,
                error_regex="does not optimize complex parameters",
            ),
        ]

    return inputs


_BETAS = {"betas": ((0.9, 1.0), r"betas is \(0.9, 1.0\); both must lie in"), "eps": (-1.0, "eps is -1.0")}

INFOS = (
    OptimizerInfo(
        armijo.SGDSLS,
        optim_inputs_func=_inputs(),
        optim_error_inputs_func=_error_inputs("SGDSLS"),
        supported_impls=(),
        supports_sparse=True,
        supports_complex=False,
        step_requires_closure=True,
    ),
    OptimizerInfo(
        armijo.AdamSLS,
        optim_inputs_func=_inputs(*_ADAM),
        optim_error_inputs_func=_error_inputs("AdamSLS", **_BETAS),
        supported_impls=(),
        supports_complex=False,
        step_requires_closure=True,
    ),
    OptimizerInfo(
        armijo.PLASLS,
        optim_inputs_func=_inputs(*_ADAM, *_PLASLS),
        optim_error_inputs_func=_error_inputs("PLASLS", **_BETAS),
        supported_impls=(),
        supports_complex=False,
        step_requires_closure=True,
    ),
)
