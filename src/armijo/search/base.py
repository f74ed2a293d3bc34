"""The base class of all searches, and that of searches with a criterion."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar, Protocol

from armijo.errors import ConfigurationError
from armijo.families import check_part, is_number, is_whole
from armijo.search.criteria import Armijo, Criterion
from armijo.search.guesses import Growth, Guess
from armijo.search.memory import Memory, combine_memory
from armijo.search.values import Evaluate, Line, Outcome, Status, Trial

__all__ = ["CriterionSearch", "Search"]


class Search(Protocol):
    """Finds a step size on one line. It brings its first guess, and its criterion if it has one.

    A search is given `evaluate` and never sees a model. Derive from `CriterionSearch` for a search that judges trials
    by a criterion, from this class for any other.
    """

    @property
    def every_step(self) -> bool:
        """Whether `first_step_size` is to be called at steps without a search too, for which slopes are computed then.

        False by default.
        """
        return False

    @abstractmethod
    def initial_step_size(self) -> float:
        """The step size of a component that has made no step yet, > 0."""
        ...

    def defaults(self) -> Memory:
        """The numbers to remember for each component, with their first values; none by default."""
        return {}

    @abstractmethod
    def first_step_size(self, step_size: float, line: Line, memory: Memory) -> float:
        """The step size to try first, > 0 and finite.

        Called for each component at each step where a search is due, whether the component is searched or not, and at
        every other step too with `every_step`.

        Args:
            step_size: η as the component last used it, > 0.
            line: the component's own line.
            memory: the component's values of `defaults()`; may be written to.
        """
        ...

    def expected_step_size(self, step_size: float, memory: Memory) -> float | None:
        """What `first_step_size` is going to return, where that does not depend on the line; see `Guess.expected`."""
        return None

    @abstractmethod
    def search(self, line: Line, first: float, evaluate: Evaluate, memory: Memory) -> Outcome:
        """Search along a line.

        Args:
            line: the line of a component, or of several that move together.
            first: the step size to try first, > 0.
            evaluate: evaluates one trial.
            memory: the values of `defaults()`; may be written to. Of several components it is the first one's, and
                what the search writes is written to all of them.
        """
        ...

    def without_search(self, line: Line, first: float) -> Outcome:
        """The outcome for a component that is in no block at this step.

        By default it moves with `first`, which no trial has tested, and stays where the loss does not fall along the
        line or is exactly 0.
        """
        return nothing_to_search(line) or Outcome(first, Status.UNSEARCHED)


@dataclass(frozen=True)
class CriterionSearch(ABC, Search):
    """A search that judges trials by a criterion and starts where a guess says.

    Subclasses write `find` alone; it is called only for lines that descend.

    Args:
        criterion: which trials suffice.
        guess: where each search starts.
        least_slope: where the slope S is smaller, or the loss exactly 0, nothing is searched, and the component stays
            and keeps its step size.

    Raises:
        ConfigurationError: if an argument is out of its range, or `find` can only shorten a step and the criterion may
            ask for a longer one.
    """

    lengthens: ClassVar[bool] = False
    """Whether `find` can lengthen a step, which two-sided criteria ask for."""

    criterion: Criterion = Armijo()
    guess: Guess = Growth()
    least_slope: float = field(default=1e-8, kw_only=True)

    def __post_init__(self) -> None:
        check_part("criterion", self.criterion, type(self).__name__)
        check_part("guess", self.guess, type(self).__name__)
        if not (is_number(self.least_slope) and self.least_slope >= 0):
            raise ConfigurationError(f"least_slope is {self.least_slope!r}; it must be a number of 0 or more.")
        if getattr(self.criterion, "two_sided", False) and not self.lengthens:
            raise ConfigurationError(
                f"{type(self).__name__} only shortens steps, and {self.criterion!r} may ask for a longer one. Use "
                "Bracketing(criterion=...), or set lengthens = True in a search of your own that can lengthen."
            )
        self.defaults()

    @property
    def every_step(self) -> bool:
        """As the guess wants it."""
        return bool(getattr(self.guess, "every_step", False))

    def initial_step_size(self) -> float:
        """The guess's."""
        return self.guess.initial_step_size()

    def defaults(self) -> Memory:
        """What criterion and guess remember."""
        return combine_memory(self.criterion, self.guess)

    def first_step_size(self, step_size: float, line: Line, memory: Memory) -> float:
        """The guess's, or `step_size` where the slope is below `least_slope`."""
        return step_size if line.slope < self.least_slope else self.guess.next(step_size, line, memory)

    def expected_step_size(self, step_size: float, memory: Memory) -> float | None:
        """The guess's."""
        return self.guess.expected(step_size, memory)

    def search(self, line: Line, first: float, evaluate: Evaluate, memory: Memory) -> Outcome:
        """Search along a line, unless there is nothing to search for."""
        if nothing := nothing_to_search(line, self.least_slope):
            return nothing

        def violation(step_size: float, loss: float) -> float:
            return self._checked(self.criterion.violation(line, Trial(step_size, loss), memory))

        outcome = self.find(line, first, evaluate, violation, memory)
        if not isinstance(outcome, Outcome):
            raise ConfigurationError(f"{type(self).__name__}.find returned {outcome!r}; it must return an Outcome.")
        trial = None
        if outcome.status is Status.ACCEPTED and outcome.loss is not None:
            trial = Trial(outcome.step_size, outcome.loss)
        self.criterion.remember(line, trial, memory)
        self.guess.remember(line, trial, memory)
        return outcome

    def without_search(self, line: Line, first: float) -> Outcome:
        """`first`, unsearched, where there would be something to search for."""
        return nothing_to_search(line, self.least_slope) or Outcome(first, Status.UNSEARCHED)

    def _checked(self, violation: object) -> float:
        if not isinstance(violation, Real) or isinstance(violation, bool) or math.isnan(violation):
            raise ConfigurationError(
                f"{self.criterion!r} answered {violation!r}. A violation is a number: 0 if the trial suffices, > 0 if "
                "the step is too long."
            )
        if violation < 0 and not getattr(self.criterion, "two_sided", False):
            raise ConfigurationError(
                f"{self.criterion!r} answered {violation}, which means too short. Answer max(0.0, ...), or set "
                "two_sided = True and use Bracketing."
            )
        return float(violation)

    @abstractmethod
    def find(
        self,
        line: Line,
        first: float,
        evaluate: Evaluate,
        violation: Callable[[float, float], float],
        memory: Memory,
    ) -> Outcome:
        """Find a step size that suffices.

        Args:
            line: a line with a slope of at least `least_slope`.
            first: the step size to try first, > 0.
            evaluate: evaluates one trial.
            violation: the criterion's verdict on a trial, from its step size and loss.
            memory: the values of `defaults()`; may be written to.
        """


