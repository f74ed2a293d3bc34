"""Criteria: does a trial suffice?"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from armijo.errors import ConfigurationError
from armijo.families import is_number
from armijo.search.memory import Memory
from armijo.search.values import Line, Trial

__all__ = ["Armijo", "Criterion", "Goldstein", "NonMonotoneArmijo", "SmoothedArmijo"]


class Criterion(Protocol):
    """Judges a trial by a number instead of a verdict, so that a search can tell a near miss from a step far too long.

    Derive from this class to write a criterion; only `violation` has to be written.
    """

    two_sided: ClassVar[bool] = False
    """Whether `violation` may be negative (the step is too short). Searches that only shrink refuse such criteria."""

    def defaults(self) -> Memory:
        """The numbers that the criterion remembers from step to step, with their first values; none by default."""
        return {}

    @abstractmethod
    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        """How far the trial is from sufficing, in units of the loss.

        Returns:
            0 if the trial suffices, > 0 if the step is too long, < 0 if it is too short (two-sided criteria alone).
            Not NaN: `inf` where a comparison is undefined.
        """
        ...

    def remember(self, line: Line, trial: Trial | None, memory: Memory) -> None:
        """Called once after each search; may write to `memory`.

        Args:
            line: the line that was searched.
            trial: the accepted trial, or None if the search found nothing.
            memory: the values of `defaults()`.
        """
        return


@dataclass(frozen=True)
class Armijo(Criterion):
    """The sufficient decrease condition f(w - η·d) ≤ f(w) - c·η·S.

    On a quadratic with curvature κ along d it accepts every η ≤ 2·(1-c)·S/κ; c = ½ is the line's minimum.

    Args:
        c: the share of the decrease promised by the slope that a trial must reach, 0 < c < 1.

    Raises:
        ConfigurationError: if c lies outside (0, 1).

    Source:
        L. Armijo, Minimization of functions having Lipschitz continuous first partial derivatives, 1966.

    Examples:
        >>> Armijo(c=0.5).violation(Line(loss=1.0, slope=2.0), Trial(step_size=0.5, loss=0.75), {})
        0.25
    """

    c: float = 0.1

    def __post_init__(self) -> None:
        if not (is_number(self.c) and 0 < self.c < 1):
            raise ConfigurationError(f"c is {self.c!r}; sufficient decrease needs 0 < c < 1, for instance c=0.1.")

    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        """max(0, f(w - η·d) - (f(w) - c·η·S)); NaN becomes `inf`."""
        excess = trial.loss - (line.loss - self.c * trial.step_size * line.slope)
        return math.inf if math.isnan(excess) else max(0.0, excess)


@dataclass(frozen=True)
class Goldstein(Criterion):
    """Sufficient decrease with a lower bound for the step: f - (1-c)·η·S ≤ f(w - η·d) ≤ f - c·η·S.

    On a quadratic with curvature κ along d it accepts 2·c·S/κ ≤ η ≤ 2·(1-c)·S/κ. It needs a search that can lengthen
    a step, such as `Bracketing`.

    Args:
        c: 0 < c < ½.

    Raises:
        ConfigurationError: if c lies outside (0, ½).

    Source:
        A. A. Goldstein, On steepest descent, 1965.

    Examples:
        >>> Goldstein(c=0.25).violation(Line(loss=1.0, slope=1.0), Trial(step_size=0.5, loss=0.5), {})
        -0.125
    """

    two_sided: ClassVar[bool] = True
    c: float = 0.25

    def __post_init__(self) -> None:
        if not (is_number(self.c) and 0 < self.c < 0.5):
            raise ConfigurationError(f"c is {self.c!r}; Goldstein's condition needs 0 < c < 0.5, for instance c=0.25.")

    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        """The distance to the nearer bound, > 0 above the upper and < 0 below the lower one; NaN becomes `inf`."""
        promised = trial.step_size * line.slope
        above = trial.loss - (line.loss - self.c * promised)
        below = trial.loss - (line.loss - (1 - self.c) * promised)
        if math.isnan(above) or math.isnan(below):
            return math.inf
        return max(0.0, above) + min(0.0, below)


@dataclass(frozen=True)
class SmoothedArmijo(Criterion):
    """Sufficient decrease in the mean: Δ̄ ≥ c·η·S̄, with running means of the decreases and slopes of the searches.

        Δ̄ = β·Δ̄ + (1-β)·(f(w) - f(w - η·d))        S̄ = β·S̄ + (1-β)·S

    One bad batch does not reject a step that suffices over the last 1/(1-β) batches. It may accept a trial above f(w).

    Args:
        c: the share of the promised decrease that is asked for, 0 < c < 1.
        beta: β, the share that the means keep of themselves, 0 ≤ β < 1. With 0 this is `Armijo(c)`.

    Raises:
        ConfigurationError: if an argument is out of its range.

    Source:
        arXiv 2407.20650 (SaLSA).

    Examples:
        >>> criterion = SmoothedArmijo(c=0.5, beta=0.5)
        >>> memory = criterion.defaults()
        >>> criterion.remember(Line(loss=1.0, slope=1.0), Trial(1.0, 0.0), memory)
        >>> criterion.violation(Line(loss=1.0, slope=1.0), Trial(1.0, 0.6), memory)
        0.0
        >>> Armijo(c=0.5).violation(Line(loss=1.0, slope=1.0), Trial(1.0, 0.6), memory) > 0
        True
    """

    c: float = 0.5
    beta: float = 0.9

    def __post_init__(self) -> None:
        Armijo(self.c)
        if not (is_number(self.beta) and 0 <= self.beta < 1):
            raise ConfigurationError(f"beta is {self.beta!r}; a running mean needs 0 ≤ beta < 1, for instance 0.9.")

    def defaults(self) -> Memory:
        """Δ̄ and S̄."""
        return {"mean_decrease": 0.0, "mean_slope": 0.0}

    def _means(self, line: Line, trial: Trial, memory: Memory) -> tuple[float, float]:
        decrease = self.beta * memory["mean_decrease"] + (1 - self.beta) * (line.loss - trial.loss)
        return decrease, self.beta * memory["mean_slope"] + (1 - self.beta) * line.slope

    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        """max(0, c·η·S̄ - Δ̄); NaN and a loss that is not finite become `inf`."""
        decrease, slope = self._means(line, trial, memory)
        excess = self.c * trial.step_size * slope - decrease
        return max(0.0, excess) if math.isfinite(excess) else math.inf

    def remember(self, line: Line, trial: Trial | None, memory: Memory) -> None:
        """Take the accepted trial into the means."""
        if trial is not None:
            memory["mean_decrease"], memory["mean_slope"] = self._means(line, trial, memory)


@dataclass(frozen=True)
class NonMonotoneArmijo(Criterion):
    """Sufficient decrease below a mean of the last losses: f(w - η·d) ≤ max(C, f(w)) - c·η·S.

    C is the mean of the losses at the starts of the searches, that of n searches ago weighted by ξⁿ: with ξ = 1 the
    plain mean, with ξ = 0 this is `Armijo(c)`.

    Args:
        c: the share of the promised decrease that is asked for, 0 < c < 1.
        xi: ξ, 0 ≤ ξ ≤ 1.

    Raises:
        ConfigurationError: if an argument is out of its range.

    Source:
        H. Zhang and W. W. Hager, A nonmonotone line search technique, 2004; arXiv 2306.12747 (PoNoS).

    Examples:
        >>> criterion = NonMonotoneArmijo(c=0.5)
        >>> memory = criterion.defaults()
        >>> criterion.remember(Line(loss=3.0, slope=1.0), None, memory)
        >>> criterion.violation(Line(loss=1.0, slope=1.0), Trial(0.5, 1.7), memory)
        0.0
    """

    c: float = 0.5
    xi: float = 1.0

    def __post_init__(self) -> None:
        Armijo(self.c)
        if not (is_number(self.xi) and 0 <= self.xi <= 1):
            raise ConfigurationError(f"xi is {self.xi!r}; the weight of the losses before lies in [0, 1].")

    def defaults(self) -> Memory:
        """The mean of the losses before, and the sum of their weights."""
        return {"mean_loss": 0.0, "mean_weight": 0.0}

    def _mean(self, line: Line, memory: Memory) -> tuple[float, float]:
        before = self.xi * memory["mean_weight"]
        weight = before + 1
        return (before * memory["mean_loss"] + line.loss) / weight, weight

    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        """max(0, f(w - η·d) - (max(C, f(w)) - c·η·S)); NaN becomes `inf`."""
        reference = max(self._mean(line, memory)[0], line.loss)
        excess = trial.loss - (reference - self.c * trial.step_size * line.slope)
        return math.inf if math.isnan(excess) else max(0.0, excess)

    def remember(self, line: Line, trial: Trial | None, memory: Memory) -> None:
        """Take f(w) into the mean."""
        memory["mean_loss"], memory["mean_weight"] = self._mean(line, memory)
