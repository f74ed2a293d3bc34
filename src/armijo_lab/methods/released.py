"""PLASLS with the order of updates of its released code, which a study compares with the paper's equation.

In the cyclic phase of the released code, components are updated one after the other while the search runs. When
component l is searched, the components before it have already moved along their momentum, untested, and the trials are
compared with the loss from before they moved. If those moves raise the loss of the batch, no step size can pass.
`armijo.paper.PLASLS` searches first, from w_k, as in the paper's equation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

from torch.optim.optimizer import ParamsT

import armijo
from armijo import Memory, paper

__all__ = ["MeasuredBacktracking", "ReleasedCycle", "ReleasedPLASLS"]


@dataclass(frozen=True)
class ReleasedCycle(armijo.Cycle):
    """A cycle in which the components before the searched one have moved already.

    In a joint step the released code moves everything at once, as the library does.
    """

    def moved_before(self, block: tuple[int, ...]) -> tuple[int, ...]:
        """The places before the searched one."""
        return tuple(range(block[0])) if len(block) == 1 else ()


@dataclass(frozen=True)
class MeasuredBacktracking(armijo.PaperBacktracking):
    """The paper's backtracking, which evaluates its starting point, η = 0, after a search that failed.

    There the components before the searched one have moved and the searched one has not; the search compared its
    trials with f_k instead.
    """

    def find(
        self,
        line: armijo.Line,
        first: float,
        evaluate: armijo.Evaluate,
        violation: Callable[[float, float], float],
        memory: Memory,
    ) -> armijo.Outcome:
        """Contract as the paper does, and measure the starting point if nothing passes."""
        outcome = armijo.PaperBacktracking.find(self, line, first, evaluate, violation, memory)
        if outcome.status is armijo.Status.EXHAUSTED:
            evaluate(0.0)
        return outcome


class ReleasedPLASLS(armijo.LineSearch):
    """`armijo.paper.PLASLS` in the released code's order.

    Args:
        params: Labelled groups, as `armijo.split` makes them.
        joint_steps: How many steps search all components together at first, ≥ 0.
        merge_below: λ ≥ 0.
        numbers: The keywords of `armijo.paper.backtracking`.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        joint_steps: int = 6,
        merge_below: float = 1e-12,
        **numbers: Unpack[paper.SearchNumbers],
    ) -> None:
        found = paper.backtracking(**numbers)
        super().__init__(
            params,
            direction=armijo.AdamDirection(),
            search=MeasuredBacktracking(found.criterion, found.guess, found.shrink, found.max_trials),
            selection=ReleasedCycle(joint_steps),
            merging=armijo.MergeSmallest(merge_below),
            partition=armijo.ByLabel(),
        )
