"""The parameters under search, and the only code that writes them during a search."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import torch

__all__ = ["Snapshot"]

Tensors = list[torch.Tensor]


class Snapshot:
    """w₀ of the parameters under search, by place; leaving the context puts them back, bit for bit.

    Parameters are written in place and restored by copying: adding a step back would leave about one entry in a
    hundred off by a rounding error.

    Args:
        parameters: the parameters of each place. Memory: one copy of them.
    """

    def __init__(self, parameters: Mapping[int, Tensors]) -> None:
        self._parameters = {place: tensors for place, tensors in parameters.items() if tensors}
        self._start = {place: [p.detach().clone() for p in tensors] for place, tensors in self._parameters.items()}
        self._moved: set[int] = set()
        self._closed = False

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
        self._closed = True

    @torch.no_grad()
    def move(self, moves: Mapping[int, tuple[float, Tensors]]) -> None:
        """Put each place at w₀ - η·v; a place that is not named goes to w₀.

        Args:
            moves: for each place to move, η (finite) and a vector v for each of its parameters, of the same shapes.

        Raises:
            RuntimeError: the search is over.
        """
        if self._closed:
            raise RuntimeError("evaluate() was called after its search; a search evaluates before it returns.")
        self.restore()
        for place, (step_size, vectors) in moves.items():
            if place in self._parameters and step_size != 0:
                self._moved.add(place)
                torch._foreach_add_(self._parameters[place], vectors, alpha=-step_size)

    def differs(self) -> bool:
        """Whether a parameter is somewhere else than at w₀."""
        return any(
            not torch.equal(parameter, start)
            for place in self._moved
            for parameter, start in zip(self._parameters[place], self._start[place], strict=True)
        )

    @torch.no_grad()
    def restore(self) -> None:
        """Put every place back to w₀."""
        for place in tuple(self._moved):
            torch._foreach_copy_(self._parameters[place], self._start[place])
            self._moved.discard(place)
