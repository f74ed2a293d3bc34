"""A direction that keeps its last update for the next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from armijo.directions.base import Direction, ParameterState, Tensors

__all__ = ["KeepLastUpdate"]


@dataclass(frozen=True)
class KeepLastUpdate(Direction):
    """Another direction, which keeps the update u_k of the step before as the probe `"last_update"`.

    Parts that look back need it:

    - `line.derivatives["last_update"]` is ⟨∇f_{k+1}(w_{k+1}), u_k⟩: how much further along the last update the loss
      of the new batch still falls. It costs no forward pass.
    - `evaluate(-η_k, along="last_update")` is f_{k+1}(w_k), the loss of the new batch at the point before the last
      step (where `lr` is 1 and there is no weight decay). It costs one forward pass without gradients.

    Before the first step the probe is zero. Memory: one tensor of its shape for each parameter.

    Args:
        direction: the direction to follow.
    """

    direction: Direction

    def defaults(self) -> dict[str, Any]:
        """Those of `direction`."""
        return self.direction.defaults()

    def validate(self, group: Mapping[str, Any]) -> None:
        """Check as `direction` does."""
        self.direction.validate(group)

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those of `direction`, and `last_update`."""
        last = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return {**self.direction.moments(parameter), "last_update": last}

    def search_direction(self, grads: Tensors, states: list[ParameterState], group: Mapping[str, Any]) -> Tensors:
        """That of `direction`."""
        return self.direction.search_direction(grads, states, group)

    def update(
        self, grads: Tensors, states: list[ParameterState], scratch: Tensors, group: Mapping[str, Any]
    ) -> Tensors:
        """That of `direction`, copied into `last_update`."""
        updates = self.direction.update(grads, states, scratch, group)
        torch._foreach_copy_([state["last_update"] for state in states], updates)
        return updates

    def probes(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        """Those of `direction`, and `last_update`."""
        return {**self.direction.probes(states, group), "last_update": [state["last_update"] for state in states]}
