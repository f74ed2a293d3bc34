"""Adam's arithmetic by the kernel that `torch.optim.AdamW(fused=True)` calls, with no direction kept in memory.

A CPU waits for memory here, not for arithmetic. So d is computed out of g and v wherever it is needed, in parts that
stay in the cache, and thrown away: that costs less than to write it down and to read it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch

from armijo.directions.base import ParameterState, Tensors, Workspace
from armijo.directions.kernel import Term

__all__ = ["FusedAdamKernel"]

_PART = {"cpu": 1 << 18}
"""Numbers in a part: a megabyte of float32 for each of gradient, moments, direction and parameter."""
_PART_ELSEWHERE = 1 << 23
"""A device of its own has no cache to stay in, and wants few calls."""
_LONGEST_LERP = 1e6
"""A point further away than this may have overflowed, and nothing between it and w₀ can be found from it."""
_SHORTEST_LERP = 0.1
"""A shorter part of the way would have lost digits: its weight is rounded to the parameters' format."""
_LARGE = 1 << 16
"""Numbers in a tensor from which on its slope is estimated, where an estimate will do."""
_BLOCK, _EVERY = 16, 499
"""An estimate reads that many numbers of each so many. A line of the cache, so that as little as possible is read in
vain; and an odd distance, so that they are not the same columns of each row."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Some tensors of a group, or a piece of a large one, flat, with scratch of the same shapes.

    Args:
        low: its first piece, among all pieces of the group.
        high: the piece after its last.
        owners: the tensor that each piece comes from.
        grads: g.
        squares: v.
        directions: scratch for d.
        means: scratch for m.
        new_squares: scratch for v'.
    """

    low: int
    high: int
    owners: list[int]
    grads: Tensors
    squares: Tensors
    directions: Tensors
    means: Tensors
    new_squares: Tensors


