"""The values that a line search speaks in (layer L1: pure Python on floats)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Evaluate", "Line", "Outcome", "Status", "Trial"]

Evaluate = Callable[[float], float]
"""The loss at a step size: η ↦ f(w - η·d). Non-finite losses arrive as `inf`."""


class Status(StrEnum):
    """How one component fared in one step. Each member equals its own lower-case name as a string."""

    ACCEPTED = "accepted"
    """A trial satisfied the criterion; the component moves with that step size."""
    EXHAUSTED = "exhausted"
    """No trial satisfied the criterion."""
    SKIPPED = "skipped"
    """There was nothing to search for: the loss is zero or the slope vanishes."""
    UNSEARCHED = "unsearched"
    """It was not this component's turn; it moves with the step size it has."""
    NONFINITE = "nonfinite"
    """The loss or the gradient at the start of the step was not finite; nothing has changed."""
    NONDETERMINISTIC = "nondeterministic"
    """No trial satisfied the criterion, and the loss at η = 0 was not the one the step began with."""


@dataclass(frozen=True, slots=True)
class Line:
    """A ray from the current parameters: the loss at its start, and how fast it falls there.

    Args:
        loss: f(w), finite.
        slope: S = ⟨∇f(w), d⟩ ≥ 0, the decrease per unit of step size along -d. For a block of components that
            move with η·r_l it is Σ_l r_l·S_l.
        resolution: the least difference of losses that their number format can show near f(w), u·|f(w)| with the
            unit roundoff u. A trial that promises less, η·S < resolution, is decided by rounding alone.
    """

    loss: float
    slope: float
    resolution: float = 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluated point of a line.

    Args:
        step_size: η ≥ 0.
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
        trials: the number of evaluations it used.
        loss: the loss at `step_size` where that was evaluated, else None.
    """

    step_size: float
    status: Status
    trials: int = 0
    loss: float | None = None
