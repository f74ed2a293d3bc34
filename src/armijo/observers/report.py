"""What one step did, for whoever observes the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from armijo.search.values import Status, Trial

__all__ = ["ComponentReport", "Observer", "SearchReport", "StepReport"]


@dataclass(frozen=True, slots=True)
class ComponentReport:
    """One component in one step.

    Args:
        label: its name.
        status: how its search ended, or `unsearched`.
        step_size: η as last used. After a search that found nothing, the one the component keeps.
        slope: S = ⟨g, d⟩ of this component alone; at a step without a search it may be an estimate, or NaN.
        trials: trials of the search that it took part in, 0 if none. Components searched jointly share theirs.
        trial_loss: the loss at the step size that was found, or None if that was not evaluated.
    """

    label: str
    status: Status
    step_size: float
    slope: float
    trials: int
    trial_loss: float | None


@dataclass(frozen=True, slots=True)
class SearchReport:
    """One search in one step.

    Args:
        components: the labels of the components that moved together; the others stayed at w_k.
        status: how the search ended.
        first_step_size: the step size tried first. Component l moves with η·r_l, where r_l ≤ 1 is the ratio of its own
            first step size to this one.
        step_size: η that was found; 0 if the components stay.
        slope: Σ_l r_l·S_l.
        trials: step size and loss of each trial, in order. Trials at η = 0 test whether the loss repeats itself.
    """

    components: tuple[str, ...]
    status: Status
    first_step_size: float
    step_size: float
    slope: float
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step.

    Args:
        step: the number of this step, from 1. A step that changed nothing (`nonfinite`) leaves its number to the next.
        loss: f_k(w_k), the loss at the start.
        components: one report for each component, as they were when the step began.
        merges: (kept label, absorbed label) of each merge after the step.
        forwards: forward passes of this step: one with gradients, and one for each trial and each evaluation along a
            probe.
        total_forwards: forward passes since the first step.
        searches: one report for each search, in order; none if nothing was searched.
    """

    step: int
    loss: float
    components: tuple[ComponentReport, ...]
    merges: tuple[tuple[str, str], ...]
    forwards: int
    total_forwards: int
    searches: tuple[SearchReport, ...] = ()


Observer = Callable[[StepReport], object]
"""Called after each step with its report; what it returns is ignored."""
