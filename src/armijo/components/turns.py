"""Turns: which components are searched at a step (layer L1: places and counts, no tensors).

A *block* is a tuple of places that one search moves together, with one scalar over given ratios; every place outside
the block stays at the current parameters meanwhile. Components in no block move with the step size they have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from armijo.errors import ConfigurationError

__all__ = ["Cycle", "EachInTurn", "Jointly", "Turn"]

Blocks = tuple[tuple[int, ...], ...]


class Turn(Protocol):
    """Decides what a step searches from three numbers that lie in the checkpoint."""

    def blocks(self, n: int, turn: int, step: int) -> Blocks:
        """The blocks to search, for `n` ≥ 1 components, the place `turn` in 0..n-1, after `step` ≥ 0 finished steps."""
        ...

    def advance(self, n: int, turn: int, step: int) -> int:
        """The place whose turn is next, in 0..n-1."""
        ...


@dataclass(frozen=True, slots=True)
class Jointly:
    """One search over all components in every step."""

    def blocks(self, n: int, turn: int, step: int) -> Blocks:
        """One block of all places."""
        return (tuple(range(n)),)

    def advance(self, n: int, turn: int, step: int) -> int:
        """A joint step has no turn."""
        return turn


@dataclass(frozen=True, slots=True)
class Cycle:
    """One component a step, in order, after some joint steps: the paper's schedule, at the price of one search a step.

    Args:
        joint_steps: how many steps are searched jointly at first, ≥ 0.

    Raises:
        ConfigurationError: if `joint_steps` is negative.

    Source:
        arXiv 2403.18506, PLASLS as released. The first step after the joint ones searches the first component.
    """

    joint_steps: int = 6

    def __post_init__(self) -> None:
        _check_joint_steps(self.joint_steps)

    def blocks(self, n: int, turn: int, step: int) -> Blocks:
        """All places at once during the joint steps, then the one place whose turn it is."""
        return (tuple(range(n)),) if step < self.joint_steps else ((turn,),)

    def advance(self, n: int, turn: int, step: int) -> int:
        """The next place after a step of the cycle; a joint step has no turn."""
        return turn if step < self.joint_steps else (turn + 1) % n


@dataclass(frozen=True, slots=True)
class EachInTurn:
    """Every component in every step, each searched alone from the same parameters, then all move together.

    It costs as many searches a step as there are components.

    Args:
        joint_steps: how many steps are searched jointly at first, ≥ 0.

    Raises:
        ConfigurationError: if `joint_steps` is negative.

    Source:
        arXiv 2403.18506, PLASLS as its text states it.
    """

    joint_steps: int = 6

    def __post_init__(self) -> None:
        _check_joint_steps(self.joint_steps)

    def blocks(self, n: int, turn: int, step: int) -> Blocks:
        """All places at once during the joint steps, then each place as a block of its own."""
        return (tuple(range(n)),) if step < self.joint_steps else tuple((place,) for place in range(n))

    def advance(self, n: int, turn: int, step: int) -> int:
        """Everything is searched, so nothing takes turns."""
        return turn


def _check_joint_steps(joint_steps: int) -> None:
    if joint_steps < 0:
        raise ConfigurationError(f"joint_steps is {joint_steps}; it must be 0 or more.")
