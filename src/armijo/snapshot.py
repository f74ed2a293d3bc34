"""The parameters under search, and the only code that writes them during a search (layer L2)."""

from __future__ import annotations

import math
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
        lines: for each place its parameters w and its directions d, lists of equal length and shapes. Memory: one
            copy of the parameters.
    """

    def __init__(self, lines: Mapping[int, tuple[Tensors, Tensors]]) -> None:
        self._lines = {place: line for place, line in lines.items() if line[0]}
        self._start = {place: [p.detach().clone() for p in line[0]] for place, line in self._lines.items()}
        self._moved: set[int] = set()

    @property
    def reach(self) -> float:
        """The largest step size that the parameters' number formats can hold; a longer one cannot be moved by."""
        dtypes = {parameter.dtype for parameters, _ in self._lines.values() for parameter in parameters}
        return min((torch.finfo(dtype).max for dtype in dtypes), default=math.inf)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    @torch.no_grad()
    def move(self, step_sizes: Mapping[int, float]) -> None:
        """Put each place at w₀ - η·d; a place that is not named goes to w₀.

        Args:
            step_sizes: η for each place to move, finite.
        """
        self.restore()
        for place, step_size in step_sizes.items():
            if place in self._lines and step_size != 0:
                parameters, directions = self._lines[place]
                self._moved.add(place)
                torch._foreach_add_(parameters, directions, alpha=-step_size)

    @torch.no_grad()
    def restore(self) -> None:
        """Put every place back to w₀."""
        for place in tuple(self._moved):
            torch._foreach_copy_(self._lines[place][0], self._start[place])
            self._moved.discard(place)
