"""A search that lengthens and shortens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from armijo.errors import ConfigurationError
from armijo.families import is_number
from armijo.search.base import CriterionSearch, check_max_trials, failed_outcome
from armijo.search.criteria import Criterion, Goldstein
from armijo.search.memory import Memory
from armijo.search.values import Evaluate, Line, Outcome, Status

__all__ = ["Bracketing"]


@dataclass(frozen=True)
class Bracketing(CriterionSearch):
    """Lengthen or shorten the step until the criterion is met, then bisect between too short and too long.

    While all trials are too short the step size is multiplied by `factor`, while all are too long it is divided by
    it; once there is one of each, their geometric mean is tried next. A step that is too short at the longest step
    size allowed (`Line.longest`) is accepted.

    A first step that promises less than the loss can show (η·S < resolution) is lengthened to one that promises
    `factor` times that: shorter ones cannot be judged.

    Args:
        criterion: which trials suffice, one-sided or two-sided.
        guess: where each search starts.
        factor: > 1.
        max_trials: the most trials before giving up, ≥ 1.
        least_slope: see `CriterionSearch`.

    Raises:
        ConfigurationError: if an argument is out of its range.

    Examples:
        >>> quadratic = lambda step_size: 0.5 * (1 - 1000 * step_size) ** 2
        >>> outcome = Bracketing(Goldstein(0.25)).search(Line(0.5, 1000.0), 1e-6, quadratic, {})
        >>> 0.5 / 1000 <= outcome.step_size <= 1.5 / 1000
        True
    """

    lengthens: ClassVar[bool] = True

    criterion: Criterion = Goldstein()
    factor: float = 2.0
    max_trials: int = 25

    def __post_init__(self) -> None:
        CriterionSearch.__post_init__(self)
        if not (is_number(self.factor) and 1 < self.factor < math.inf):
            raise ConfigurationError(f"factor is {self.factor!r}; lengthening needs a factor above 1, for instance 2.")
        check_max_trials(self.max_trials)

    def find(
        self,
        line: Line,
        first: float,
        evaluate: Evaluate,
        violation: Callable[[float, float], float],
        memory: Memory,
    ) -> Outcome:
        """Bracket, then bisect on the logarithm."""
        shortest = line.resolution / line.slope
        step_size = first if first >= shortest else min(self.factor * shortest, line.longest)
        short, long = 0.0, math.inf
        for _ in range(self.max_trials):
            loss = evaluate(step_size)
            excess = violation(step_size, loss)
            if excess == 0 or (excess < 0 and step_size == line.longest):
                return Outcome(step_size, Status.ACCEPTED, loss)
            if excess < 0:
                short = step_size
            else:
                long = step_size
            if long == math.inf:
                step_size = min(short * self.factor, line.longest)
            elif short == 0.0:
                step_size = long / self.factor
            else:
                step_size = math.sqrt(short * long)
            if step_size < shortest:
                break
        return failed_outcome(line, evaluate)
