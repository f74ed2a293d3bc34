"""Mergings: which components become one."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from armijo.errors import ConfigurationError
from armijo.families import is_number
from armijo.search.memory import Memory

__all__ = ["Merge", "MergeNeighbours", "MergeSmallest", "Merging", "NeverMerge"]


@dataclass(frozen=True, slots=True)
class Merge:
    """Two places that become one.

    Args:
        kept: the place that stays, with its label.
        absorbed: the place that disappears, `absorbed` > `kept`; later places move up by one.
        step_size: η of the merged component, > 0.
    """

    kept: int
    absorbed: int
    step_size: float


class Merging(Protocol):
    """Looks at all step sizes after a step. Derive from this class to write one; only `propose` has to be written."""

    def defaults(self) -> Memory:
        """The numbers that the merging remembers from step to step, with their first values; none by default."""
        return {}

    @abstractmethod
    def propose(self, step_sizes: Sequence[float], memory: Memory) -> Merge | None:
        """Propose at most one merge. Called after each step, except where the loss is not finite.

        Args:
            step_sizes: η of every component, by place.
            memory: the values of `defaults()`; may be written to.
        """
        ...


@dataclass(frozen=True)
class NeverMerge(Merging):
    """The components stay as they are."""

    def propose(self, step_sizes: Sequence[float], memory: Memory) -> Merge | None:
        """None."""
        return None


Rule = Literal["mean", "geometric_mean", "minimum"]
"""What becomes of two step sizes a and b: (a + b)/2, √(a·b) or min(a, b)."""


@dataclass(frozen=True)
class _BelowThreshold(Merging):
    below: float = 1e-12
    rule: Rule = "mean"

    def __post_init__(self) -> None:
        if not (is_number(self.below) and self.below >= 0):
            raise ConfigurationError(f"The merging threshold is {self.below!r}; it must be 0 or more.")
        if self.rule not in get_args(Rule):
            raise ConfigurationError(
                f"The merging rule {self.rule!r} does not exist; choose one of {', '.join(get_args(Rule))}."
            )


@dataclass(frozen=True)
class MergeSmallest(_BelowThreshold):
    """The two components with the smallest step sizes become one once the smallest lies below λ.

    Ties go to the earlier place; never fewer than two components remain.

    Args:
        below: λ ≥ 0.
        rule: what the merged η is: their "mean", "geometric_mean" or "minimum".

    Raises:
        ConfigurationError: if λ is negative, or there is no such rule.

    Source:
        arXiv 2403.18506, section III (combining components), with the mean.

    Examples:
        >>> MergeSmallest(below=0.1).propose([0.5, 0.02, 0.3, 0.04], {})
        Merge(kept=1, absorbed=3, step_size=0.03)
    """

    def propose(self, step_sizes: Sequence[float], memory: Memory) -> Merge | None:
        """The two smallest, if the smallest lies below λ and there are more than two."""
        if len(step_sizes) <= 2:
            return None
        smallest, second = sorted(range(len(step_sizes)), key=lambda place: step_sizes[place])[:2]
        if not step_sizes[smallest] < self.below:
            return None
        return _merged(smallest, second, step_sizes, self.rule)


@dataclass(frozen=True)
class MergeNeighbours(_BelowThreshold):
    """The component with the smallest step size becomes one with a neighbour once it lies below λ.

    The neighbour is the place before or after it, whichever has the smaller step size (the earlier one of equals):
    layers that follow each other stay together. Never fewer than two components remain.

    Args:
        below: λ ≥ 0.
        rule: what the merged η is: their "mean", "geometric_mean" or "minimum".

    Raises:
        ConfigurationError: if λ is negative, or there is no such rule.

    Examples:
        >>> MergeNeighbours(below=0.1).propose([0.5, 0.02, 0.3, 0.04], {})
        Merge(kept=1, absorbed=2, step_size=0.16)
    """

    def propose(self, step_sizes: Sequence[float], memory: Memory) -> Merge | None:
        """The smallest and its neighbour, if the smallest lies below λ and there are more than two."""
        if len(step_sizes) <= 2:
            return None
        smallest = min(range(len(step_sizes)), key=lambda place: step_sizes[place])
        if not step_sizes[smallest] < self.below:
            return None
        beside = [place for place in (smallest - 1, smallest + 1) if 0 <= place < len(step_sizes)]
        return _merged(smallest, min(beside, key=lambda place: step_sizes[place]), step_sizes, self.rule)


def _merged(place: int, other: int, step_sizes: Sequence[float], rule: Rule) -> Merge:
    low, high = sorted((step_sizes[place], step_sizes[other]))
    if rule == "minimum":
        merged = low
    elif rule == "mean":
        merged = (low + high) / 2
    else:
        # Of two roots, because the product of two small step sizes may be less than a float can hold.
        merged = min(max(math.sqrt(low) * math.sqrt(high), low), high)
    return Merge(min(place, other), max(place, other), merged)
