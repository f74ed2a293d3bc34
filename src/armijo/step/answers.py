"""Answers of parts, checked: one that cannot be used raises a sentence that names the part, and the step is undone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from armijo.components.merging import Merge
from armijo.errors import ConfigurationError
from armijo.families import is_number, is_whole
from armijo.search.values import Outcome, Status, Trial

if TYPE_CHECKING:
    from armijo.optimizer import LineSearch

__all__ = [
    "checked_blocks",
    "checked_due",
    "checked_expected",
    "checked_merge",
    "checked_moved_before",
    "checked_outcome",
]


def checked_blocks(optimizer: LineSearch, selected: Any, n: int) -> tuple[tuple[int, ...], ...]:
    """A selection's blocks among n components."""
    try:
        blocks = tuple(tuple(block) for block in selected)
    except TypeError:
        raise ConfigurationError(
            f"{optimizer.selection!r} selected {selected!r}. It must return a tuple of blocks, each a tuple of places, "
            "for instance ((0, 1),)."
        ) from None
    for block in blocks:
        if not block or len(set(block)) != len(block) or not all(is_whole(place) and 0 <= place < n for place in block):
            raise ConfigurationError(
                f"{optimizer.selection!r} selected the block {block}. A block is a tuple of places in 0..{n - 1}, at "
                "least one, and no place occurs twice in it."
            )
    return blocks


def checked_due(optimizer: LineSearch, due: Any) -> bool:
    """A selection's answer whether to search."""
    if not isinstance(due, bool):
        raise ConfigurationError(f"{optimizer.selection!r} answered due() with {due!r}; it must return True or False.")
    return due


def checked_expected(optimizer: LineSearch, block: Any, n: int) -> tuple[int, ...]:
    """The block that a selection expects to search first, () where it does not know."""
    return () if block is None else checked_blocks(optimizer, (block,), n)[0]


def checked_moved_before(optimizer: LineSearch, block: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The places that a selection says have moved before a block."""
    answer: Any = optimizer.selection.moved_before(block)
    moved = answer if isinstance(answer, tuple) else (answer,)
    if not all(is_whole(place) and 0 <= place < n and place not in block for place in moved):
        raise ConfigurationError(
            f"{optimizer.selection!r} says that {answer} have moved before the block {block}. It must return a tuple "
            f"of places in 0..{n - 1} outside of the block."
        )
    return moved


def checked_outcome(optimizer: LineSearch, outcome: Any, trials: Sequence[Trial]) -> Outcome:
    """What a search found."""
    if not isinstance(outcome, Outcome) or not isinstance(outcome.status, Status):
        raise ConfigurationError(f"{optimizer.search!r} returned {outcome!r}; it must return an Outcome with a Status.")
    if not (isinstance(outcome.step_size, Real | torch.Tensor) and 0 <= float(outcome.step_size) < math.inf):
        raise ConfigurationError(
            f"{optimizer.search!r} found the step size {outcome.step_size}. It must be a finite number, 0 to stay."
        )
    step_size = float(outcome.step_size)
    if outcome.status is Status.ACCEPTED and all(trial.step_size != step_size for trial in trials):
        raise ConfigurationError(
            f"{optimizer.search!r} accepted the step size {step_size}, which it did not evaluate. "
            "Evaluate it before, or return it with Status.UNSEARCHED."
        )
    if outcome.status is Status.NONFINITE:
        raise ConfigurationError(
            f"{optimizer.search!r} returned the status nonfinite, which is for the start of a step; return exhausted."
        )
    return replace(outcome, step_size=step_size)


def checked_merge(optimizer: LineSearch, merge: Any, n: int) -> Merge | None:
    """A merging's proposal among n components."""
    if merge is None:
        return None
    kinds = isinstance(merge, Merge) and is_whole(merge.kept) and is_whole(merge.absorbed)
    if not (kinds and is_number(merge.step_size)) or not (
        0 <= merge.kept < merge.absorbed < n and 0 < merge.step_size < math.inf
    ):
        raise ConfigurationError(
            f"{optimizer.merging!r} proposed {merge!r}. It must be a Merge with places 0 ≤ kept < absorbed < {n} and a "
            "finite step size > 0."
        )
    return replace(merge, step_size=float(merge.step_size))
