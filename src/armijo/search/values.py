"""The values that a line search works with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from armijo.errors import ConfigurationError

__all__ = ["Derivatives", "Evaluate", "Line", "Outcome", "SearchResult", "Status", "Trial"]


class Evaluate(Protocol):
    """The loss at a step size: η ↦ f(w - η·d). Each call is one forward pass without gradients."""

    def __call__(self, step_size: float, along: str | None = None) -> float:
        """Evaluate one trial.

        Args:
            step_size: η, finite.
            along: the name of another vector v to move along, f(w - η·v), one that the direction's `probes` returns.
                All components of the block move by η·v. By default the search direction d, of which component l of a
                block moves by η·r_l·d_l.

        Returns:
            The loss; `inf` where it is not finite.
        """
        ...


class Status(StrEnum):
    """How a search of one component ended. As a string each member equals its lower-case name."""

    ACCEPTED = "accepted"
    """A trial satisfied the criterion; the component moves with that step size."""
    EXHAUSTED = "exhausted"
    """No trial satisfied the criterion, at this step or, where the component was not searched, at its last search. It
    stays until a search succeeds, except under `armijo.paper`."""
    SKIPPED = "skipped"
    """There was nothing to search for: the loss is zero or the slope vanishes. The component stays where it is, except
    under `armijo.paper`, which moves it with its step size."""
    UNSEARCHED = "unsearched"
    """The component moves with a step size that no trial has tested: it was not selected, its step size is fixed, or
    the search computed it."""
    ASCENT = "ascent"
    """The loss rises along the direction (slope < 0). The component stays where it is."""
    NONFINITE = "nonfinite"
    """The loss or the gradient at the start of the step was not finite; nothing has changed."""
    NONDETERMINISTIC = "nondeterministic"
    """No trial satisfied the criterion, and the loss at η = 0 was not the one the step began with."""


class Derivatives(dict[str, float]):
    """Derivatives by name; a name that the direction does not provide raises a sentence."""

    def __missing__(self, name: str) -> float:
        raise ConfigurationError(
            f"The direction provides no derivative {name!r} (it provides {', '.join(self) or 'none'}). Use "
            "direction=KeepLastStep(...) for 'last_step', KeepLastGradient(...) for 'last_gradient'."
        )


@dataclass(frozen=True, slots=True)
class Line:
    """A ray from the current parameters: the loss at its start, and how fast it falls there.

    Args:
        loss: f(w), finite; negated where the optimizer maximizes, as are all losses that a search sees.
        slope: S = ⟨∇f(w), d⟩, the decrease per unit of step size along -d. Negative where d is no direction of
            descent. For a block of components that move with η·r_l it is Σ_l r_l·S_l. At a step without a search it may
            be an estimate, and so may the derivatives: of tensors with 65,536 numbers or more a part is read.
        resolution: the smallest difference of losses that their number format can show near f(w), u·|f(w)| with the
            unit roundoff u. Rounding alone decides a trial that promises less, η·S < resolution.
        longest: the largest step size that may be tried, from `max_step_size` and the parameters' number format.
        derivatives: by name, ⟨∇f(w), v⟩ for each further vector v that the direction's `probes` returns, and ⟨h, d⟩ for
            each of its `past_gradients` h. The latter for a block is Σ_l ⟨h_l, d_l⟩.
        components: how many components have a slope at this step, and move with one another: f(w) is the loss of all.
        mean_step_size: the geometric mean of the step sizes of those that are free to move: with a slope, below their
            `max_step_size`, and without a search that failed. `None` where there are fewer than two.
    """

    loss: float
    slope: float
    resolution: float = 0.0
    longest: float = math.inf
    derivatives: Mapping[str, float] = field(default_factory=lambda: Derivatives(), hash=False)
    components: int = 1
    mean_step_size: float | None = None

    @property
    def finite(self) -> bool:
        """Whether loss, slope and derivatives are finite; otherwise nothing is searched and nothing moves."""
        return all(map(math.isfinite, (self.loss, self.slope, *self.derivatives.values())))


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluated point of a line.

    Args:
        step_size: η.
        loss: f(w - η·d); `inf` where it was not finite.
    """

    step_size: float
    loss: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found.

    Args:
        step_size: the step size to move with. 0 means: stay, and keep the step size from before the search.
        status: how the search ended.
        loss: the loss at `step_size` where that was evaluated, else None.
    """

    step_size: float
    status: Status
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One search of a step, from start to end.

    Args:
        block: the places of the components that moved together.
        line: the line that was searched.
        first_step_size: the step size tried first.
        outcome: what the search found.
        trials: its trials in order, those at η = 0 included.
    """

    block: tuple[int, ...]
    line: Line
    first_step_size: float
    outcome: Outcome
    trials: tuple[Trial, ...]
