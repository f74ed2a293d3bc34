"""A direction that keeps its last gradient for the next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from armijo.directions.base import Direction, ParameterState, Tensors, Workspace
from armijo.directions.kernel import Kernel, Term
from armijo.errors import ConfigurationError
from armijo.families import check_part, inherits

__all__ = ["KeepLastGradient"]


@dataclass(frozen=True)
class KeepLastGradient(Direction):
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
        """Those of `direction`, and `last_gradient`."""
        moments = self.direction.moments(parameter)
        if "last_gradient" in moments:
            raise ConfigurationError(f"{self.direction!r} has a moment last_gradient of its own; rename it.")
        return {**moments, "last_gradient": torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    def search_direction(self, grads: Tensors, states: list[ParameterState], group: Mapping[str, Any]) -> Tensors:
        """That of `direction`."""
        return self.direction.search_direction(grads, states, group)

    def update(
        self, grads: Tensors, states: list[ParameterState], scratch: Tensors, group: Mapping[str, Any]
    ) -> Tensors:
        """That of `direction`; the gradients are kept."""
        updates = self.direction.update(grads, states, scratch, group)
        torch._foreach_copy_([state["last_gradient"] for state in states], grads)
        return updates

    def record_step(self, states: list[ParameterState], updates: Tensors, step_size: float) -> None:
        """Forget the gradients of a step that was not taken."""
        self.direction.record_step(states, updates, step_size)
        if step_size == 0:
            torch._foreach_zero_([state["last_gradient"] for state in states])

    def updates_along_search(self, group: Mapping[str, Any]) -> bool:
        """As `direction` does."""
        return self.direction.updates_along_search(group)

    def probes(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        """Those of `direction`."""
        return self.direction.probes(states, group)

    def past_gradients(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        """Those of `direction`, and `last_gradient`."""
        last = [state["last_gradient"] for state in states]
        return {**self.direction.past_gradients(states, group), "last_gradient": last}

    def kernel(
        self,
        parameters: Tensors,
        grads: Tensors,
        states: list[ParameterState],
        group: Mapping[str, Any],
        workspace: Workspace,
    ) -> Kernel | None:
        """That of `direction`, if it has one."""
        if not inherits(self, KeepLastGradient, *_KERNEL):
            return None
        inner = self.direction.kernel(parameters, grads, states, group, workspace)
        last = [state["last_gradient"] for state in states]
        return None if inner is None else _LastGradientKernel(inner, grads, last)


_KERNEL = ("moments", "search_direction", "update", "record_step", "probes", "updates_along_search")
"""What the kernel stands for."""


class _LastGradientKernel:
    """Another kernel, which keeps the gradients."""

    def __init__(self, inner: Kernel, grads: Tensors, last: Tensors) -> None:
        self._inner = inner
        self._grads = grads
        self._last = last
        self._kept = inner.keep_gradients(last)
        self.stays = inner.stays
        self.sums_gradients = inner.sums_gradients

    def slopes(self, past: tuple[Tensors, ...] = ()) -> list[list[Term]]:
        return self._inner.slopes(past)

    def slopes_ahead(
        self, parameters: Tensors, start: Tensors, step_size: float, past: tuple[Tensors, ...] = ()
    ) -> list[list[Term]]:
        return self._inner.slopes_ahead(parameters, start, step_size, past)

    def keep_gradients(self, into: Tensors) -> bool:
        return False

    def sums(self) -> list[torch.Tensor]:
        return self._inner.sums()

    def move(self, parameters: Tensors, start: Tensors, step_size: float, at: float | None) -> None:
        self._inner.move(parameters, start, step_size, at)

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
