"""Warnings about how an optimizer is used, logged at its construction or in its first step."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from armijo.evaluation.attributes import changed_attributes, fingerprint_attributes
from armijo.evaluation.objective import Objective
from armijo.evaluation.reduction import Reduction

__all__ = [
    "warn_about_backward",
    "warn_about_half_precision",
    "warn_about_learning_rate",
    "warn_about_other_ranks",
    "warn_about_schedulers",
    "watch_attributes",
]

logger = logging.getLogger("armijo")

_HALF = (torch.float16, torch.bfloat16)
_LEAST_FACTOR = 1e-2
"""This `lr`, or a smaller one, was probably meant as a learning rate."""


_SCHEDULED = ("initial_lr", "max_lr", "swa_lr")
"""Where torch's schedulers write the largest `lr` that they mean to set."""


def warn_about_learning_rate(groups: Sequence[Mapping[str, Any]], key: str = "lr") -> bool:
    """Warn if the largest `lr` looks like a learning rate; smaller ones may be multipliers of layers.

    Args:
        groups: the groups.
        key: where the value lies; schedulers write their own.

    Returns:
        Whether there was something to say.
    """
    largest = max(float(group.get(key, 0.0)) for group in groups)
    looks_like_one = 0 < largest <= _LEAST_FACTOR
    if looks_like_one:
        logger.warning(
            "%s is %g. Here lr is not a learning rate: it multiplies each step size that the search finds, so the "
            "model hardly moves. Leave it out, or let it end at 1 (skorch: lr=1.0; OneCycleLR: max_lr=1.0; "
            "StochasticWeightAveraging: swa_lrs=1.0). To bound the step sizes, set max_step_size.",
            key,
            largest,
        )
    return looks_like_one


def warn_about_schedulers(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Warn if a scheduler drives `lr` as a learning rate; whether there was something to say."""
    return any(key in groups[0] and warn_about_learning_rate(groups, key) for key in _SCHEDULED)


def warn_about_half_precision(groups: Sequence[Mapping[str, Any]], loss: torch.Tensor) -> None:
    """Warn if parameters or the loss are in half precision."""
    dtypes = Counter(parameter.dtype for group in groups for parameter in group["params"])
    half = [dtype for dtype in dtypes if dtype in _HALF]
    if half:
        logger.warning(
            "%d of %d parameters are %s. A line search compares losses at weights that differ by little, and so few "
            "digits show neither the move nor the decrease. Keep the weights in float32 (model.float()) and run the "
            "forward under torch.autocast, with the loss computed in float32.",
            sum(dtypes[dtype] for dtype in half),
            sum(dtypes.values()),
            " and ".join(_short_name(dtype) for dtype in half),
        )
    if loss.dtype in _HALF and math.isfinite(value := abs(float(loss))):
        logger.warning(
            "The loss is %s: near %.3g it moves in steps of %.1g, and a line search cannot see a smaller decrease. "
            "Compute it in float32: criterion(logits.float(), labels).",
            _short_name(loss.dtype),
            value,
            torch.finfo(loss.dtype).eps * 2.0 ** (math.frexp(value)[1] - 1),
        )


def warn_about_other_ranks(reduction: Reduction) -> None:
    """Warn if torch.distributed runs and the model is not wrapped for it."""
    from torch import distributed

    if reduction.groups or not (distributed.is_available() and distributed.is_initialized()):
        return
    ranks = distributed.get_world_size()
    if ranks > 1:
        logger.warning(
            "torch.distributed runs on %d ranks, and the model is wrapped neither in DistributedDataParallel nor by "
            "fully_shard: this rank searches on its own loss. If the ranks train one model, pass "
            "process_group=torch.distributed.group.WORLD to the optimizer, or they will diverge.",
            ranks,
        )


def warn_about_backward(ran_backward: bool) -> None:
    """Warn if the closure runs the backward pass itself, as torch.optim.LBFGS wants it."""
    if ran_backward:
        logger.warning(
            "The closure runs backward(), as torch.optim.LBFGS wants it. Here step() does that, once; in the closure "
            "it runs in every trial too, which then takes about three times as long. Leave zero_grad() and backward() "
            "out: optimizer.step(lambda: criterion(model(inputs), labels)). For a gradient inside of the loss, as in "
            "adversarial training, take torch.autograd.grad(loss, inputs).",
        )


@contextmanager
def watch_attributes(objective: Objective, parameters: Sequence[torch.Tensor], *, first: bool) -> Iterator[None]:
    """In the first step, warn about attributes of modules that the trials inside of this context have changed.

    Args:
        objective: evaluates the trials.
        parameters: those under search.
        first: whether this is the first step; otherwise nothing is compared.
    """
    modules = [module for forward in objective.recorded_forwards for module in forward.buffers.modules] if first else []
    before, evaluations = fingerprint_attributes(modules, parameters), objective.evaluations
    yield
    if not modules or objective.evaluations == evaluations:
        return
    changed = changed_attributes(before, fingerprint_attributes(modules, parameters))
    if changed:
        logger.warning(
            "A forward pass changes %s%s, and so does every trial. If the loss depends on it, trials are judged by "
            "another function: change it under `if torch.is_grad_enabled():`, which leaves trials out, or after "
            "optimizer.step().",
            ", ".join(changed[:3]),
            f" and {len(changed) - 3} more attributes" if len(changed) > 3 else "",
        )


def _short_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
