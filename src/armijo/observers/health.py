"""Warnings about a run that goes wrong, as an observer that every optimizer has."""

from __future__ import annotations

import logging
import math

from armijo.observers.report import ComponentReport, StepReport
from armijo.search.values import Status

__all__ = ["HealthMonitor"]

logger = logging.getLogger("armijo")


class HealthMonitor:
    """Logs a warning, once each, when a component does not move or the loss explodes.

    Its counts serve the log alone: no decision reads them, and no checkpoint holds them.

    Args:
        maximize: whether the loss is to grow; it is not monitored then.
    """

    PATIENCE = 50
    """Steps without movement before a warning."""
    EARLY = 5
    """The same where a component has not moved from the first step on, though the loss has a gradient."""
    EXPLOSION = 10.0
    """The multiple of its running minimum at which the averaged loss causes a warning."""
    MEMORY = 0.9
    """The loss is averaged over about ten steps, l ← 0.9·l + 0.1·f_k: late in training single batches often lose ten
    times as much as others, and nothing is wrong."""
    NEGLIGIBLE = 1e-12
    """A component with a smaller step size counts as not moving."""
    VISIBLE = 256 * 2.0**-24
    """The decrease, in units of max(1, |f|), that a trial must promise before its loss says something of the gradient:
    256 roundings of float32."""

    def __init__(self, *, maximize: bool = False) -> None:
        # A loss that is to grow may well exceed its minimum.
        self._maximizes = maximize
        self._still_steps: dict[str, int] = {}
        self._moved: set[str] = set()
        self._warned: set[str] = set()
        self._average = math.nan
        self._lowest = math.inf
        self._exploded = False

    def __call__(self, report: StepReport) -> None:
        """Take one report into account."""
        for component in report.components:
            self._check_component(component, report)
        if not self._maximizes and math.isfinite(report.loss):
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

    def _check_component(self, component: ComponentReport, report: StepReport) -> None:
        label, searched = component.label, component.trials > 0
        if component.status is Status.EXHAUSTED and not searched:
            return  # it waits for its next search
        stayed = component.status not in (Status.ACCEPTED, Status.UNSEARCHED)
        if not (stayed or component.slope == 0 or component.step_size < self.NEGLIGIBLE):
            self._still_steps.pop(label, None)
            self._moved.add(label)
            return
        still = self._still_steps[label] = self._still_steps.get(label, 0) + 1
        # A component without a gradient may only wait for its first row: an expert, an embedding.
        sloped = component.slope != 0 or all(each.slope == 0 for each in report.components)
        early = still == self.EARLY and sloped and label not in self._moved
        if (still != self.PATIENCE and not early) or label in self._warned:
            return
        self._warned.add(label)
        logger.warning("Component %r has not moved for %d steps: %s.", label, still, self._reason(component, report))

    def _reason(self, component: ComponentReport, report: StepReport) -> str:
        has_moved = component.label in self._moved
        if component.status is Status.NONFINITE:
            return (
                "the loss, its gradient or the slope is not finite. Look for the first batch where that happens; with "
                "weights in float16 use a larger eps"
            )
        if component.slope == 0:
            return (
                "it gets no gradient any more. The loss may have reached its floor, as a hinge does, or no longer "
                "depend on it"
                if has_moved
                else "it gets no gradient. If the loss does not depend on it, leave it out of the optimizer or set "
                "requires_grad=False. If layers were added or replaced after the optimizer was built, build it anew"
            )
        if component.status is Status.ASCENT:
            return (
                "the loss rises along its direction. The direction's search_direction() must be a direction of "
                "descent, such as the preconditioned gradient"
            )
        if component.status is Status.NONDETERMINISTIC:
            return (
                "the closure returns a different loss each time it is called. Let it draw only from the global "
                "generators of torch, NumPy and Python"
            )
        if component.status is Status.SKIPPED and report.loss == 0:
            return (
                "the loss is exactly 0, and its gradient is not. Of a loss whose gradient alone means something "
                "(advantages that cancel, l - l.detach()) a line search sees nothing; use torch.optim.AdamW there"
            )
        if component.status is Status.SKIPPED:
            return (
                f"its slope is {component.slope:.2g}, too small to be searched. Multiply the loss by a constant, so "
                "that it is not tiny in absolute numbers"
            )
        return self._reason_of_failure(component, report, has_moved)

    def _reason_of_failure(self, component: ComponentReport, report: StepReport, has_moved: bool) -> str:
        """Why its last search found nothing, as its trials tell."""
        sign = -1.0 if self._maximizes else 1.0
        promise = self.VISIBLE * max(1.0, abs(report.loss))
        ratios = [
            sign * (report.loss - trial.loss) / (trial.step_size * search.slope)
            for search in report.searches
            if component.label in search.components
            for trial in sorted(search.trials, key=lambda trial: trial.step_size)
            if trial.step_size * search.slope > promise and math.isfinite(trial.loss)
        ]
        if len(ratios) > 1 and not any(ratios):
            return (
                "the loss is the same at every step size. Compute it in float32, if it is not; else its value does not "
                "depend on these parameters, and the whole forward pass must run inside of the closure"
            )
        if len(ratios) > 1 and all(not 0.5 < ratio < 2 for ratio in ratios[:2]):
            return (
                f"at the shortest steps the loss falls by {ratios[0]:.2g} times what its gradient promises. The "
                "gradient is not that of this loss: look for a missing zero_grad(), a factor or a term between loss "
                "and backward(), detach(), gradient reversal or hooks, or a loss that changes from call to call"
            )
        return (
            "no step size decreases the loss enough to be seen. "
            + ("It may have converged. If not, compute" if has_moved else "Compute")
            + " the loss in float32, or use a smaller c, or fewer components (armijo.split with a smaller "
            "n_layer_groups)"
        )
