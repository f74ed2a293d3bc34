"""Guards against losses that cannot be searched: closures that break their contract, and optimizers wrapped wrongly."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from armijo.errors import ClosureContractError, ConfigurationError
from armijo.evaluation.objective import Objective
from armijo.search.values import Line, Trial
from armijo.snapshot import Snapshot

__all__ = [
    "EARLY_STEPS",
    "BetweenStepsWatch",
    "WriteGuard",
    "check_accumulation",
    "check_parameters_unwritten",
    "check_ranks_hold_the_same",
    "check_trials_differ",
    "gradients_aside",
    "parameters_of",
]

logger = logging.getLogger("armijo")

_EQUAL_TRIALS = 3
"""So many trials with one loss show that it does not depend on the parameters."""
_VISIBLE = 1024
"""The decrease that a trial must promise, in units of the loss's resolution, before a loss that stays counts."""
EARLY_STEPS = 10
"""Steps in which such a loss is refused. Later a model that fits its data may have so flat a loss."""


def parameters_of(groups: Iterable[Mapping[str, Any]]) -> list[torch.Tensor]:
    """The parameters of all groups, in order."""
    return [parameter for group in groups for parameter in group["params"]]


class WriteGuard:
    """Notices writes to parameters and gradients, by torch's counters of in-place writes.

    Args:
        parameters: the parameters to watch, and their gradients.
    """

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self._parameters = parameters
        self._versions = self._current_versions()

    @property
    def written(self) -> bool:
        """Whether anything was written since this guard was made."""
        return self._versions != self._current_versions()

    def check(self, *, gradients: bool = True) -> None:
        """Raise if a closure has written anything.

        Args:
            gradients: whether it must leave the gradients alone too.

        Raises:
            ClosureContractError: parameters or gradients were changed.
        """
        versions = self._current_versions()
        if [parameter for parameter, _ in self._versions] != [parameter for parameter, _ in versions]:
            raise ClosureContractError(
                "The closure changed the parameters. It must only evaluate the loss at the parameters as they are: "
                "move updates and weight clipping behind optimizer.step(), and build embeddings without max_norm."
            )
        if gradients and self._versions != versions:
            raise ClosureContractError(
                "The closure changed the gradients, from which the step is to be taken: leave out zero_grad() and "
                "backward(), step() runs both. optimizer.step(lambda: criterion(model(inputs), labels)). For a "
                "gradient inside of the loss take torch.autograd.grad(term, inputs, create_graph=True)."
            )

    def _current_versions(self) -> list[tuple[int, int | None]]:
        return [(p._version, None if p.grad is None else p.grad._version) for p in self._parameters]


class BetweenStepsWatch:
    """Logs once when something else has written the parameters between the last steps, each time."""

    PATIENCE = 20
    """Steps in a row."""

    def __init__(self) -> None:
        self._versions: list[int] = []
        self._written = 0

    def begin(self, parameters: Sequence[torch.Tensor]) -> None:
        """Compare with the end of the step before."""
        if not self._versions:
            return
        self._written = self._written + 1 if self._versions != [p._version for p in parameters] else 0
        if self._written == self.PATIENCE:
            logger.warning(
                "Something else has changed the parameters after each of the last %d steps, for instance an optimizer "
                "around this one or a projection of the weights. What the line search tested is not what the model "
                "then has; the step sizes fit only as far as the change is small.",
                self.PATIENCE,
            )

    def end(self, parameters: Sequence[torch.Tensor]) -> None:
        """Note the end of a step."""
        # Shards are gathered into other tensors, which have counts of their own.
        plain = all(type(parameter) in (torch.Tensor, torch.nn.Parameter) for parameter in parameters)
        self._versions = [p._version for p in parameters] if plain else []


@contextmanager
def gradients_aside(objective: Objective, parameters: Sequence[torch.Tensor]) -> Iterator[Callable[[], None]]:
    """Keep the gradients from trials that run backward passes; yields a function that drops what a trial left.

    Args:
        objective: its modules' parameters have gradients too.
        parameters: those under search.
    """
    modules = (module for forward in objective.recorded_forwards for module in forward.buffers.modules)
    others = (p for module in modules for p in module._parameters.values() if p is not None)
    kept = [(p, p.grad) for p in {id(p): p for p in (*parameters, *others)}.values()]

    def drop() -> None:
        for parameter, _ in kept:
            parameter.grad = None

    drop()
    try:
        yield drop
    finally:
        for parameter, grad in kept:
            parameter.grad = grad


