"""What directions have in common that follow another one and keep a vector of each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from armijo.directions.base import Direction, ParameterState, Tensors
from armijo.directions.kernel import Kernel, Term
from armijo.errors import ConfigurationError
from armijo.families import check_part

__all__ = ["KERNEL_METHODS", "WrappedDirection", "WrappedKernel"]

KERNEL_METHODS = ("moments", "search_direction", "update", "record_step", "probes", "updates_along_search")
"""What a kernel stands for: a subclass that changes one of them cannot use it."""


@dataclass(frozen=True)
class WrappedDirection(Direction):
    """Another direction, and one more moment.

    Args:
        direction: the direction to follow.

    Raises:
        ConfigurationError: if that is no direction.
    """

    moment: ClassVar[str]
    """The name of the moment, of the parameter's shape, in which a vector of the last step is kept."""

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
        """Those of `direction`, and one of the parameter's shape, of zeros."""
        moments = self.direction.moments(parameter)
        if self.moment in moments:
            raise ConfigurationError(f"{self.direction!r} has a moment {self.moment} of its own; rename it.")
        return {**moments, self.moment: torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    def search_direction(self, grads: Tensors, states: list[ParameterState], group: Mapping[str, Any]) -> Tensors:
        """That of `direction`."""
        return self.direction.search_direction(grads, states, group)

    def update(
        self, grads: Tensors, states: list[ParameterState], scratch: Tensors, group: Mapping[str, Any]
    ) -> Tensors:
        """That of `direction`."""
        return self.direction.update(grads, states, scratch, group)

    def updates_along_search(self, group: Mapping[str, Any]) -> bool:
        """As `direction` does."""
        return self.direction.updates_along_search(group)

    def probes(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        """Those of `direction`."""
        return self.direction.probes(states, group)

    def past_gradients(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        """Those of `direction`."""
        return self.direction.past_gradients(states, group)

    def _last_of(self, states: list[ParameterState]) -> Tensors:
        return [state[self.moment] for state in states]


class WrappedKernel:
    """Another kernel; a subclass keeps something of each commit.

    Args:
        inner: the kernel.
        last: what is kept, in the parameters' shapes.
    """

    def __init__(self, inner: Kernel, last: Tensors) -> None:
        self._inner = inner
        self._last = last
        self.stays = inner.stays
        self.sums_gradients = inner.sums_gradients

    def slopes(self, past: tuple[Tensors, ...] = ()) -> list[list[Term]]:
        """The inner kernel's."""
        return self._inner.slopes(past)

    def estimates(self, past: tuple[Tensors, ...] = ()) -> list[list[Term]] | None:
        """The inner kernel's."""
        return self._inner.estimates(past)

    def slopes_ahead(
        self, parameters: Tensors, start: Tensors, step_size: float, past: tuple[Tensors, ...] = ()
    ) -> list[list[Term]]:
        """The inner kernel's."""
        return self._inner.slopes_ahead(parameters, start, step_size, past)

    def keep_gradients(self, into: Tensors) -> bool:
        """The inner kernel's."""
        return self._inner.keep_gradients(into)

    def sums(self) -> list[torch.Tensor]:
        """The inner kernel's."""
        return self._inner.sums()

    def move(self, parameters: Tensors, start: Tensors, step_size: float, at: float | None) -> None:
        """The inner kernel's."""
        self._inner.move(parameters, start, step_size, at)
