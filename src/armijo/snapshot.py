"""The parameters under search, and the only code that writes them during a search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Protocol

import torch

__all__ = ["Copies", "Ray", "Snapshot"]

Tensors = list[torch.Tensor]


class Ray(Protocol):
    """The points w₀ - η·v of some parameters; v need not lie in memory."""

    def move(self, parameters: Tensors, start: Tensors, step_size: float, at: float | None) -> None:
        """Write w₀ - η·v into the parameters.

        Args:
            parameters: the parameters.
            start: w₀.
            step_size: η, finite, not 0.
            at: the step size at which the parameters are now along v, 0 at w₀; None if they are elsewhere.
        """
        ...


class Foreseeing(Ray, Protocol):
    """A ray that computes its slope, and can move on the way."""

    def slopes_ahead(
        self, parameters: Tensors, start: Tensors, step_size: float, past: tuple[Tensors, ...] = ()
    ) -> list[list[tuple[int, torch.Tensor]]]:
        """The terms of ⟨g, d⟩, and those of ⟨h, d⟩ for each list of past gradients h.

        On the way w₀ is copied to `start`, and the parameters move to w₀ - η·d.

        If it raises, the parameters are at w₀.
        """
        ...


class Copies:
    """Memory for copies of parameters, kept from step to step on the CPU.

    Fresh memory costs a CPU more than the copy itself, one page fault after the other. Other devices have an allocator
    that keeps what is freed.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[object, ...], Tensors] = {}

    def take(self, like: torch.Tensor) -> torch.Tensor:
        """An uninitialized tensor of the same kind, shape and layout."""
        if free := self._free.get(_kind(like)):
            return free.pop()
        # Of a model that was converted nothing is kept.
        self._free = {kind: tensors for kind, tensors in self._free.items() if kind[0] == like.dtype}
        return torch.empty_like(like)

    def give_back(self, parameters: Tensors, copies: Tensors) -> None:
        """Keep what `take` has returned for these parameters for its next calls."""
        for parameter, copy in zip(parameters, copies, strict=True):
            if copy.device.type == "cpu":
                self._free.setdefault(_kind(parameter), []).append(copy)


def _kind(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride()


class Snapshot:
    """w₀ of the parameters under search, in sets; leaving the context puts them back, bit for bit, unless kept.

    Parameters are written in place and restored by copying: adding a step back would leave about one entry in a
    hundred off by a rounding error.

    Args:
        copies: where the memory comes from: one copy of all that is saved.
    """

    def __init__(self, copies: Copies | None = None) -> None:
        self._copies = copies or Copies()
        self._parameters: dict[int, Tensors] = {}
        self._start: dict[int, Tensors] = {}
        self._at: dict[int, tuple[Ray, float]] = {}

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
        for key, start in self._start.items():
            self._copies.give_back(self._parameters[key], start)
        self._start.clear()
        self._parameters.clear()

    @torch.no_grad()
    def save(self, parameters: Mapping[int, Tensors]) -> None:
        """Copy the sets that are not saved yet; they must be at w₀.

        Args:
            parameters: each set by a number, its key.
        """
        for key, tensors in parameters.items():
            if key not in self._start:
                start = [self._copies.take(p.detach()) for p in tensors]
                if tensors:
                    torch._foreach_copy_(start, tensors)
                self._parameters[key], self._start[key] = tensors, start

    @torch.no_grad()
    def move(self, moves: Mapping[int, tuple[float, Ray]]) -> None:
        """Put each saved set at w₀ - η·v; one that is not named goes to w₀.

        Args:
            moves: for each set to move, η (finite) and its ray.
        """
        self.restore(key for key in tuple(self._at) if key not in moves)
        for key, (step_size, ray) in moves.items():
            if step_size == 0:
                self.restore([key])
            elif self._parameters[key]:
                on, at = self._at.get(key, (ray, 0.0))
                if on is not ray or at != step_size:
                    # Until it has moved it may be anywhere.
                    self._at[key] = ray, math.nan
                    known = on is ray and not math.isnan(at)
                    ray.move(self._parameters[key], self._start[key], step_size, at if known else None)
                    self._at[key] = ray, step_size

    def move_ahead(
        self, key: int, parameters: Tensors, step_size: float, ray: Foreseeing, past: tuple[Tensors, ...] = ()
    ) -> list[list[tuple[int, torch.Tensor]]]:
        """Save a set and put it at w₀ - η·d while its slopes are computed; returns their terms."""
        start = [self._copies.take(p.detach()) for p in parameters]
        terms = ray.slopes_ahead(parameters, start, step_size, past)
        self._parameters[key], self._start[key] = parameters, start
        if parameters:
            self._at[key] = ray, step_size
        return terms

    def is_at(self, key: int, step_size: float, ray: Ray) -> bool:
        """Whether the set is where `move` has put it with this step size on this ray."""
        return key in self._at and self._at[key][0] is ray and self._at[key][1] == step_size

    def differs(self) -> bool:
        """Whether a parameter is somewhere else than at w₀."""
        return any(
            not torch.equal(parameter, start)
            for key in self._at
            for parameter, start in zip(self._parameters[key], self._start[key], strict=True)
        )

    @torch.no_grad()
    def restore(self, keys: Iterable[int] | None = None) -> None:
        """Put sets back to w₀, by default all."""
        for key in tuple(self._at) if keys is None else keys:
            if self._at.pop(key, None):
                torch._foreach_copy_(self._parameters[key], self._start[key])

    def keep(self, key: int) -> Tensors:
        """Leave a set where it is, and return w₀, which lasts until the context is left."""
        self._at.pop(key, None)
        return self._start[key]