def check_trials_differ(line: Line, trials: Sequence[Trial], snapshot: Snapshot) -> None:
    """Raise if the loss stays the same, to the last bit, though the slope promises a decrease that it could show.

    A loss near 0 is mostly a mean of terms that are computed from numbers around 1, and shows no less than those do.

    Raises:
        ClosureContractError: the loss does not depend on the parameters.
    """
    moved = {trial.step_size: trial.loss for trial in trials if trial.step_size > 0}
    if len(moved) < _EQUAL_TRIALS or len({*moved.values()}) > 1:
        return
    loss = next(iter(moved.values()))
    unchanged = math.isfinite(loss) and abs(loss - line.loss) <= 16 * line.resolution
    shown = line.resolution / min(1.0, abs(line.loss)) if line.loss else math.inf
    visible = min(moved) * line.slope > _VISIBLE * shown
    # In half precision the parameters may stay where they are for all of these step sizes.
    if unchanged and visible and trials[-1].step_size > 0 and snapshot.differs():
        raise ClosureContractError(
            f"The loss is {loss:.6g} at the step sizes {', '.join(f'{each:.3g}' for each in moved)}, where its "
            "gradient promises a decrease: its value does not depend on the parameters. If the forward pass runs "
            "outside of the closure, move it inside: optimizer.step(lambda: criterion(model(inputs), labels)). If only "
            "the gradient of this loss means something, as with policy gradients (GRPO, PPO: ratios to the detached "
            "current policy), a line search cannot see what a step does; use torch.optim.AdamW there."
        )


def check_parameters_unwritten(objective: Objective, parameters: Sequence[torch.Tensor]) -> None:
    """Raise if parameters were written after a recorded forward: its loss belongs to other parameters.

    Raises:
        ClosureContractError: they were.
    """
    searched = set(map(id, parameters))
    for forward in objective.recorded_forwards:
        if any(id(parameter) in searched and parameter._version != version for parameter, version in forward.versions):
            raise ClosureContractError(
                "Parameters were changed between a recorded forward and optimizer.step(), so its loss and gradients "
                "belong to other parameters than those that the step starts from. Change them inside of the closure "
                "and put them back there, as each trial must; or after optimizer.step()."
            )


def check_ranks_hold_the_same(objective: Objective, parameters: Sequence[torch.Tensor]) -> None:
    """Raise if the optimizers of the ranks hold different parameters of the model that they share.

    Raises:
        ConfigurationError: they do. Alike on all ranks.
    """
    held = set(map(id, parameters))

    def places() -> list[float]:
        modules = (module for forward in objective.recorded_forwards for module in forward.buffers.modules)
        every = dict.fromkeys(id(p) for module in modules for p in module._parameters.values() if p is not None)
        found = [place for place, parameter in enumerate(every) if parameter in held]
        return [number for each in (len(found), sum(found) % 1_000_003) for number in (float(each), float(each) ** 2)]

    n, n_squares, places_sum, places_squares = objective.mean_over_ranks(places, 4)
    # A variance over the ranks, so that all of them see it.
    if n_squares != n**2 or places_squares != places_sum**2:
        raise ConfigurationError(
            "The optimizers of the ranks hold different parameters of one model, as under ZeroRedundancyOptimizer. "
            "Each would search along its own share of the step, and the step that is taken is another. Give every rank "
            "all parameters, or shard model and optimizer with torch.distributed.fsdp.fully_shard(model)."
        )


def check_accumulation() -> None:
    """Raise if a closure comes through an optimizer of Accelerate's that accumulates gradients.

    Raises:
        ClosureContractError: it would be evaluated for the last micro-batch alone.
    """
    wrapper, frame = sys.modules.get("accelerate.optimizer"), sys._getframe()
    if wrapper is None:
        return
    for _ in range(12):
        if frame.f_globals is vars(wrapper):
            state = getattr(frame.f_locals.get("self"), "gradient_state", None)
            if state is not None and state.num_steps > 1:
                raise ClosureContractError(
                    f"A closure was given to an optimizer that accumulates the gradients of {state.num_steps} "
                    "micro-batches; Accelerate calls it for the last of them alone. Record every micro-batch with an "
                    "armijo.Objective, call accelerator.backward on its loss, and step with the objective."
                )
            return
        if frame.f_back is None:
            return
        frame = frame.f_back
