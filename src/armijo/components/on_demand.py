"""Searches on demand: often while step sizes change, seldom while they fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from armijo.components.selection import Blocks, Jointly, Selection
from armijo.errors import ConfigurationError
from armijo.families import check_part, inherits, is_number, is_whole
from armijo.search.memory import Memory
from armijo.search.values import Line, SearchResult, Status

__all__ = ["OnDemand"]

_KEEP = 0.9
"""The share that running means keep of themselves at each step."""
_DROP = 0.5
"""A gain ratio below this share of the one before says that the loss has become more curved."""


@dataclass(frozen=True)
class OnDemand(Selection):
    """Search at every step at first, then only when the step size may be wrong, and at least at every m-th step.

    Numbers that exist anyway decide:

    - a search whose first trial was accepted doubles the number of steps to the next search, up to m;
    - a rejected trial, or a gain ratio (f_k - f(η))/(η·S) of less than half of that at the search before, halves it;
    - a search that found nothing is followed by one at the next step;
    - a loss above the running mean of the losses by more than `surprise` times their mean deviation is searched.

    Between searches every component moves with its step size, untested, and the step costs what one of
    `torch.optim.AdamW(fused=True)` costs, unless the guess wants the slopes of each step (`Guess.every_step`).

    Args:
        every: m, the most steps from one search to the next, ≥ 1.
        always: how many steps are searched at first, ≥ 0.
        surprise: how far above its mean a loss must lie to be searched, in mean deviations, > 0.
        selection: what to search. It sees the number of its turns as its number of steps.

    Raises:
        ConfigurationError: if an argument is out of its range.

    Examples:
        >>> import torch, armijo
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = armijo.AdamSLS([weight], selection=OnDemand(every=10))
    """

    every: int = 10
    always: int = 5
    surprise: float = 3.0
    selection: Selection = Jointly()

    def __post_init__(self) -> None:
        if not (is_whole(self.every) and self.every >= 1):
            raise ConfigurationError(
                f"every is {self.every!r}; from one search to the next there are 1 or more steps: OnDemand(every=10)."
            )
        if not (is_whole(self.always) and self.always >= 0):
            raise ConfigurationError(f"always is {self.always!r}; it must be a number of steps, 0 or more.")
        if not (is_number(self.surprise) and self.surprise > 0):
            raise ConfigurationError(f"surprise is {self.surprise!r}; it must be a positive number, for instance 3.")
        check_part("selection", self.selection, "OnDemand")

    def defaults(self) -> Memory:
        """Steps between searches and since the last one, the inner selection's turns, running means, the gain ratio."""
        return {
            "demand_wait": 1,
            "demand_since": 0,
            "demand_turns": 0,
            "demand_losses": 0,
            "demand_loss": 0.0,
            "demand_deviation": 0.0,
            "demand_ratio": 0.0,
            **self.selection.defaults(),
        }

    def due(self, loss: Callable[[], float], step: int, memory: Memory) -> bool:
        """At the first steps, when the wait is over, or when the loss surprises."""
        memory["demand_since"] += 1
        if memory["demand_turns"] < self.always or memory["demand_since"] >= memory["demand_wait"]:
            return self._inner_due(loss, memory)
        value, limit = loss(), memory["demand_loss"] + self.surprise * memory["demand_deviation"]
        surprised = memory["demand_losses"] >= self.always and value > limit
        due = surprised and self._inner_due(loss, memory)
        if not due:
            self._note(value, memory)
        return due

    def _inner_due(self, loss: Callable[[], float], memory: Memory) -> bool:
        due = self.selection.due(loss, memory["demand_turns"], memory)
        if due:
            memory["demand_since"] = 0
        else:
            memory["demand_turns"] += 1
        return due

    def expected_block(self, n: int, step: int, memory: Memory) -> tuple[int, ...] | None:
        """What the inner selection says, unless a subclass has changed `blocks`."""
        inner = self.selection
        return inner.expected_block(n, memory["demand_turns"], memory) if inherits(self, OnDemand, "blocks") else None

    def blocks(self, lines: Sequence[Line], step: int, memory: Memory) -> Blocks:
        """The inner selection's blocks."""
        return self.selection.blocks(lines, memory["demand_turns"], memory)

    def remember(self, searches: Sequence[SearchResult], step: int, memory: Memory) -> None:
        """Set the wait after a search, and hand the searches on."""
        if memory["demand_since"]:
            return
        self.selection.remember(searches, memory["demand_turns"], memory)
        memory["demand_turns"] += 1
        if not searches:
            return
        self._note(searches[0].line.loss, memory)
        fits = all(_at_once(search) for search in searches)
        ratio = min(map(_gain_ratio, searches))
        steady = fits and ratio >= _DROP * memory["demand_ratio"]
        failed = any(search.outcome.step_size == 0 for search in searches)
        wait = memory["demand_wait"]
        memory["demand_wait"] = 1 if failed else min(2 * wait, self.every) if steady else max(wait // 2, 1)
        memory["demand_ratio"] = ratio

    def merged(self, n: int, memory: Memory) -> None:
        """Hand the merge on."""
        self.selection.merged(n, memory)

    def moved_before(self, block: tuple[int, ...]) -> tuple[int, ...]:
        """What the inner selection says."""
        return self.selection.moved_before(block)

    def _note(self, loss: float, memory: Memory) -> None:
        if not memory["demand_losses"]:
            memory["demand_loss"] = loss
        memory["demand_losses"] += 1
        deviation = abs(loss - memory["demand_loss"])
        memory["demand_deviation"] += (1 - _KEEP) * (deviation - memory["demand_deviation"])
        memory["demand_loss"] += (1 - _KEEP) * (loss - memory["demand_loss"])


def _at_once(search: SearchResult) -> bool:
    return search.outcome.status is Status.ACCEPTED and len(search.trials) == 1


def _gain_ratio(search: SearchResult) -> float:
    promised = search.outcome.step_size * search.line.slope
    if search.outcome.loss is None or promised <= 0:
        return 0.0
    return (search.line.loss - search.outcome.loss) / promised
