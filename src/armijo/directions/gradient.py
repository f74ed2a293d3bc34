"""Steepest descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from armijo.directions.base import Direction, ParameterState, Tensors
from armijo.families import inherits

__all__ = ["GradientDirection"]


@dataclass(frozen=True)
class GradientDirection(Direction):
    """d = u = g, the gradient: the direction of SGD, with slope S = ‖g‖². It has no moments.

    Source:
        arXiv 1905.09997; arXiv 2403.18506 (SGDSLS).
    """

    def search_direction(self, grads: Tensors, states: list[ParameterState], group: Mapping[str, Any]) -> Tensors:
        """The gradients themselves."""
        return grads

    def update(
        self, grads: Tensors, states: list[ParameterState], scratch: Tensors, group: Mapping[str, Any]
    ) -> Tensors:
        """The gradients themselves."""
        return grads

    def updates_along_search(self, group: Mapping[str, Any]) -> bool:
        """Always, unless a subclass has changed one of them."""
        return inherits(self, GradientDirection, "search_direction", "update")
