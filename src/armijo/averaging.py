"""Averages of the iterates, for `torch.optim.swa_utils.AveragedModel`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from armijo.errors import ConfigurationError
from armijo.families import is_number

__all__ = ["polynomial_average"]

Tensors = list[torch.Tensor]


def polynomial_average(power: float = 3.0) -> Callable[[Tensors, Tensors, torch.Tensor | int], None]:
    """Average the iterates with weights that grow like k^p.

        w̄ ← w̄ + (p+1)/(k+p)·(w_k - w̄)        k = 1, 2, …

    It follows the iterates at a distance that grows with their number, so it needs no horizon and no half-life, and
    forgets the start. Evaluate and save the average where the last iterate is noisy or has begun to overfit.

    Args:
        power: p ≥ 0; with 0 it is the plain mean.

    Returns:
        What `AveragedModel` takes as its `multi_avg_fn`.

    Raises:
        ConfigurationError: if `power` is negative or not finite.

    Source:
        arXiv 1212.1824, polynomial-decay averaging.

    Examples:
        >>> import torch, armijo
        >>> from torch.optim.swa_utils import AveragedModel
        >>> model = torch.nn.Linear(2, 1)
        >>> average = AveragedModel(model, multi_avg_fn=armijo.polynomial_average(), use_buffers=True)
        >>> average.update_parameters(model)                       # after each step
    """
    if not (is_number(power) and 0 <= power < float("inf")):
        raise ConfigurationError(f"power is {power!r}; it must be a number of 0 or more, for instance 3.")

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, num_averaged: torch.Tensor | int) -> None:
        weight = (power + 1) / (float(num_averaged) + 1 + power)
        torch._foreach_lerp_(averaged, [w.to(a.dtype) for a, w in zip(averaged, current, strict=True)], weight)

    return update
