"""Guesses: where the next search starts."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from armijo.errors import ConfigurationError
from armijo.families import is_number
from armijo.search.memory import Memory
from armijo.search.values import Line, Trial

__all__ = ["Growth", "Guess", "Hypergradient", "Parabola", "Polyak"]

_VISIBLE_ROUNDINGS = 4096
"""Rounding errors of a number around 1 that a step may always promise: fewer could not be told from noise."""


class Guess(Protocol):
    """From the last step size of a component to the one that its next search tries first.

    Derive from this class to write a guess; only `initial_step_size` and `next` have to be written.
    """

    every_step: ClassVar[bool] = False
    """Whether `next` is to be called at steps without a search too. Slopes and derivatives may be estimates there."""

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

        Called for each component at each step where a search is due, whether the component is searched or not, and at
        every other step too with `every_step`; not where the loss is not finite or the slope is below the search's
        `least_slope`. (`PaperBacktracking` calls it there too.)

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


@dataclass(frozen=True)
class Hypergradient(Guess):
    """The next batch judges the last step, and no forward pass is needed for it: η ← η·exp(κ·γ).

    ⟨h, d⟩, the slope of the last batch's loss along the new direction, is positive where the two batches agree on where
    to go: the last step may have been too short. It is negative where it was too long, 0 in between. A trial on the
    step's own batch cannot tell, because a step fits the noise of its batch. γ compares it with the slope S that the
    last batch had along its own direction, by running means in which steps that promised much, η·S, count for more:

        A ← m·A + (1-m)·η_k·⟨h, d_{k+1}⟩        B ← m·B + (1-m)·η_k·S_k        γ = A/B        h = ∇f_k(w_k)

    Second, no step is tried that promises more than a share of what the loss can fall: η ≤ share·(f(w) - f*)/S, where
    that is more than 4096 roundings of a number around 1, which a loss near 0 has in it. It tells how long the first
    step should be, and holds back a step size that was found on other batches where this one has little left to gain.
    Of n components each may promise an n-th of that: what they promise together is what one may promise alone.

    Where there are several components, the others' moves turn a component's gradient as its own do, and γ may stay
    below 0 however short its steps are. So each goes a part of the way to the geometric mean of all: η ← η^(1-λ)·η̄^λ.
    A γ that stays below 0 then shortens a component's steps by a factor against the others, and not without end.

    It reads `line.derivatives["last_gradient"]`: `direction=KeepLastGradient(AdamDirection(betas=(0.0, 0.999)))`.

    Args:
        initial: the first step size, > 0 and finite.
        rate: κ > 0.
        limit: the largest |γ| that counts, > 0.
        mean: m, the share that the means keep of themselves, 0 ≤ m < 1.
        share: the largest share of f(w) - f* that a step may promise, > 0; inf for no bound of η. Along a parabola
            whose minimum is at f*, ½ goes a quarter of the way there and 2 the whole.
        pull: λ, 0 ≤ λ < 1. It changes nothing where there is one component.
        least_loss: f*, a lower bound of the loss, finite. Where the loss is not above it, there is no bound of η.

    Raises:
        ConfigurationError: if an argument is out of its range.

    Source:
        arXiv 1703.04782, its multiplicative rule, on the logarithm and relative to S; the bound is the step size of
        arXiv 2002.10542.

    Examples:
        >>> guess = Hypergradient(rate=0.5)
        >>> memory = {**guess.defaults(), "hypergradient_slope": 20.0}
        >>> line = Line(loss=1.0, slope=4.0, derivatives={"last_gradient": -5.0})
        >>> round(guess.next(0.1, line, memory), 4)                # γ = -5/20; 0.1·exp(0.5·(-0.25))
        0.0882
    """

    every_step: ClassVar[bool] = True
    initial: float = 0.1
    rate: float = 0.5
    limit: float = 0.5
    mean: float = 0.7
    share: float = 0.5
    pull: float = 0.05
    least_loss: float = 0.0

    def __post_init__(self) -> None:
        Growth(self.initial)
        for name, largest in (("rate", math.inf), ("limit", math.inf), ("share", None)):
            value = getattr(self, name)
            if not (is_number(value) and value > 0 and value != largest):
                raise ConfigurationError(f"{name} is {value!r}; it must be a positive number, for instance 0.5.")
        if not (is_number(self.mean) and 0 <= self.mean < 1):
            raise ConfigurationError(f"mean is {self.mean!r}; a running mean needs 0 ≤ mean < 1, for instance 0.7.")
        if not (is_number(self.pull) and 0 <= self.pull < 1):
            raise ConfigurationError(f"pull is {self.pull!r}; it must be a share of the way, 0 ≤ pull < 1.")
        if not (is_number(self.least_loss) and math.isfinite(self.least_loss)):
            raise ConfigurationError(f"least_loss is {self.least_loss!r}; it must be a number, for instance 0.")

    def initial_step_size(self) -> float:
        """`initial`."""
        return self.initial

    def defaults(self) -> Memory:
        """A, B and S_k of the last step; 0 before the first one."""
        return {"hypergradient_along": 0.0, "hypergradient_promise": 0.0, "hypergradient_slope": 0.0}

    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        """min(η^(1-λ)·η̄^λ·exp(κ·γ), share·(f(w) - f*)/(n·S))."""
        promise, memory["hypergradient_slope"] = step_size * memory["hypergradient_slope"], line.slope
        apart = math.log(step_size) - math.log(line.mean_step_size) if line.mean_step_size else 0.0
        if 0 < promise < math.inf:
            along = step_size * line.derivatives["last_gradient"]
            for name, value in (("hypergradient_along", along), ("hypergradient_promise", promise)):
                memory[name] = self.mean * memory[name] + (1 - self.mean) * value
            gamma = memory["hypergradient_along"] / memory["hypergradient_promise"]
            step_size *= math.exp(self.rate * max(-self.limit, min(gamma, self.limit)))
        step_size *= math.exp(-self.pull * apart)
        if line.loss > self.least_loss and line.slope > 0:
            # A loss near 0 is a mean of terms around 1, and shows no less than those do.
            shown = line.resolution / min(1.0, abs(line.loss)) if line.loss else 0.0
            share = self.share / line.components
            longest = max(share * (line.loss - self.least_loss), _VISIBLE_ROUNDINGS * shown) / line.slope
            return min(step_size, longest) if longest > 0 else step_size
        return step_size

    def remember(self, line: Line, trial: Trial | None, memory: Memory) -> None:
        """Where the component stays, no step is to be judged."""
        if trial is None:
            memory["hypergradient_slope"] = 0.0


@dataclass(frozen=True)
class Parabola(Guess):
    """The minimum of the parabola through the last search, averaged: η ← η^β·η*^(1-β).

    f(w), its slope and the accepted trial fix a parabola with the minimum η* = η/(2·(1 - ρ)), where ρ is the gain ratio
    (f(w) - f(w - η·d))/(η·S). Where it has none (ρ ≥ 1), or a far one, η* counts as `reach` times η.

    Args:
        initial: the first step size, > 0 and finite.
        beta: the share of the last step size, on the logarithm, 0 ≤ β < 1.
        reach: the most by which η* may differ from η, > 1.

    Raises:
        ConfigurationError: if an argument is out of its range.

    Source:
        The parabola is that of arXiv 2407.02772 (GeN), which fits it to two more forward passes.

    Examples:
        >>> guess = Parabola(beta=0.0)
        >>> memory = guess.defaults()
        >>> guess.remember(Line(loss=0.5, slope=1.0), Trial(0.5, 0.125), memory)
        >>> guess.next(0.5, Line(loss=0.5, slope=1.0), memory)
        1.0
    """

    initial: float = 0.1
    beta: float = 0.5
    reach: float = 10.0

    def __post_init__(self) -> None:
        Growth(self.initial)
        if not (is_number(self.beta) and 0 <= self.beta < 1):
            raise ConfigurationError(f"beta is {self.beta!r}; a mean needs 0 ≤ beta < 1, for instance 0.5.")
        if not (is_number(self.reach) and 1 < self.reach < math.inf):
            raise ConfigurationError(f"reach is {self.reach!r}; it must be a number above 1, for instance 10.")

    def initial_step_size(self) -> float:
        """`initial`."""
        return self.initial

    def defaults(self) -> Memory:
        """The factor from the last accepted step size to the next first one."""
        return {"parabola_factor": 1.0}

    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        """η times the factor that the last search has left, once."""
        factor, memory["parabola_factor"] = memory["parabola_factor"], 1.0
        return step_size * factor

    def expected(self, step_size: float, memory: Memory) -> float | None:
        """What `next` returns, unless a subclass has changed it."""
        return step_size * memory["parabola_factor"] if type(self).next is Parabola.next else None

    def remember(self, line: Line, trial: Trial | None, memory: Memory) -> None:
        """Fit the parabola."""
        promised = 0.0 if trial is None else trial.step_size * line.slope
        if trial is None or promised <= 0 or not math.isfinite(trial.loss):
            return
        missing = 1 - (line.loss - trial.loss) / promised
        factor = 0.5 / missing if missing > 0 else math.inf
        memory["parabola_factor"] = min(max(factor, 1 / self.reach), self.reach) ** (1 - self.beta)


@dataclass(frozen=True)
class Polyak(Guess):
    """Polyak's step size for the batch, less what the searches before have rejected: η = r·(f(w) - f*)/(c·S).

    r is the ratio of the last accepted step size to Polyak's, one contraction longer, and at most 1. It suits
    `Backtracking(NonMonotoneArmijo(), Polyak(), shrink=0.5)`.

    Args:
        c: c > 0.
        least_loss: f*, a lower bound of the loss.
        longest: the longest step size to try first, > 0 and finite.
        growth: one contraction, > 1.

    Raises:
        ConfigurationError: if an argument is out of its range.

    Source:
        arXiv 2306.12747 (PoNoS).

    Examples:
        >>> guess = Polyak(c=0.5)
        >>> guess.next(1.0, Line(loss=1.0, slope=4.0), guess.defaults())
        0.5
    """

    c: float = 0.1
    least_loss: float = 0.0
    longest: float = 10.0
    growth: float = 2.0

    def __post_init__(self) -> None:
        if not (is_number(self.c) and 0 < self.c < math.inf):
            raise ConfigurationError(f"c is {self.c!r}; it must be a positive number, for instance 0.1.")
        if not (is_number(self.least_loss) and math.isfinite(self.least_loss)):
            raise ConfigurationError(f"least_loss is {self.least_loss!r}; it must be a number, for instance 0.")
        Growth(self.longest, self.growth)

    def initial_step_size(self) -> float:
        """`longest`."""
        return self.longest

    def defaults(self) -> Memory:
        """r, and Polyak's step size at this step."""
        return {"polyak_ratio": 1.0, "polyak_step_size": 0.0}

    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        """r·(f(w) - f*)/(c·S), at most `longest`; the last step size where the loss is below f*."""
        above = line.loss - self.least_loss
        memory["polyak_step_size"] = 0.0
        if above <= 0 or line.slope <= 0:
            return step_size
        polyak = above / (self.c * line.slope)
        if not 0 < polyak * memory["polyak_ratio"] < math.inf:
            return step_size
        memory["polyak_step_size"] = polyak
        return min(polyak * memory["polyak_ratio"], self.longest)

    def remember(self, line: Line, trial: Trial | None, memory: Memory) -> None:
        """Set r by the accepted step size."""
        polyak = memory["polyak_step_size"]
        if trial is not None and polyak > 0:
            memory["polyak_ratio"] = min(1.0, self.growth * trial.step_size / polyak)
