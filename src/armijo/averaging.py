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
    forgets the start. Evaluate and save the average where the last iterate is noisy or has begun to overfit. Buffers
    of integers, as BatchNorm's count of batches, are taken over as they are.

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
        pairs = list(zip(averaged, current, strict=True))
        means = [pair for pair in pairs if pair[0].is_floating_point() or pair[0].is_complex()]
        if means:
            torch._foreach_lerp_([a for a, _ in means], [w.to(a.dtype) for a, w in means], weight)
        for a, w in pairs:
            if not (a.is_floating_point() or a.is_complex()):
                a.copy_(w)

    return update
