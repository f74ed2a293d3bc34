"""Warnings about a run that goes wrong, as an observer that every optimizer has."""

from __future__ import annotations

import logging
import math

from armijo.observers.report import ComponentReport, StepReport
from armijo.search.values import Status

__all__ = ["HealthMonitor"]

logger = logging.getLogger("armijo")


class HealthMonitor:
    """Logs a warning, once each, when a component stops moving or the loss explodes.

    Its counts serve the log alone: no decision reads them, and no checkpoint holds them.

    Args:
        maximize: whether the loss is to grow; it is not monitored then.
    """

    PATIENCE = 50
    """Steps without movement before a warning."""
    EXPLOSION = 10.0
    """The multiple of its running minimum at which the averaged loss causes a warning."""
    MEMORY = 0.9
    """The loss is averaged over about ten steps, l ← 0.9·l + 0.1·f_k: late in training single batches often lose ten
    times as much as others, and nothing is wrong."""
    NEGLIGIBLE = 1e-12
    """A component with a smaller step size counts as not moving."""

    def __init__(self, *, maximize: bool = False) -> None:
        # A loss that is to grow may well exceed its minimum.
        self._monitors_loss = not maximize
        self._still_steps: dict[str, int] = {}
        self._average = math.nan
        self._lowest = math.inf
        self._exploded = False

    def __call__(self, report: StepReport) -> None:
        """Take one report into account."""
        for component in report.components:
            self._check_component(component)
        if self._monitors_loss and math.isfinite(report.loss):
            self._check_loss(report)

    def _check_loss(self, report: StepReport) -> None:
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

    def _check_component(self, component: ComponentReport) -> None:
        stayed = component.status in (Status.EXHAUSTED, Status.NONDETERMINISTIC, Status.NONFINITE, Status.ASCENT)
        if not (stayed or component.slope == 0 or component.step_size < self.NEGLIGIBLE):
            self._still_steps.pop(component.label, None)
            return
        still = self._still_steps[component.label] = self._still_steps.get(component.label, 0) + 1
        if still != self.PATIENCE:
            return
        if component.slope == 0:
            why = (
                "it gets no gradient. If the loss does not depend on it, leave it out of the optimizer or set "
                "requires_grad=False"
            )
        elif component.status is Status.ASCENT:
            why = (
                "the loss rises along its direction. The direction's search_direction() must be a direction of "
                "descent, such as the preconditioned gradient"
            )
        elif component.status is Status.NONFINITE:
            why = (
                "the loss, its gradient or the slope is not finite. Look for the first batch where that happens; with "
                "weights in float16 use a larger eps"
            )
        elif component.status is Status.NONDETERMINISTIC:
            why = (
                "the closure returns a different loss each time it is called. Let it draw only from the global "
                "generators of torch, NumPy and Python"
            )
        else:
            why = (
                "no step size decreases the loss enough to be seen. Compute the loss in float32, or use a smaller c, "
                "or fewer components (armijo.split with a smaller n_layer_groups)"
            )
        logger.warning("Component %r has not moved for %d steps: %s.", component.label, still, why)
