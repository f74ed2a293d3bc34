"""A part in an optimizer, over some steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from armijo.directions.base import ParameterState, Tensors
from armijo.directions.gradient import GradientDirection
from armijo.optimizer import LineSearch
from armijo.search.backtracking import Backtracking
from armijo.search.bracketing import Bracketing
from armijo.testing.contract import Contract
from armijo.testing.directions import randn

__all__ = ["check_in_line_search"]


@dataclass(frozen=True)
class _Probing(GradientDirection):
    """Gradient descent that offers its last step as each of the probes."""

    names: tuple[str, ...]

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"probe {name}": torch.zeros_like(parameter) for name in self.names}

    def record_step(self, states: list[ParameterState], updates: Tensors, step_size: float) -> None:
        for state, update in zip(states, updates, strict=False):
            for name in self.names:
                state[f"probe {name}"].copy_(update * step_size)

    def probes(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        return {name: [state[f"probe {name}"] for state in states] for name in self.names}


def check_in_line_search(contract: Contract) -> None:
    """Check some steps of a `LineSearch`; a parameter lacks a gradient for a while, and a state is loaded."""
    parameters = [weight.requires_grad_() for weight in randn(7)]
    groups = [
        {"params": [weight], "component": label}
        for weight, label in zip(parameters, ("body", "head", "body"), strict=True)
    ]
    parts: dict[str, Any] = {"direction": _Probing(contract.derivatives), contract.family: contract.part}
    if contract.family == "criterion":
        two_sided = getattr(contract.part, "two_sided", False)
        parts["search"] = (Bracketing if two_sided else Backtracking)(criterion=parts.pop("criterion"))
    elif contract.family == "guess":
        parts["search"] = Backtracking(guess=parts.pop("guess"))
    try:
        optimizer = LineSearch(groups, **parts)
        optimizer._observers.clear()  # nothing of this is to be logged
        optimizer._warned = True
        for k in range(12):
            used = parameters[:-1] if k in (5, 6) else parameters
            targets = randn(20 + k, 0.3)

            def closure(used: Tensors = used, targets: Tensors = targets) -> torch.Tensor:
                terms = [(w - t).square().log1p().sum() for w, t in zip(used, targets, strict=False)]
                return torch.stack(terms).sum()

            with torch.enable_grad():
                optimizer.step(closure)
            if k == 8:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    except Exception as error:
        contract.fail(
            f"does not work in LineSearch: {type(error).__name__}: {str(error).rstrip('.')}",
            "The error says what to change.",
        )
