"""A direction that keeps its last step for the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from armijo.directions.base import ParameterState, Tensors, Workspace
from armijo.directions.kernel import Kernel
from armijo.directions.wrapped import KERNEL_METHODS, WrappedDirection, WrappedKernel
from armijo.families import inherits

__all__ = ["KeepLastStep"]


@dataclass(frozen=True)
class KeepLastStep(WrappedDirection):
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

    moment: ClassVar[str] = "last_step"

    def record_step(self, states: list[ParameterState], updates: Tensors, step_size: float) -> None:
        """Write step_size·u into `last_step`."""
        self.direction.record_step(states, updates, step_size)
        last = self._last_of(states)
        if step_size == 0:
            torch._foreach_zero_(last)
        else:
            torch._foreach_copy_(last, updates)
            torch._foreach_mul_(last, step_size)

    def probes(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        """Those of `direction`, and `last_step`."""
        return {**self.direction.probes(states, group), self.moment: self._last_of(states)}

    def kernel(
        self,
        parameters: Tensors,
        grads: Tensors,
        states: list[ParameterState],
        group: Mapping[str, Any],
        workspace: Workspace,
    ) -> Kernel | None:
        """That of `direction`, if it has one; the last step is then the way that the parameters went."""
        if not inherits(self, KeepLastStep, *KERNEL_METHODS):
            return None
        inner = self.direction.kernel(parameters, grads, states, group, workspace)
        return None if inner is None else _LastStepKernel(inner, self._last_of(states))


class _LastStepKernel(WrappedKernel):
    """Another kernel, which writes down how far the parameters move."""

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
