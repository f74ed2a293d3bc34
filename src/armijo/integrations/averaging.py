"""The average of the weights that a model trains, in the place of the weights while they are evaluated or saved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Module
from torch.optim.swa_utils import AveragedModel

__all__ = ["Average", "WeightAverage"]

Average = Callable[[Any, Any, Any], None]
"""What `AveragedModel` takes as its `multi_avg_fn`: it writes into its first argument, a list of averages."""


class WeightAverage:
    """torch's `AveragedModel` of what is trained, and of running statistics; what is frozen is not copied.

    Args:
        model: the model, where its weights will stay.
        average: how to average, for instance `armijo.polynomial_average()`.
    """

    def __init__(self, model: Module, average: Average) -> None:
        self._weights = _TrainedWeights(model)
        self._averaged = AveragedModel(self._weights, multi_avg_fn=average, use_buffers=True)
        self._depth = 0

    def update(self) -> None:
        """Take the weights in. To be called after each step."""
        self._averaged.update_parameters(self._weights)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the model has the average for its weights; before the first `update` it keeps them.

        It may be nested.
        """
        if self._depth == 0:
            self._swap()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._swap()

    def leave_in_place(self) -> None:
        """Give the model the average for good."""
        self._swap()

    def weights(self) -> dict[str, Any]:
        """The weights and how many were averaged; for a checkpoint whose model holds the average."""
        return {"weights": self._weights.state_dict(), "n_averaged": self._averaged.n_averaged}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint: the model, which holds the average, gets its weights back.

        Args:
            state: what `weights` returned.
        """
        self._averaged.module.load_state_dict(self._weights.state_dict())
        self._averaged.n_averaged.copy_(state["n_averaged"])
        self._weights.load_state_dict(state["weights"])

    @torch.no_grad()
    def _swap(self) -> None:
        if not self._averaged.n_averaged:
            return
        averaged: Module = self._averaged.module
        for a, w in zip(_tensors(averaged), _tensors(self._weights), strict=True):
            kept = w.detach().clone()
            w.copy_(a)
            a.copy_(kept)


class _TrainedWeights(Module):
    """The parameters of a model that are trained, and the buffers of which there is a mean, under names without dots.

    There is none of integers (positions, counts) and of infinities (masks): those stay in the model as they are.
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)
        for name, buffer in model.named_buffers():
            if not (buffer.is_floating_point() and bool(buffer.isfinite().all())):
                continue
            self.register_buffer(name.replace(".", "/"), buffer)


def _tensors(module: Module) -> Iterator[torch.Tensor]:
    return itertools.chain(module.parameters(), module.buffers())
