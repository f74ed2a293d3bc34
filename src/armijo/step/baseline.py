"""The start of a step: the loss at the current parameters, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.parameter import is_lazy

from armijo.errors import ClosureContractError, ConfigurationError
from armijo.evaluation.objective import Closure, Objective
from armijo.evaluation.reduction import Reduction
from armijo.interrupts import Interrupts
from armijo.step.guards import WriteGuard, check_accumulation, check_parameters_unwritten, parameters_of

if TYPE_CHECKING:
    from armijo.optimizer import LineSearch

__all__ = ["Baseline", "evaluate_baseline"]


@dataclass(frozen=True, slots=True)
class Baseline:
    """The loss at w_k, with the gradients in place.

    Args:
        objective: evaluates trials.
        loss: f_k(w_k), detached, shape (); this rank's own.
        ran_backward: whether the closure ran the backward pass itself, as it will in every trial.
        undo: puts generators and buffers back to where they were before `step` was called.
    """

    objective: Objective
    loss: torch.Tensor
    ran_backward: bool
    undo: Callable[[], None]


def evaluate_baseline(
    optimizer: LineSearch, closure: Closure | Objective, interrupts: Interrupts, reduction: Reduction
) -> Baseline:
    """Run the closure and the backward pass, or take the loss and the gradients that an `Objective` brings.

    Args:
        optimizer: the optimizer that takes the step.
        closure: what `step` was given.
        interrupts: lets Ctrl-C interrupt the closure and the backward pass.
        reduction: the ranks of the step before: if the closure fails before it reaches the model, they must be told.

    Raises:
        ClosureContractError: the closure breaks its contract, an `Objective` comes without gradients, or parameters
            were changed since its forwards.
        ConfigurationError: the model has lazy modules.
    """
    if isinstance(closure, Objective):
        loss = closure.loss()
        check_parameters_unwritten(closure, parameters_of(optimizer.param_groups))
        if not any(p.grad is not None for p in parameters_of(optimizer.param_groups)):
            raise ClosureContractError(
                "No parameter of the optimizer has a gradient. Call backward() on what objective.baseline(closure) "
                "returned before optimizer.step(objective). If that was done, the optimizer holds other parameters "
                "than the model has: build it after layers are added or replaced (PEFT, to_empty, a new head)."
            )
        # The forwards ran before this call; a failed step leaves things as they were then.
        return Baseline(closure, loss, False, closure.restore_after_baseline)
    if optimizer.param_groups[0]["steps"] == 0:
        check_accumulation()
    objective = Objective(process_group=optimizer.process_group)
    if optimizer.process_group is None:
        objective.reduction = reduction
    ran_backward = _run_backward(optimizer, objective, closure, interrupts)
    objective.differentiates |= ran_backward
    return Baseline(objective, objective.loss(), ran_backward, objective.restore_before_baseline)


def _take_gradients_of(loss: torch.Tensor, parameters: list[torch.Tensor], interrupts: Interrupts) -> None:
    """Take the gradients of the loss, if the closure has run the backward pass of another one (adversarial training).

    Its own it cannot run twice: the graph is gone, and what the closure has left is right.
    """
    left = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        interrupts.interruptible(loss.backward)()
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        for parameter, grad in zip(parameters, left, strict=True):
            parameter.grad = grad


def _run_backward(optimizer: LineSearch, objective: Objective, closure: Closure, interrupts: Interrupts) -> bool:
    """Run the closure and the backward pass; whether the closure had run it already."""
    parameters = parameters_of(optimizer.param_groups)
    if any(is_lazy(parameter) for parameter in parameters):
        raise ConfigurationError(
            "The model has lazy modules, whose parameters have no shape yet. Run one forward before the first step: "
            "model(inputs)."
        )
    if any(parameter.is_meta for parameter in parameters):
        raise ConfigurationError(
            "Parameters lie on the meta device and have no values. Give them some before the first step: "
            "model.to_empty(device=...), then load the weights."
        )
    # A closure that changes parameters does so from the first step on; only then is a copy of them all worth it.
    start = [p.detach().clone() for p in parameters] if optimizer.param_groups[0]["steps"] == 0 else None
    optimizer.zero_grad(set_to_none=True)
    guard, ran_backward = WriteGuard(parameters), False

    def forward() -> torch.Tensor:
        nonlocal ran_backward
        loss = objective.baseline(interrupts.interruptible(closure))
        ran_backward = any(p.grad is not None for p in parameters)
        guard.check(gradients=not ran_backward)
        return loss

    try:
        loss = objective.forward_on_all_ranks(forward)
        with torch.enable_grad():
            if not ran_backward:
                interrupts.interruptible(loss.backward)()
                guard.check(gradients=False)
            elif not objective.reduction.groups:  # DistributedDataParallel allows one backward pass for a forward
                _take_gradients_of(loss, parameters, interrupts)
        return ran_backward
    except BaseException:
        objective.restore_before_baseline()
        optimizer.zero_grad(set_to_none=True)
        if start is not None and guard.written:
            with torch.no_grad():
                torch._foreach_copy_(parameters, start)
        raise
