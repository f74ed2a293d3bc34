"""What one step did, for whoever watches, and the watch that speaks up by itself (layer L2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from armijo.search.records import Status

__all__ = ["ComponentReport", "Observer", "StepReport", "Watch"]

logger = logging.getLogger("armijo")


@dataclass(frozen=True, slots=True)
class ComponentReport:
    """One component in one step.

    Args:
        label: its name.
        status: `accepted`, `exhausted`, `skipped`, `unsearched`, `nonfinite` or `nondeterministic`.
        step_size: η as last used. After a search that found nothing, the one the component keeps.
        slope: S = ⟨g, d⟩ of this component alone.
        trials: evaluations of the search that it took part in, 0 if none. Components searched jointly share theirs.
        trial_loss: the loss at the step size that was found, or None if that was not evaluated.
    """

    label: str
    status: Status
    step_size: float
    slope: float
    trials: int
    trial_loss: float | None


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step.

    Args:
        step: the number of this step, from 1. A step that changed nothing (`nonfinite`) leaves its number to the next.
        loss: f_k(w_k), the loss at the start.
        components: one record for each component, as they were when the step began.
        merges: (kept label, absorbed label) of each merge after the step.
        forwards: forward passes of this step: one with gradients, and one for each trial.
        total_forwards: forward passes since the first step.
    """

    step: int
    loss: float
    components: tuple[ComponentReport, ...]
    merges: tuple[tuple[str, str], ...]
    forwards: int
    total_forwards: int


Observer = Callable[[StepReport], object]
"""Called after each step with its report; what it returns is not looked at."""


class Watch:
    """Says in one logged sentence, once each, what a person should know: see `PATIENCE` and `EXPLOSION`.

    Its counts serve the log alone; no decision reads them, and no checkpoint holds them.

    Args:
        maximize: whether the loss is to grow; it is then not judged.
    """

    PATIENCE = 50
    """Steps without a move after which a component is spoken of."""
    EXPLOSION = 10.0
    """The multiple of its running minimum at which the loss is spoken of."""
    MEMORY = 0.9
    """The loss is averaged over about ten steps, l ← 0.9·l + 0.1·f_k: late in training single batches often lose ten
    times as much as others, and nothing is wrong."""
    NEGLIGIBLE = 1e-12
    """A step size below which a component is taken not to move."""

    def __init__(self, *, maximize: bool = False) -> None:
        # A loss that is to grow may well exceed its minimum.
        self._judges_loss = not maximize
        self._still: dict[str, int] = {}
        self._average = math.nan
        self._lowest = math.inf
        self._exploded = False

    def __call__(self, report: StepReport) -> None:
        """Look at one report."""
        for component in report.components:
            self._look(component)
        if self._judges_loss and math.isfinite(report.loss):
            self._look_at_loss(report)

    def _look_at_loss(self, report: StepReport) -> None:
        memory = 0.0 if math.isnan(self._average) else self.MEMORY
        self._average = (memory * self._average if memory else 0.0) + (1 - memory) * report.loss
        if self._average > self.EXPLOSION * self._lowest > 0 and not self._exploded:
            self._exploded = True
            logger.warning(
                "At step %d the loss, averaged over ten steps, is %.3g, more than ten times its lowest value %.3g: the "
                "step sizes may be too large for some batches. Cap them with max_step_size, or ask for more decrease "
                "with a larger c.",
                report.step,
                self._average,
                self._lowest,
            )
        self._lowest = min(self._lowest, self._average)

    def _look(self, component: ComponentReport) -> None:
        stayed = component.status in (Status.EXHAUSTED, Status.NONDETERMINISTIC, Status.NONFINITE)
        if not (stayed or component.slope == 0 or component.step_size < self.NEGLIGIBLE):
            self._still.pop(component.label, None)
            return
        still = self._still[component.label] = self._still.get(component.label, 0) + 1
        if still != self.PATIENCE:
            return
        if component.slope == 0:
            why = (
                "it gets no gradient. If it takes no part in the loss, leave it out of the optimizer or set "
                "requires_grad=False"
            )
        elif component.status is Status.NONFINITE:
            why = (
                "the loss, its gradient or the slope is not finite. Look for the first batch where that happens; with "
                "weights in float16 use a larger eps"
            )
        elif component.status is Status.NONDETERMINISTIC:
            why = (
                "the closure returns another loss each time it is called. Let it draw only from the global generators "
                "of torch, NumPy and Python"
            )
        else:
            why = (
                "no step size decreases the loss enough to be seen. Compute the loss in float32, or use a smaller c, "
                "or fewer components (armijo.split with a smaller n_groups)"
            )
        logger.warning("Component %r has not moved for %d steps: %s.", component.label, still, why)
