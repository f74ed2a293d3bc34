"""What every direction offers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from armijo.directions.kernel import Kernel

__all__ = ["Direction", "ParameterState", "Tensors", "Workspace"]

Tensors = list[torch.Tensor]
ParameterState = dict[str, Any]
"""`optimizer.state[p]`: "step" (a float32 scalar on the CPU, torch's t) and the moments."""


class Workspace:
    """Memory to compute in, kept from step to step and shared by kernels: what lies there lasts for one call.

    All numbers in it are finite: after a gradient that is not, an optimizer takes another workspace.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[torch.device, torch.dtype, int], torch.Tensor] = {}

    def rows(self, n: int, size: int, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Some rows of so many numbers, of the device and dtype of a tensor."""
        key = (like.device, like.dtype, n)
        if key not in self._rows or self._rows[key].shape[1] < size:
            self._rows[key] = torch.zeros(n, size, dtype=like.dtype, device=like.device)
        return tuple(row[:size] for row in self._rows[key])


class Direction(Protocol):
    """A direction d to search along and an update u to apply, w ← w - η·u, for one parameter group at a time.

    Neither depends on a step size. `search_direction` reads the moments and writes none of them, so that a search can
    be abandoned; `update` writes them, in place and without allocating.

    Derive from this class to write a direction; `search_direction` and `update` have to be written, and `moments`
    where there are some.
    """

    def defaults(self) -> dict[str, Any]:
        """The hyperparameters that a parameter group may override, with their values; none by default."""
        return {}

    def validate(self, group: Mapping[str, Any]) -> None:
        """Raise `ConfigurationError` if the group's hyperparameters cannot be used."""
        return

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Fresh moments of one parameter, all zero, of its shape, dtype and device; none by default."""
        return {}

    @abstractmethod
    def search_direction(self, grads: Tensors, states: list[ParameterState], group: Mapping[str, Any]) -> Tensors:
        """The directions d to search along.

        Args:
            grads: the gradients, one for each parameter; not to be changed.
            states: the parameters' states; not to be changed. "step" counts the steps before this one.
            group: the parameter group.

        Returns:
            One direction for each gradient, of its shape: new tensors, or the gradients themselves.
        """
        ...

    @abstractmethod
    def update(
        self, grads: Tensors, states: list[ParameterState], scratch: Tensors, group: Mapping[str, Any]
    ) -> Tensors:
        """Take the gradients into the moments and return the updates u to apply.

        It runs in the commit, so what it raises cannot be undone; before the first step of parameters it is tried on
        copies of a few states, one for each number of dimensions in the group. The updates have the lengths of the
        search directions, for which the step size was found: a momentum is an average, not a sum.

        Args:
            grads: the gradients, one for each parameter; not to be changed.
            states: the parameters' states; "step" counts this step already.
            scratch: what `search_direction` returned; may be overwritten and returned.
            group: the parameter group.
        """
        ...

    def record_step(self, states: list[ParameterState], updates: Tensors, step_size: float) -> None:
        """Called in the commit with the step that was taken, w ← w - step_size·u, where step_size = lr·η.

        Parameters without a gradient that have a state stay; they are told so with no updates and the step size 0.

        Args:
            states: the parameters' states, which may be written.
            updates: the updates u, one for each state; not to be changed. None of them where `step_size` is 0 and the
                parameters have no gradient.
            step_size: ≥ 0, and 0 where the component stayed. Weight decay is not included.
        """
        return

    def probes(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        """Further vectors v, by name: each search gets ⟨∇f(w), v⟩ in `Line.derivatives`, and may evaluate along them.

        Args:
            states: the parameters' states; not to be changed.
            group: the parameter group.

        Returns:
            For each name one vector for each state; the names are the same for all groups. None by default.
        """
        return {}

    def past_gradients(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        """Gradients h of other steps, by name: each search gets their slope along d, ⟨h, d⟩, in `Line.derivatives`.

        Args:
            states: the parameters' states; not to be changed.
            group: the parameter group.

        Returns:
            For each name one gradient for each state, of its parameter's shape and dtype; the names are the same for
            all groups, and others than those of the probes. None by default.
        """
        return {}

    def updates_along_search(self, group: Mapping[str, Any]) -> bool:
        """Whether u = d, to the last bit: then an accepted trial is where the step ends, and nothing is moved again.

        Args:
            group: the parameter group.

        Returns:
            False by default, which is never wrong.
        """
        return False

    def kernel(
        self,
        parameters: Tensors,
        grads: Tensors,
        states: list[ParameterState],
        group: Mapping[str, Any],
        workspace: Workspace,
    ) -> Kernel | None:
        """The same arithmetic, up to a rounding error, in fewer passes over memory. None by default.

        It takes the place of `search_direction`, `update` and `record_step` for these tensors in this step.

        Args:
            parameters: the parameters that have a gradient, at least one; not to be changed yet.
            grads: their gradients; not to be changed.
            states: their states; not to be changed before the commit. "step" counts the steps before this one.
            group: the parameter group.
            workspace: memory to compute in.
        """
        return None
