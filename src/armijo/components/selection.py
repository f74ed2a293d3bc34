"""Selections: which components are searched at a step.

A *block* is a tuple of places that one search moves together, with one scalar over given ratios; every place outside
the block stays at the current parameters meanwhile. Components in no block move with the step size they have,
unless their last search failed: then they stay.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from armijo.errors import ConfigurationError
from armijo.families import check_part, inherits, is_whole
from armijo.search.memory import Memory
from armijo.search.values import Line, SearchResult

__all__ = ["Blocks", "Cycle", "EachAlone", "Every", "Jointly", "Selection"]

Blocks = tuple[tuple[int, ...], ...]


class Selection(Protocol):
    """Decides what a step searches. Derive from this class to write one; only `blocks` has to be written."""

    def defaults(self) -> Memory:
        """The numbers that the selection remembers from step to step, with their first values; none by default."""
        return {}

    def due(self, loss: Callable[[], float], step: int, memory: Memory) -> bool:
        """Whether to search at this step at all. By default True.

        It is asked before anything else is known of the step. Where it says no, `blocks` is not asked, and every
        component moves with the step size that it used last, or with its first step size where the search wants every
        step: otherwise the step costs what one of torch's optimizer costs.

        Args:
            loss: returns f_k(w_k), negated where the optimizer maximizes; the number is fetched if it is called.
            step: how many steps are finished, ≥ 0.
            memory: the values of `defaults()`; may be written to.
        """
        return True

    def expected_block(self, n: int, step: int, memory: Memory) -> tuple[int, ...] | None:
        """The first block that `blocks` is going to return, where that does not depend on the lines; None by default.

        It only saves time: the parameters are moved to its first trial while slopes are computed. If `blocks` returns
        another one, they are moved again.

        Args:
            n: the number of components.
            step: how many steps are finished, ≥ 0.
            memory: the values of `defaults()`; not to be changed.
        """
        return None

    @abstractmethod
    def blocks(self, lines: Sequence[Line], step: int, memory: Memory) -> Blocks:
        """The blocks to search at this step, in order; possibly none. Asked where a search is `due`.

        A place may be in several blocks. A later block starts from the step sizes that earlier ones found, and the
        last block that a place is in decides about it: `((0,), (1,), (0, 1))` searches two components alone and then
        tests their joint move.

        Args:
            lines: the line of each component, by place; at least one. Each holds the loss f_k(w_k) and its slope.
            step: how many steps are finished, ≥ 0.
            memory: the values of `defaults()`; may be written to.
        """
        ...

    def remember(self, searches: Sequence[SearchResult], step: int, memory: Memory) -> None:
        """Called once a step after its searches, also if there were none; may write to `memory`.

        Args:
            searches: what was searched at this step, in the order of the blocks.
            step: the number that `blocks` was given.
            memory: the values of `defaults()`.
        """
        return

    def merged(self, n: int, memory: Memory) -> None:
        """Called where two components become one, with the number n of components that are left."""
        return

    def moved_before(self, block: tuple[int, ...]) -> tuple[int, ...]:
        """Places that have moved already, with their step sizes and updates, while `block` is searched.

        By default none: the paper's equation tests each component with the others at w_k. They move by lr·η·u, without
        weight decay. None may be in the block itself.
        """
        return ()


@dataclass(frozen=True)
class Jointly(Selection):
    """One search over all components in every step."""

    def expected_block(self, n: int, step: int, memory: Memory) -> tuple[int, ...] | None:
        """All places, unless a subclass has changed `blocks`."""
        return tuple(range(n)) if inherits(self, Jointly, "blocks") else None

    def blocks(self, lines: Sequence[Line], step: int, memory: Memory) -> Blocks:
        """One block of all places."""
        return (tuple(range(len(lines))),)


@dataclass(frozen=True)
class _AfterJointSteps(Selection):
    joint_steps: int = 6

    def __post_init__(self) -> None:
        if not (is_whole(self.joint_steps) and self.joint_steps >= 0):
            raise ConfigurationError(f"joint_steps is {self.joint_steps!r}; it must be an integer of 0 or more.")


@dataclass(frozen=True)
class Cycle(_AfterJointSteps):
    """One component a step, in order, after some joint steps: the paper's schedule, at the price of one search a step.

    Args:
        joint_steps: how many steps are searched jointly at first, ≥ 0.

    Raises:
        ConfigurationError: if `joint_steps` is negative.

    Source:
        arXiv 2403.18506, PLASLS as released. The first step after the joint ones searches the first component.
    """

    def defaults(self) -> Memory:
        """`cycle_place`, the place to search next."""
        return {"cycle_place": 0}

    def expected_block(self, n: int, step: int, memory: Memory) -> tuple[int, ...] | None:
        """What `blocks` returns, unless a subclass has changed it."""
        if not inherits(self, Cycle, "blocks"):
            return None
        return tuple(range(n)) if step < self.joint_steps else (memory["cycle_place"] % n,)

    def blocks(self, lines: Sequence[Line], step: int, memory: Memory) -> Blocks:
        """All places at once during the joint steps, then one place."""
        n = len(lines)
        if step < self.joint_steps:
            return (tuple(range(n)),)
        # A user who relabels groups may have left fewer components.
        place = memory["cycle_place"] % n
        memory["cycle_place"] = (place + 1) % n
        return ((place,),)

    def merged(self, n: int, memory: Memory) -> None:
        """Take the place modulo the new number of components."""
        memory["cycle_place"] %= n


@dataclass(frozen=True)
class EachAlone(_AfterJointSteps):
    """Every component in every step, each searched alone from the same parameters, then all move together.

    It costs as many searches a step as there are components.

    Args:
        joint_steps: how many steps are searched jointly at first, ≥ 0.

    Raises:
        ConfigurationError: if `joint_steps` is negative.

    Source:
        arXiv 2403.18506, PLASLS as its text states it.
    """

    def expected_block(self, n: int, step: int, memory: Memory) -> tuple[int, ...] | None:
        """The first one that `blocks` returns, unless a subclass has changed it."""
        if not inherits(self, EachAlone, "blocks"):
            return None
        return tuple(range(n)) if step < self.joint_steps else (0,)

    def blocks(self, lines: Sequence[Line], step: int, memory: Memory) -> Blocks:
        """All places at once during the joint steps, then each place as a block of its own."""
        n = len(lines)
        return (tuple(range(n)),) if step < self.joint_steps else tuple((place,) for place in range(n))


@dataclass(frozen=True)
class Every(Selection):
    """Search at every m-th step only, the first included; between searches all move with the step size they have.

    A component whose last search failed stays until one succeeds. The moves between searches are not tested by any
    trial, and step sizes stay as they are meanwhile.

    Args:
        steps: m ≥ 1, from one search to the next.
        selection: what to search at those steps. It sees the number of searches as its number of steps.

    Raises:
        ConfigurationError: if m is less than 1.

    Examples:
        >>> [Every(3).due(lambda: 1.0, step, {}) for step in range(4)]
        [True, False, False, True]
    """

    steps: int
    selection: Selection = Jointly()

    def __post_init__(self) -> None:
        if not (is_whole(self.steps) and self.steps >= 1):
            raise ConfigurationError(
                f"Every({self.steps!r}) cannot count steps; from one search to the next there are 1 or more: Every(3), "
                "or Every(3, Cycle())."
            )
        check_part("selection", self.selection, "Every")

    def defaults(self) -> Memory:
        """What the inner selection remembers."""
        return self.selection.defaults()

    def due(self, loss: Callable[[], float], step: int, memory: Memory) -> bool:
        """At steps 0, m, 2m, …, if the inner selection agrees."""
        return step % self.steps == 0 and self.selection.due(loss, step // self.steps, memory)

    def expected_block(self, n: int, step: int, memory: Memory) -> tuple[int, ...] | None:
        """What the inner selection says, unless a subclass has changed `blocks`."""
        inner = self.selection
        return inner.expected_block(n, step // self.steps, memory) if inherits(self, Every, "blocks") else None

    def blocks(self, lines: Sequence[Line], step: int, memory: Memory) -> Blocks:
        """The inner selection's blocks."""
        return self.selection.blocks(lines, step // self.steps, memory)

    def remember(self, searches: Sequence[SearchResult], step: int, memory: Memory) -> None:
        """Hand the searches on, at the steps that the inner selection sees."""
        if step % self.steps == 0:
            self.selection.remember(searches, step // self.steps, memory)

    def merged(self, n: int, memory: Memory) -> None:
        """Hand the merge on."""
        self.selection.merged(n, memory)

    def moved_before(self, block: tuple[int, ...]) -> tuple[int, ...]:
        """What the inner selection says."""
        return self.selection.moved_before(block)
