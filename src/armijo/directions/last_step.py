"""A direction that keeps its last step for the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from armijo.directions.base import Direction, ParameterState, Tensors, Workspace
from armijo.directions.kernel import Kernel, Term
from armijo.errors import ConfigurationError
from armijo.families import check_part, inherits

__all__ = ["KeepLastStep"]


@dataclass(frozen=True)
class KeepLastStep(Direction):
    """Another direction, which keeps the last step v = lr·η_k·u_k = w_k - w_{k+1} as the probe `"last_step"`.

    Parts that look back need it:

    - `line.derivatives["last_step"]` is ⟨∇f_{k+1}(w_{k+1}), v⟩: the loss of the new batch still falls along the last
      step where it is positive. It costs no forward pass.
    - `evaluate(-1.0, along="last_step")` is f_{k+1}(w_k), the loss of the new batch at the point before the last step.
      It costs one forward pass without gradients.

    Before the first step, and where a component or a parameter without a gradient stayed, v is zero. Weight decay is
    not part of it. Memory: one tensor of its shape for each parameter.

    Args:
        direction: the direction to follow.

    Raises:
        ConfigurationError: if that is no direction.
    """

    direction: Direction

    def __post_init__(self) -> None:
        check_part("direction", self.direction, type(self).__name__)

    def defaults(self) -> dict[str, Any]:
        """Those of `direction`."""
        return self.direction.defaults()

    def validate(self, group: Mapping[str, Any]) -> None:
        """Check as `direction` does."""
        self.direction.validate(group)

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those of `direction`, and `last_step`."""
        moments = self.direction.moments(parameter)
        if "last_step" in moments:
            raise ConfigurationError(f"{self.direction!r} has a moment last_step of its own; rename it.")
        return {**moments, "last_step": torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    def search_direction(self, grads: Tensors, states: list[ParameterState], group: Mapping[str, Any]) -> Tensors:
        """That of `direction`."""
        return self.direction.search_direction(grads, states, group)

    def update(
        self, grads: Tensors, states: list[ParameterState], scratch: Tensors, group: Mapping[str, Any]
    ) -> Tensors:
        """That of `direction`."""
        return self.direction.update(grads, states, scratch, group)

    def record_step(self, states: list[ParameterState], updates: Tensors, step_size: float) -> None:
        """Write step_size·u into `last_step`."""
        self.direction.record_step(states, updates, step_size)
        last = [state["last_step"] for state in states]
        if step_size == 0:
            torch._foreach_zero_(last)
        else:
            torch._foreach_copy_(last, updates)
            torch._foreach_mul_(last, step_size)

    def updates_along_search(self, group: Mapping[str, Any]) -> bool:
        """As `direction` does."""
        return self.direction.updates_along_search(group)

    def probes(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        """Those of `direction`, and `last_step`."""
        return {**self.direction.probes(states, group), "last_step": [state["last_step"] for state in states]}

    def past_gradients(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        """Those of `direction`."""
        return self.direction.past_gradients(states, group)

    def kernel(
        self,
        parameters: Tensors,
        grads: Tensors,
        states: list[ParameterState],
        group: Mapping[str, Any],
        workspace: Workspace,
    ) -> Kernel | None:
        """That of `direction`, if it has one; the last step is then the way that the parameters went."""
        if not inherits(self, KeepLastStep, *_KERNEL):
            return None
        inner = self.direction.kernel(parameters, grads, states, group, workspace)
        return None if inner is None else _LastStepKernel(inner, [state["last_step"] for state in states])


_KERNEL = ("moments", "search_direction", "update", "record_step", "probes", "updates_along_search")
"""What the kernel stands for."""


class _LastStepKernel:
    """Another kernel, which writes down how far the parameters move."""

    def __init__(self, inner: Kernel, last: Tensors) -> None:
        self._inner = inner
        self._last = last
        self.stays = inner.stays
        self.sums_gradients = inner.sums_gradients

    def slopes(self, past: tuple[Tensors, ...] = ()) -> list[list[Term]]:
        return self._inner.slopes(past)

    def slopes_ahead(
        self, parameters: Tensors, start: Tensors, step_size: float, past: tuple[Tensors, ...] = ()
    ) -> list[list[Term]]:
        return self._inner.slopes_ahead(parameters, start, step_size, past)

    def keep_gradients(self, into: Tensors) -> bool:
        return self._inner.keep_gradients(into)

    def sums(self) -> list[torch.Tensor]:
        return self._inner.sums()

    def move(self, parameters: Tensors, start: Tensors, step_size: float, at: float | None) -> None:
        self._inner.move(parameters, start, step_size, at)

    def commit(self, parameters: Tensors, step_size: float, weight_decay: float) -> None:
        if step_size == 0:
            self._inner.commit(parameters, step_size, weight_decay)
            torch._foreach_zero_(self._last)
            return
        torch._foreach_copy_(self._last, parameters)
        if weight_decay != 0:
            torch._foreach_mul_(self._last, 1 - step_size * weight_decay)
        self._inner.commit(parameters, step_size, weight_decay)
        torch._foreach_sub_(self._last, parameters)

    def commit_moments(self, parameters: Tensors, start: Tensors, step_size: float) -> None:
        self._inner.commit_moments(parameters, start, step_size)
        torch._foreach_copy_(self._last, start)
        torch._foreach_sub_(self._last, parameters)
