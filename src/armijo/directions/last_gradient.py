"""A direction that keeps its last gradient for the next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from armijo.directions.base import ParameterState, Tensors, Workspace
from armijo.directions.kernel import Kernel
from armijo.directions.wrapped import KERNEL_METHODS, WrappedDirection, WrappedKernel
from armijo.families import inherits

__all__ = ["KeepLastGradient"]


@dataclass(frozen=True)
class KeepLastGradient(WrappedDirection):
    """Another direction, which keeps the gradient h = ∇f_k(w_k) of its last step.

    `line.derivatives["last_gradient"]` is ⟨h, d⟩ then: positive where the new direction would have lowered the loss of
    the last batch too. It costs no forward pass, and one scalar product.

    Before the first step, and where a component or a parameter without a gradient stayed, h is zero. Memory: one tensor
    of its shape for each parameter, as much as a first moment, of which Adam's kernel writes it in the place.

    Args:
        direction: the direction to follow.

    Raises:
        ConfigurationError: if that is no direction.
    """

    moment: ClassVar[str] = "last_gradient"

    def update(
        self, grads: Tensors, states: list[ParameterState], scratch: Tensors, group: Mapping[str, Any]
    ) -> Tensors:
        """That of `direction`; the gradients are kept."""
        updates = self.direction.update(grads, states, scratch, group)
        torch._foreach_copy_(self._last_of(states), grads)
        return updates

    def record_step(self, states: list[ParameterState], updates: Tensors, step_size: float) -> None:
        """Forget the gradients of a step that was not taken."""
        self.direction.record_step(states, updates, step_size)
        if step_size == 0:
            torch._foreach_zero_(self._last_of(states))

    def past_gradients(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        """Those of `direction`, and `last_gradient`."""
        return {**self.direction.past_gradients(states, group), self.moment: self._last_of(states)}

    def kernel(
        self,
        parameters: Tensors,
        grads: Tensors,
        states: list[ParameterState],
        group: Mapping[str, Any],
        workspace: Workspace,
    ) -> Kernel | None:
        """That of `direction`, if it has one."""
        if not inherits(self, KeepLastGradient, *KERNEL_METHODS):
            return None
        inner = self.direction.kernel(parameters, grads, states, group, workspace)
        return None if inner is None else _LastGradientKernel(inner, grads, self._last_of(states))


class _LastGradientKernel(WrappedKernel):
    """Another kernel, which keeps the gradients."""

    def __init__(self, inner: Kernel, grads: Tensors, last: Tensors) -> None:
        super().__init__(inner, last)
        self._grads = grads
        self._kept = inner.keep_gradients(last)

    def keep_gradients(self, into: Tensors) -> bool:
        return False

    def commit(self, parameters: Tensors, step_size: float, weight_decay: float) -> None:
        self._inner.commit(parameters, step_size, weight_decay)
        if step_size == 0:
            torch._foreach_zero_(self._last)
        elif not self._kept:
            torch._foreach_copy_(self._last, self._grads)

    def commit_moments(self, parameters: Tensors, start: Tensors, step_size: float) -> None:
        self._inner.commit_moments(parameters, start, step_size)
        if not self._kept:
            torch._foreach_copy_(self._last, self._grads)
