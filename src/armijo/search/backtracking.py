"""Searches: which step size to try next, and when to stop (layer L1: pure Python on floats).

A search is *given* `evaluate`; it never sees a model. What it could not find it says by a status.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from armijo.errors import ConfigurationError
from armijo.search.criteria import Criterion
from armijo.search.records import Evaluate, Line, Outcome, Status, Trial

__all__ = ["Backtracking", "FixedStep", "PaperBacktracking", "Search"]


class Search(Protocol):
    """Finds a step size on one line."""

    def search(self, line: Line, first: float, evaluate: Evaluate, criterion: Criterion) -> Outcome:
        """Search along `line`, starting at the step size `first` > 0; `evaluate` is called once for each trial."""
        ...


@dataclass(frozen=True, slots=True)
class FixedStep:
    """The trivial search: always the same step size, nothing evaluated.

    With it a direction is the ordinary optimizer: `LineSearch(params, direction=Adam(), search=FixedStep(1e-3))`
    takes the steps of `torch.optim.Adam(params, lr=1e-3)`. It is the step size of the component that brings the largest
    along; others keep their ratio to it, so leave "step_size" and "max_step_size" of the groups alone.

    Args:
        step_size: η > 0, finite.

    Raises:
        ConfigurationError: if η is not a positive number.
    """

    step_size: float

    def __post_init__(self) -> None:
        if not 0 < self.step_size < math.inf:
            raise ConfigurationError(f"The fixed step size is {self.step_size}; it must be a positive number.")

    def search(self, line: Line, first: float, evaluate: Evaluate, criterion: Criterion) -> Outcome:
        """The fixed step size, unsearched."""
        return Outcome(self.step_size, Status.UNSEARCHED)


@dataclass(frozen=True, slots=True)
class Backtracking:
    """Backtracking that is short from anywhere, and that moves nothing when it finds nothing.

    The j-th failure contracts by shrink^j, so that m failures cover a factor shrink^(m(m+1)/2): two decades take
    9 trials and four take 13, where contracting by shrink = 0.9 each time takes 44 and 88. A first failure contracts
    by shrink, exactly as plain backtracking does. When the last contraction was wider than shrink³, the accepted and
    the last rejected step size bracket the edge too loosely, and bisection (on the logarithm) tightens the bracket
    to shrink³.

    It gives up after `max_trials` failures, or as soon as the next trial would promise less than the loss can show
    (η·S < resolution): below that, rounding decides, and one lucky bit would freeze the component at a step size of
    nothing. The outcome is then η = 0: the component stays, with the step size it had before. One more evaluation at
    η = 0 tells a line without a decrease (`exhausted`) from a loss that does not repeat itself (`nondeterministic`).

    Args:
        shrink: the first contraction, 0 < shrink < 1.
        max_trials: the most trials before giving up, ≥ 1. 25 trials cover 13 decades at shrink = 0.9.
        least_slope: a line with a smaller slope S, or with a loss of exactly 0, is not searched.

    Raises:
        ConfigurationError: if an argument is out of its range.

    Examples:
        >>> from armijo.search.criteria import Armijo
        >>> quadratic = lambda step_size: 0.5 * (1 - 1000 * step_size) ** 2
        >>> outcome = Backtracking().search(Line(0.5, 1000.0), 0.1, quadratic, Armijo(0.1))
        >>> outcome.status, outcome.trials, outcome.step_size < 2 * 0.9 / 1000
        (<Status.ACCEPTED: 'accepted'>, 12, True)
    """

    shrink: float = 0.9
    max_trials: int = 25
    least_slope: float = 1e-8

    def __post_init__(self) -> None:
        _check_shrink(self.shrink, self.max_trials)

    def search(self, line: Line, first: float, evaluate: Evaluate, criterion: Criterion) -> Outcome:
        """Contract until the criterion is met, then tighten a wide bracket."""
        if _nothing_to_search(line, self.least_slope):
            return Outcome(first, Status.SKIPPED)
        step_size, rejected, trials = first, first, 0
        while True:
            loss = evaluate(step_size)
            trials += 1
            if criterion.violation(line, Trial(step_size, loss)) == 0:
                break
            rejected, step_size = step_size, step_size * self.shrink**trials
            if trials == self.max_trials or step_size * line.slope < line.resolution:
                # Masks and buffers are rewound, so the loss repeats f(w), but for the last bits of a few kernels
                # (LSTM on the CPU, sums in no fixed order on a GPU).
                repeats = abs(evaluate(0.0) - line.loss) <= 16 * line.resolution
                status = Status.EXHAUSTED if repeats else Status.NONDETERMINISTIC
                return Outcome(0.0, status, trials + 1)
        tightest = self.shrink**3
        while step_size < tightest * rejected and trials < self.max_trials:
            middle = math.sqrt(step_size * rejected)
            middle_loss = evaluate(middle)
            trials += 1
            if criterion.violation(line, Trial(middle, middle_loss)) == 0:
                step_size, loss = middle, middle_loss
            else:
                rejected = middle
        return Outcome(step_size, Status.ACCEPTED, trials, loss)


@dataclass(frozen=True, slots=True)
class PaperBacktracking:
    """The paper's backtracking: η ← shrink·η after each failure.

    After the `max_trials`-th failure the step is taken with first·shrink^max_trials, itself untried.

    Args:
        shrink: the contraction, 0 < shrink < 1.
        max_trials: the most trials, ≥ 1.
        least_slope: a line with a smaller slope S, or with a loss of exactly 0, is not searched; its step size is used.

    Raises:
        ConfigurationError: if an argument is out of its range.

    Source:
        arXiv 2403.18506, section III; the constants of its released code.
    """

    shrink: float = 0.9
    max_trials: int = 100
    least_slope: float = 1e-8

    def __post_init__(self) -> None:
        _check_shrink(self.shrink, self.max_trials)

    def search(self, line: Line, first: float, evaluate: Evaluate, criterion: Criterion) -> Outcome:
        """Contract by the same factor until the criterion is met or the trials are used up."""
        if _nothing_to_search(line, self.least_slope):
            return Outcome(first, Status.SKIPPED)
        step_size = first
        for trials in range(1, self.max_trials + 1):
            loss = evaluate(step_size)
            if criterion.violation(line, Trial(step_size, loss)) == 0:
                return Outcome(step_size, Status.ACCEPTED, trials, loss)
            step_size *= self.shrink
        return Outcome(step_size, Status.EXHAUSTED, self.max_trials)


def _nothing_to_search(line: Line, least_slope: float) -> bool:
    return line.loss == 0 or line.slope < least_slope


def _check_shrink(shrink: float, max_trials: int) -> None:
    if not 0 < shrink < 1:
        raise ConfigurationError(f"shrink is {shrink}; a contraction needs 0 < shrink < 1, for instance 0.9.")
    if max_trials < 1:
        raise ConfigurationError(f"max_trials is {max_trials}; a search needs at least one trial.")