def nothing_to_search(line: Line, least_slope: float = 0.0) -> Outcome | None:
    """The outcome, to stay, where the loss rises along the line, is exactly 0, or its slope is 0 or < `least_slope`."""
    if line.slope < 0:
        return Outcome(0.0, Status.ASCENT)
    if line.loss == 0 or line.slope == 0 or line.slope < least_slope:
        return Outcome(0.0, Status.SKIPPED)
    return None


def failed_outcome(line: Line, evaluate: Evaluate) -> Outcome:
    """The outcome of a search that found nothing: η = 0, after one more evaluation there.

    Generators and buffers are rewound for each trial, so the loss at η = 0 repeats f(w) up to the last bits of a few
    kernels (LSTM on the CPU, sums in no fixed order on a GPU). If it does not, the closure is not deterministic.
    """
    repeats = abs(evaluate(0.0) - line.loss) <= 16 * line.resolution
    return Outcome(0.0, Status.EXHAUSTED if repeats else Status.NONDETERMINISTIC)


def check_max_trials(max_trials: object) -> None:
    """Raise `ConfigurationError` unless it is an integer of 1 or more."""
    if not (is_whole(max_trials) and max_trials >= 1):  # type: ignore[operator]
        raise ConfigurationError(f"max_trials is {max_trials!r}; it must be an integer of 1 or more.")
