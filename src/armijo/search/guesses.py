"""Guesses: where the next search starts."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

from armijo.errors import ConfigurationError
from armijo.families import is_number
from armijo.search.memory import Memory
from armijo.search.values import Line, Trial

__all__ = ["Growth", "Guess"]


class Guess(Protocol):
    """From the last step size of a component to the one that its next search tries first.

    Derive from this class to write a guess; only `initial_step_size` and `next` have to be written.
    """

    @abstractmethod
    def initial_step_size(self) -> float:
        """The step size of a component that has made no step yet, > 0."""
        ...

    def defaults(self) -> Memory:
        """The numbers that the guess remembers for each component, with their first values; none by default."""
        return {}

    @abstractmethod
    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        """The first step size to try, > 0 and finite.

        Called for each component at each step, searched or not, except where the loss is not finite or the slope is
        below the search's `least_slope`. (`PaperBacktracking` calls it there too.)

        Args:
            step_size: η as the component last used it, > 0.
            line: the component's own line.
            memory: the values of `defaults()`; may be written to.
        """
        ...

    def expected(self, step_size: float, memory: Memory) -> float | None:
        """What `next` is going to return, where that does not depend on the line; None by default.

        It only saves time: the parameters are moved there while the slope is computed. If `next` returns something
        else, they are moved again.

        Args:
            step_size: η as the component last used it, > 0.
            memory: the values of `defaults()`; not to be changed.
        """
        return None

    def remember(self, line: Line, trial: Trial | None, memory: Memory) -> None:
        """Called once after each search; see `Criterion.remember`."""
        return


@dataclass(frozen=True)
class Growth(Guess):
    """η ← η·factor, so that a step size can recover from a hard batch.

    Args:
        initial: the first step size, > 0 and finite.
        factor: growth per step, ≥ 1. 2^(1/500) doubles in 500 steps.

    Raises:
        ConfigurationError: if an argument is out of its range.

    Source:
        arXiv 1905.09997 (reset option 2), with the constant of arXiv 2403.18506.

    Examples:
        >>> Growth(factor=2.0).next(0.25, Line(loss=1.0, slope=1.0), {})
        0.5
    """

    initial: float = 0.1
    factor: float = 2 ** (1 / 500)

    def __post_init__(self) -> None:
        if not (is_number(self.initial) and 0 < self.initial < math.inf):
            raise ConfigurationError(
                f"The initial step size is {self.initial!r}; it must be a positive number, for instance 0.1."
            )
        if not (is_number(self.factor) and 1 <= self.factor < math.inf):
            raise ConfigurationError(f"The growth factor is {self.factor!r}; it must be 1 or more.")

    def initial_step_size(self) -> float:
        """`initial`."""
        return self.initial

    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        """η·factor."""
        return step_size * self.factor

    def expected(self, step_size: float, memory: Memory) -> float | None:
        """η·factor, unless a subclass has changed `next`."""
        return step_size * self.factor if type(self).next is Growth.next else None
