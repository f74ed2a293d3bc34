"""Backtracking searches, and the fixed step size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from armijo.errors import ConfigurationError
from armijo.families import is_number
from armijo.search.base import CriterionSearch, Search, check_max_trials, failed_outcome
from armijo.search.memory import Memory
from armijo.search.values import Evaluate, Line, Outcome, Status

__all__ = ["Backtracking", "FixedStep", "PaperBacktracking"]


@dataclass(frozen=True)
class FixedStep(Search):
    """The trivial search: always the same step size, nothing evaluated.

    With it a direction is the ordinary optimizer: `LineSearch(params, direction=AdamDirection(),
    search=FixedStep(1e-3))` takes the steps of `torch.optim.Adam(params, lr=1e-3)`. A group with a smaller
    `max_step_size` moves with that.

    Args:
        step_size: η > 0, finite.

    Raises:
        ConfigurationError: if η is not a positive number.
    """

    step_size: float

    def __post_init__(self) -> None:
        if not (is_number(self.step_size) and 0 < self.step_size < math.inf):
            raise ConfigurationError(f"The fixed step size is {self.step_size!r}; it must be a positive number.")

    def initial_step_size(self) -> float:
        """η."""
        return self.step_size

    def first_step_size(self, step_size: float, line: Line, memory: Memory) -> float:
        """η, whatever the component used before."""
        return self.step_size

    def search(self, line: Line, first: float, evaluate: Evaluate, memory: Memory) -> Outcome:
        """η, unsearched."""
        return Outcome(first, Status.UNSEARCHED)

    def without_search(self, line: Line, first: float) -> Outcome:
        """η, unsearched, uphill too: so does the torch optimizer."""
        return Outcome(first, Status.UNSEARCHED)


@dataclass(frozen=True)
class _Contraction(CriterionSearch):
    shrink: float = 0.9
    max_trials: int = 25

    def __post_init__(self) -> None:
        CriterionSearch.__post_init__(self)
        if not (is_number(self.shrink) and 0 < self.shrink < 1):
            raise ConfigurationError(
                f"shrink is {self.shrink!r}; a contraction needs 0 < shrink < 1, for instance 0.9."
            )
        check_max_trials(self.max_trials)


@dataclass(frozen=True)
class Backtracking(_Contraction):
    """Backtracking that takes few trials from any first step size, and moves nothing if it finds nothing.

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
        criterion: which trials suffice.
        guess: where each search starts.
        shrink: the first contraction, 0 < shrink < 1.
        max_trials: the most trials before giving up, ≥ 1. 25 trials cover 13 decades at shrink = 0.9.
        least_slope: see `CriterionSearch`.

    Raises:
        ConfigurationError: if an argument is out of its range, or the criterion is two-sided.

    Examples:
        >>> from armijo.search.criteria import Armijo
        >>> tried = []
        >>> def quadratic(step_size):
        ...     tried.append(step_size)
        ...     return 0.5 * (1 - 1000 * step_size) ** 2
        >>> outcome = Backtracking(Armijo(0.1)).search(Line(0.5, 1000.0), 0.1, quadratic, {})
        >>> outcome.status, len(tried), outcome.step_size < 2 * 0.9 / 1000
        (<Status.ACCEPTED: 'accepted'>, 12, True)
    """

    def find(
        self,
        line: Line,
        first: float,
        evaluate: Evaluate,
        violation: Callable[[float, float], float],
        memory: Memory,
    ) -> Outcome:
        """Contract until the criterion is met, then tighten a wide bracket."""
        step_size, rejected, trials = first, first, 0
        while True:
            loss = evaluate(step_size)
            trials += 1
            if violation(step_size, loss) == 0:
                break
            rejected, step_size = step_size, step_size * self.shrink**trials
            if trials == self.max_trials or step_size * line.slope < line.resolution:
                return failed_outcome(line, evaluate)
        tightest = self.shrink**3
        while step_size < tightest * rejected and trials < self.max_trials:
            middle = math.sqrt(step_size * rejected)
            middle_loss = evaluate(middle)
            trials += 1
            if violation(middle, middle_loss) == 0:
                step_size, loss = middle, middle_loss
            else:
                rejected = middle
        return Outcome(step_size, Status.ACCEPTED, loss)


@dataclass(frozen=True)
class PaperBacktracking(_Contraction):
    """The paper's backtracking: η ← shrink·η after each failure.

    After the `max_trials`-th failure the step is taken with first·shrink^max_trials, itself untried. The step size
    grows at every step, also where the slope vanishes; there the step is taken without a search.

    Args:
        criterion: which trials suffice.
        guess: where each search starts.
        shrink: the contraction, 0 < shrink < 1.
        max_trials: the most trials, ≥ 1.
        least_slope: a line with a smaller slope S, or with a loss of exactly 0, is not searched; its grown step size is
            used.

    Raises:
        ConfigurationError: if an argument is out of its range, or the criterion is two-sided.

    Source:
        arXiv 2403.18506, section III; the constants of its released code.
    """

    max_trials: int = 100

    def first_step_size(self, step_size: float, line: Line, memory: Memory) -> float:
        """The guess's, whatever the slope."""
        return self.guess.next(step_size, line, memory)

    def search(self, line: Line, first: float, evaluate: Evaluate, memory: Memory) -> Outcome:
        """Search along a line; where there is nothing to search for, use the first step size."""
        outcome = super().search(line, first, evaluate, memory)
        return replace(outcome, step_size=first) if outcome.status is Status.SKIPPED else outcome

    def without_search(self, line: Line, first: float) -> Outcome:
        """`first`, whatever the line."""
        return Outcome(first, Status.UNSEARCHED)

    def find(
        self,
        line: Line,
        first: float,
        evaluate: Evaluate,
        violation: Callable[[float, float], float],
        memory: Memory,
    ) -> Outcome:
        """Contract by the same factor until the criterion is met or the trials are used up."""
        step_size = first
        for _ in range(self.max_trials):
            loss = evaluate(step_size)
            if violation(step_size, loss) == 0:
                return Outcome(step_size, Status.ACCEPTED, loss)
            step_size *= self.shrink
        return Outcome(step_size, Status.EXHAUSTED)
