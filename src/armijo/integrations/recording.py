"""The forwards of an update, recorded where a framework runs them, for a search over the same loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter

from armijo.evaluation.objective import Closure, Objective, RecordedForward

__all__ = ["Window", "copy_batch"]


@dataclass
class _PendingForward:
    """A forward pass, and the factor with which its loss has entered the backward pass, once it has."""

    record: RecordedForward
    factor: Tensor | None = None


class Window:
    """The forwards since the last step. Those whose losses entered a backward pass are what the step searches over.

    Args:
        modules: as `armijo.Objective` takes them.
        parameters: called for those that are trained. Where all their gradients are gone when a loss enters its
            backward pass (an update was left unfinished, a GradScaler skipped it), so are the losses before it. `None`
            where somebody else sees to that.
    """

    def __init__(
        self, modules: Sequence[Module] | None = None, parameters: Callable[[], Iterable[Parameter]] | None = None
    ) -> None:
        self._modules, self._parameters = modules, parameters
        self._forwards: list[_PendingForward] = []

    def record(self, closure: Closure) -> Tensor:
        """Run a forward with gradients; its loss, for the backward pass of the framework."""
        recorder = Objective(self._modules)
        loss = recorder.baseline(closure)
        forward = _PendingForward(recorder.recorded_forwards[0])

        def keep_factor(grad: Tensor) -> None:
            # Whatever divides the loss afterwards, for accumulation or a GradScaler, is in its gradient.
            if self._parameters is not None and all(parameter.grad is None for parameter in self._parameters()):
                self._forwards = [other for other in self._forwards if other.factor is None]
            forward.factor = grad.detach()

        self._forwards.append(forward)
        loss.register_hook(keep_factor)
        return loss

    @property
    def recorded(self) -> bool:
        """Whether the loss of a recorded forward has entered a backward pass."""
        return any(forward.factor is not None for forward in self._forwards)

    def objective(self, scale: float = 1.0) -> Objective:
        """The loss whose gradient the backward passes have added up.

        Args:
            scale: by which a GradScaler multiplied it.
        """
        return Objective.from_forwards(
            [
                replace(forward.record, weight=float(forward.factor) / scale)
                for forward in self._forwards
                if forward.factor is not None
            ]
        )

    def forget(self) -> None:
        """Forget all forwards, after the step."""
        self._forwards = []


def copy_batch(batch: Any) -> Any:
    """The same tensors in new containers, because a framework may remove items from those it gets."""
    if isinstance(batch, MutableMapping):
        copied = copy.copy(batch)
        for key, value in batch.items():
            copied[key] = copy_batch(value)
        return copied
    if isinstance(batch, list):
        copied = copy.copy(batch)
        copied[:] = map(copy_batch, batch)
        return copied
    if type(batch) is tuple:
        return tuple(map(copy_batch, batch))
    if isinstance(batch, tuple) and hasattr(batch, "_make"):
        return type(batch)._make(map(copy_batch, batch))  # pyright: ignore[reportAttributeAccessIssue]
    return batch
