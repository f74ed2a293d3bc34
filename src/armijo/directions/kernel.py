"""Kernels: the arithmetic of one direction, in one parameter group and one step, as the step calls it."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from armijo.directions.base import Direction, ParameterState, Tensors

__all__ = ["Kernel", "StoredKernel", "StoredVectors", "Term", "dot"]

Term = tuple[int, torch.Tensor]
"""A scalar to be added up, and the place in the group of the parameter that it is of; several may be of one."""


class Kernel(Protocol):
    """The slope along d, the move to w₀ - η·d, and the commit, for the parameters of one group that have a gradient.

    `StoredKernel` calls the methods of a `Direction` and serves every one of them. A direction may bring a kernel that
    does the same arithmetic in fewer passes over memory, up to a rounding error: `Direction.kernel`.
    """

    stays: bool
    """Whether u = d: then a step that is taken as it was tested ends where its trial was."""

    def slopes(self, past: tuple[Tensors, ...] = ()) -> list[list[Term]]:
        """The terms of ⟨g, d⟩, and those of ⟨h, d⟩ for each list of past gradients h."""
        ...

    def estimates(self, past: tuple[Tensors, ...] = ()) -> list[list[Term]] | None:
        """Estimates of `slopes` that cost less, for steps without a search; None by default, where there are none.

        They are not finite where a gradient is not.
        """
        return None

    def slopes_ahead(
        self, parameters: Tensors, start: Tensors, step_size: float, past: tuple[Tensors, ...] = ()
    ) -> list[list[Term]]:
        """`slopes`; on the way w₀ is copied to `start`, and the parameters move to w₀ - η·d.

        If it raises, the parameters are at w₀.

        Args:
            parameters: the parameters, at w₀.
            start: tensors of their shapes.
            step_size: η.
            past: lists of past gradients, each as long as the list of gradients.
        """
        ...

    def keep_gradients(self, into: Tensors) -> bool:
        """Whether the commit of a step that moves is going to write the gradients there, which costs it nothing.

        Args:
            into: tensors of the gradients' shapes, dtypes and devices.
        """
        ...

    sums_gradients: bool
    """Whether ⟨g, d⟩ > 0 for every gradient but zero: a step without a search then needs `sums` alone, no slope."""

    def sums(self) -> list[torch.Tensor]:
        """The sum of each gradient, finite where the gradient is."""
        ...

    def move(self, parameters: Tensors, start: Tensors, step_size: float, at: float | None) -> None:
        """Write w₀ - η·d into the parameters.

        Args:
            parameters: the parameters.
            start: w₀.
            step_size: η, finite, not 0.
            at: the step size at which the parameters are now along d, 0 at w₀; None if they are elsewhere.
        """
        ...

    def commit(self, parameters: Tensors, step_size: float, weight_decay: float) -> None:
        """Take the gradients into the moments, and move: w ← (1 - η·λ)·w - η·u. "step" counts this step already.

        Args:
            parameters: the parameters, at w₀.
            step_size: lr·η; where it is 0 nothing moves.
            weight_decay: λ.
        """
        ...

    def commit_moments(self, parameters: Tensors, start: Tensors, step_size: float) -> None:
        """Take the gradients into the moments alone: the parameters have moved from `start` by `step_size` already."""
        ...


class StoredVectors:
    """A ray along vectors that lie in memory.

    Args:
        vectors: one for each parameter, of its shape.
    """

    def __init__(self, vectors: Tensors) -> None:
        self.vectors = vectors

    def move(self, parameters: Tensors, start: Tensors, step_size: float, at: float | None) -> None:
        """Write w₀ - η·v into the parameters."""
        if at != 0:
            torch._foreach_copy_(parameters, start)
        torch._foreach_add_(parameters, self.vectors, alpha=-step_size)


class StoredKernel(StoredVectors):
    """The kernel of any direction: d is computed once and kept until the commit.

    Args:
        direction: the direction.
        grads: the gradients.
        states: the parameters' states.
        group: the parameter group.
        directions: what `direction.search_direction` returned for them.
    """

    sums_gradients = False

    def __init__(
        self,
        direction: Direction,
        grads: Tensors,
        states: list[ParameterState],
        group: dict[str, Any],
        directions: Tensors,
    ) -> None:
        super().__init__(directions)
        self._direction = direction
        self._grads = grads
        self._states = states
        self._group = group
        self.stays = direction.updates_along_search(group)

    def slopes(self, past: tuple[Tensors, ...] = ()) -> list[list[Term]]:
        """⟨g, d⟩ of each parameter, and ⟨h, d⟩."""
        return [
            [(i, dot(h, d)) for i, (h, d) in enumerate(zip(gradients, self.vectors, strict=True))]
            for gradients in (self._grads, *past)
        ]

    def estimates(self, past: tuple[Tensors, ...] = ()) -> list[list[Term]] | None:
        """None: with d in memory the slopes cost little."""
        return None

    def slopes_ahead(
        self, parameters: Tensors, start: Tensors, step_size: float, past: tuple[Tensors, ...] = ()
    ) -> list[list[Term]]:
        """`slopes`, then the move."""
        terms = self.slopes(past)
        if parameters:
            torch._foreach_copy_(start, parameters)
            self.move(parameters, start, step_size, at=0.0)
        return terms

    def keep_gradients(self, into: Tensors) -> bool:
        """False: the direction's own `update` keeps what it wants."""
        return False

    def sums(self) -> list[torch.Tensor]:
        """The sum of each gradient."""
        return [grad.sum() for grad in self._grads]

    def commit(self, parameters: Tensors, step_size: float, weight_decay: float) -> None:
        """Call `update` and `record_step`, and move by what the former returned."""
        updates = self._updates(step_size)
        if step_size == 0:
            return
        if weight_decay != 0:
            torch._foreach_mul_(parameters, 1 - step_size * weight_decay)
        torch._foreach_add_(parameters, updates, alpha=-step_size)

    def commit_moments(self, parameters: Tensors, start: Tensors, step_size: float) -> None:
        """Call `update` and `record_step`."""
        self._updates(step_size)

    def _updates(self, step_size: float) -> Tensors:
        updates = self._direction.update(self._grads, self._states, self.vectors, self._group)
        self._direction.record_step(self._states, updates, step_size)
        return updates


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """⟨a, b⟩, a scalar tensor."""
    # Half precision would lose the sum; float32 and float64 add up well enough in their own.
    if a.dtype in (torch.float16, torch.bfloat16):
        a, b = a.float(), b.float()
    return torch.dot(a.reshape(-1), b.reshape(-1).to(a.dtype))
