"""The forwards of an update, recorded where a framework runs them, for a search over the same loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter

from armijo.evaluation.objective import Closure, Objective, RecordedForward

__all__ = ["Window", "copied"]


@dataclass
class _Forward:
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
        self._forwards: list[_Forward] = []

    def record(self, closure: Closure) -> Tensor:
        """Run a forward with gradients; its loss, for the backward pass of the framework."""
        recorder = Objective(self._modules)
        loss = recorder.baseline(closure)
        forward = _Forward(recorder.recorded_forwards[0])

        def look(grad: Tensor) -> None:
            # Whatever divides the loss afterwards, for accumulation or a GradScaler, is in its gradient.
            if self._parameters is not None and all(parameter.grad is None for parameter in self._parameters()):
                self._forwards = [other for other in self._forwards if other.factor is None]
            forward.factor = grad.detach()

        self._forwards.append(forward)
        loss.register_hook(look)
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
        """Begin anew, after the step."""
        self._forwards = []


def copied(batch: Any) -> Any:
    """The same tensors in containers of their own, since a framework may take things out of those it is given."""
    if isinstance(batch, MutableMapping):
        own = copy.copy(batch)
        for key, value in batch.items():
            own[key] = copied(value)
        return own
    if isinstance(batch, list):
        own = copy.copy(batch)
        own[:] = map(copied, batch)
        return own
    if type(batch) is tuple:
        return tuple(map(copied, batch))
    if isinstance(batch, tuple) and hasattr(batch, "_make"):
        return type(batch)._make(map(copied, batch))  # pyright: ignore[reportAttributeAccessIssue]
    return batch