class FusedAdamKernel:
    """d = P·g from v' = β2·v + (1-β2)·g², and the step of AdamW.

    Args:
        grads: the gradients.
        states: the parameters' states: "step", "exp_avg_sq", and "exp_avg" where it is kept.
        group: the parameter group.
        workspace: memory to compute in.
    """

    def __init__(
        self, grads: Tensors, states: list[ParameterState], group: Mapping[str, Any], workspace: Workspace
    ) -> None:
        self._device = grads[0].device
        self._part = _PART.get(self._device.type, _PART_ELSEWHERE)
        self._beta1, self._beta2 = map(float, group["betas"])
        self._eps = float(group["eps"])
        self._grads = grads
        self._states = states
        self._squares = [state["exp_avg_sq"] for state in states]
        self._means = [state["exp_avg"] for state in states if "exp_avg" in state]
        self._workspace = workspace
        self._kept: Tensors = []
        self.stays = self._beta1 == 0
        # With ε = 0 the direction may not be finite where the gradient is.
        self.sums_gradients = self._eps > 0

    @staticmethod
    def takes(
        parameters: Tensors, grads: Tensors, states: list[ParameterState], devices: Sequence[str] = ("cpu",)
    ) -> bool:
        """Whether the kernel can serve these tensors: on such a device, dense, in single or double precision, alike."""
        if not parameters or parameters[0].dtype not in (torch.float32, torch.float64):
            return False
        dtype, device = parameters[0].dtype, parameters[0].device
        moments = (moment for state in states for name, moment in state.items() if name != "step")
        return device.type in devices and all(
            type(tensor) in (torch.Tensor, torch.nn.Parameter)
            and tensor.dtype == dtype
            and tensor.device == device
            and not tensor.is_neg()
            and tensor.is_contiguous()
            for tensors in (parameters, grads, moments)
            for tensor in tensors
        )

    def slopes(self, past: tuple[Tensors, ...] = ()) -> list[list[Term]]:
        """Σ g²·P of each piece, and Σ h·P·g."""
        steps, pieces = self._steps(ahead=1), [self._pieces(gradients) for gradients in past]
        return _joined(len(past), [self._slopes_of(part, steps, pieces) for part in self._parts])

    def slopes_ahead(
        self, parameters: Tensors, start: Tensors, step_size: float, past: tuple[Tensors, ...] = ()
    ) -> list[list[Term]]:
        """`slopes`; each part of the parameters is copied and moved while its direction is at hand."""
        steps, pieces = self._steps(ahead=1), [self._pieces(gradients) for gradients in past]
        terms: list[list[list[Term]]] = []
        moved, saved = self._pieces(parameters), self._pieces(start)
        high = 0
        try:
            for part in self._parts:
                terms.append(self._slopes_of(part, steps, pieces))
                torch._foreach_copy_(saved[part.low : part.high], moved[part.low : part.high])
                high = part.high
                torch._foreach_add_(moved[part.low : part.high], part.directions, alpha=-step_size)
        except BaseException:
            if high:
                torch._foreach_copy_(moved[:high], saved[:high])
            raise
        return _joined(len(past), terms)

    def keep_gradients(self, into: Tensors) -> bool:
        """With β1 = 0 the first moment that the kernel writes is the gradient."""
        if self._means or not all(tensor.is_contiguous() for tensor in into):
            return False
        self._kept = into
        return True

    def estimates(self, past: tuple[Tensors, ...] = ()) -> list[list[Term]] | None:
        """`slopes` of some numbers of the large tensors, others in each step, times the share that they are.

        With ε = 0, d may be NaN where nobody looks: there is no estimate then.
        """
        large = [grad.numel() >= _LARGE for grad in self._grads]
        if not (any(large) and self._eps > 0):
            return None
        _ = self._parts  # the commit needs them, and allocates nothing
        starts = [int(state["step"]) % (_EVERY // _BLOCK) * _BLOCK for state in self._states]

        def read(tensors: Tensors) -> Tensors:
            whole = zip(tensors, starts, large, strict=True)
            return [_sample(tensor, start) if cut else tensor for tensor, start, cut in whole]

        grads, squares = read(self._grads), read(self._squares)
        states = [{"step": state["step"], "exp_avg_sq": v} for state, v in zip(self._states, squares, strict=True)]
        group = {"betas": (0.0, self._beta2), "eps": self._eps}
        terms = FusedAdamKernel(grads, states, group, self._workspace).slopes(tuple(map(read, past)))
        weights = [whole.numel() / max(some.numel(), 1) for whole, some in zip(self._grads, grads, strict=True)]
        slopes, *others = [[(i, weights[i] * term) for i, term in each] for each in terms]
        # What is not read may be NaN or infinite as well.
        finite = [(i, 0.0 * grad.sum()) for i, grad in enumerate(self._grads) if large[i]]
        return [slopes + finite, *others]

    def _slopes_of(self, part: _Part, steps: Tensors, past: Sequence[Tensors]) -> list[list[Term]]:
        """The slopes of each piece; d lies in `part.directions` afterwards."""
        torch._foreach_copy_(part.new_squares, part.squares)
        counts = [steps[i] for i in part.owners]
        # A step of -1, with a weight decay that leaves nothing of what was there.
        self._adamw(part.directions, part.grads, part.means, part.new_squares, counts, -1.0, weight_decay=-1.0)
        gradients = [part.grads, *(pieces[part.low : part.high] for pieces in past)]
        return [list(zip(part.owners, map(torch.dot, each, part.directions), strict=True)) for each in gradients]

    def move(self, parameters: Tensors, start: Tensors, step_size: float, at: float | None) -> None:
        """Write w₀ - η·d into the parameters; a shorter step than the last one is found between that and w₀."""
        if at and abs(at) < _LONGEST_LERP and _SHORTEST_LERP <= step_size / at < 1:
            torch._foreach_lerp_(parameters, start, 1 - step_size / at)
            return
        if at != 0:
            torch._foreach_copy_(parameters, start)
        steps, moved = self._steps(ahead=1), self._pieces(parameters)
        for part in self._parts:
            torch._foreach_copy_(part.new_squares, part.squares)
            moving, counts = moved[part.low : part.high], [steps[i] for i in part.owners]
            self._adamw(moving, part.grads, part.means, part.new_squares, counts, step_size)
        _count_as_written(parameters)

    def sums(self) -> list[torch.Tensor]:
        """The sum of each gradient: finite where the gradient is."""
        if not self._means:
            _ = self._parts  # the commit needs them, and allocates nothing
        return [grad.sum() for grad in self._grads]

    def commit(self, parameters: Tensors, step_size: float, weight_decay: float) -> None:
        """Take one step of AdamW."""
        if step_size == 0:
            if self._means:
                torch._foreach_lerp_(self._means, self._grads, 1 - self._beta1)
            torch._foreach_mul_(self._squares, self._beta2)
            torch._foreach_addcmul_(self._squares, self._grads, self._grads, 1 - self._beta2)
            return
        steps = self._steps()
        if self._means:
            numbers = step_size, weight_decay, self._beta1
            self._adamw(parameters, self._grads, self._means, self._squares, steps, *numbers)
        else:
            moved, kept = self._pieces(parameters), self._pieces(self._kept)
            for part in self._parts:
                counts, means = [steps[i] for i in part.owners], kept[part.low : part.high] or part.means
                moving = moved[part.low : part.high]
                self._adamw(moving, part.grads, means, part.squares, counts, step_size, weight_decay)
        _count_as_written(parameters)

    def commit_moments(self, parameters: Tensors, start: Tensors, step_size: float) -> None:
        """Write v ← β2·v + (1-β2)·g², and m ← β1·m + (1-β1)·g where it is kept."""
        steps, kept = self._steps(), self._pieces(self._means or self._kept)
        for part in self._parts:
            counts, means = [steps[i] for i in part.owners], kept[part.low : part.high] or part.means
            self._adamw(part.directions, part.grads, means, part.squares, counts, -1.0, -1.0, self._beta1)

    @cached_property
    def _parts(self) -> list[_Part]:
        grads, squares = self._pieces(self._grads), self._pieces(self._squares)
        owners = [i for i, grad in enumerate(self._grads) for _ in range(0, max(grad.numel(), 1), self._part)]
        sizes = [piece.numel() for piece in grads]
        bounds, total = [0], 0
        for number, size in enumerate(sizes):
            if total + size > self._part:
                bounds.append(number)
                total = 0
            total += size
        bounds.append(len(sizes))
        longest = max(sum(sizes[low:high]) for low, high in pairwise(bounds))
        scratch = self._workspace.rows(3, longest, grads[0])
        return [
            _Part(low, high, owners[low:high], grads[low:high], squares[low:high], *_cut(scratch, sizes[low:high]))
            for low, high in pairwise(bounds)
        ]

    def _steps(self, ahead: int = 0) -> Tensors:
        """Each parameter's number of this step, which "step" counts already or, `ahead` of the commit, not yet."""
        if not ahead and self._device.type == "cpu":
            return [state["step"] for state in self._states]
        counts = [float(state["step"]) + ahead for state in self._states]
        tensors = {count: torch.tensor(count, dtype=torch.float32, device=self._device) for count in set(counts)}
        return [tensors[count] for count in counts]

    def _pieces(self, tensors: Tensors) -> Tensors:
        """The tensors in order, flat, the large ones cut up."""
        pieces: Tensors = []
        for tensor in tensors:
            flat = tensor if tensor.ndim == 1 else tensor.view(-1)
            pieces += flat.split(self._part) if flat.numel() > self._part else (flat,)
        return pieces

    def _adamw(
        self,
        parameters: Tensors,
        grads: Tensors,
        means: Tensors,
        squares: Tensors,
        steps: Tensors,
        step_size: float,
        weight_decay: float = 0.0,
        beta1: float = 0.0,
    ) -> None:
        torch._fused_adamw_(
            parameters,
            grads,
            means,
            squares,
            [],
            steps,
            lr=step_size,
            beta1=beta1,
            beta2=self._beta2,
            weight_decay=weight_decay,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
        )


def _sample(tensor: torch.Tensor, start: int) -> torch.Tensor:
    """A copy of the numbers from `start` on in each stretch of `_EVERY`; what is left at the end is passed over."""
    flat = tensor.view(-1)
    stretches = flat[: flat.numel() // _EVERY * _EVERY].view(-1, _EVERY)
    return stretches[:, start : start + _BLOCK].reshape(-1)


def _joined(n_past: int, parts: Sequence[list[list[Term]]]) -> list[list[Term]]:
    """The terms of all parts: those of the slopes, and those of each list of past gradients."""
    return [[term for part in parts for term in part[i]] for i in range(1 + n_past)]


def _count_as_written(tensors: Tensors) -> None:
    """Count a write that the kernel does not count: by these counts autograd and our guards see that tensors change."""
    for tensor in tensors:
        torch.autograd.graph.increment_version(tensor)


def _cut(rows: Sequence[torch.Tensor], sizes: list[int]) -> list[Tensors]:
    """Each row, cut into pieces of these sizes."""
    total = sum(sizes)
    cut = [row if row.numel() == total else row[:total] for row in rows]
    return [[row] if len(sizes) == 1 else list(row.split(sizes)) for row in cut]
