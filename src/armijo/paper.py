"""The same three optimizers exactly as arXiv 2403.18506 has them, evaluation for evaluation (layer L3).

They are here to reproduce and to compare; for work take `armijo.AdamSLS`. Where the paper is
silent its released code decides, except for that code's departures from the paper's own equations, which `docs/`
lists. Every number is a keyword, so that every branch can be reached in a few steps:

- before a search, and at every step, η ← growth·η; the first trial of all is at growth·initial_step_size;
- while the test fails η ← shrink·η; after max_trials failures the step is taken with the next, untried one;
- no search where f_k = 0 or S < 1e-8: the grown η is used as it is;
- PLASLS searches all components jointly for `joint_steps` steps, then goes by its schedule, and merges the two
  components with the smallest η once the smallest lies below `merge_below`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import ParamsT

from armijo.components.merging import MergeSmallest, NeverMerge
from armijo.components.partition import ByLabel, Together
from armijo.components.turns import Cycle, Jointly, Turn
from armijo.directions.adam import Adam
from armijo.directions.gradient import Gradient
from armijo.optimizer import LineSearch
from armijo.search.backtracking import PaperBacktracking
from armijo.search.criteria import Armijo
from armijo.search.guesses import Growth

__all__ = ["PLASLS", "SGDSLS", "AdamSLS"]


def _line_parts(c: float, initial_step_size: float, growth: float, shrink: float, max_trials: int) -> dict[str, Any]:
    return {
        "criterion": Armijo(c),
        "search": PaperBacktracking(shrink, max_trials),
        "guess": Growth(initial_step_size, growth),
    }


class SGDSLS(LineSearch):
    """SGDSLS: f_k(w - η·g) ≤ f_k(w) - c·η·‖g‖², then w ← w - η·g.

    Args:
        params: parameters, groups or named parameters; one step size for all of them.
        c: sufficient decrease, 0 < c < 1.
        initial_step_size: η before the first growth, > 0.
        growth: the factor of η at every step, ≥ 1.
        shrink: the factor of η after a failed trial, 0 < shrink < 1.
        max_trials: the most trials of a search, ≥ 1.

    Raises:
        ConfigurationError: if an argument or a group cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        c: float = 0.1,
        initial_step_size: float = 0.1,
        growth: float = 2 ** (1 / 500),
        shrink: float = 0.9,
        max_trials: int = 100,
    ) -> None:
        super().__init__(
            params,
            direction=Gradient(),
            **_line_parts(c, initial_step_size, growth, shrink, max_trials),
            turn=Jointly(),
            merging=NeverMerge(),
            partition=Together(),
        )


class AdamSLS(LineSearch):
    """ADAMSLS: f_k(w - η·P·g) ≤ f_k(w) - c·η·Σ g²·P, then w ← w - η·P·m̂.

    Args:
        params: parameters, groups or named parameters; one step size for all of them.
        c: sufficient decrease, 0 < c < 1.
        initial_step_size: η before the first growth, > 0.
        growth: the factor of η at every step, ≥ 1.
        shrink: the factor of η after a failed trial, 0 < shrink < 1.
        max_trials: the most trials of a search, ≥ 1.

    Raises:
        ConfigurationError: if an argument or a group cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        c: float = 0.1,
        initial_step_size: float = 0.1,
        growth: float = 2 ** (1 / 500),
        shrink: float = 0.9,
        max_trials: int = 100,
    ) -> None:
        super().__init__(
            params,
            direction=Adam(),
            **_line_parts(c, initial_step_size, growth, shrink, max_trials),
            turn=Jointly(),
            merging=NeverMerge(),
            partition=Together(),
        )


class PLASLS(LineSearch):
    """PLASLS: ADAMSLS with a step size for each component, searched with the other components at w_k.

    Args:
        params: labelled groups, as `armijo.split` makes them.
        c: sufficient decrease, 0 < c < 1.
        initial_step_size: η before the first growth, > 0.
        growth: the factor of every η at every step, ≥ 1.
        shrink: the factor of η after a failed trial, 0 < shrink < 1.
        max_trials: the most trials of a search, ≥ 1.
        joint_steps: how many steps search all components together at first, ≥ 0.
        merge_below: λ ≥ 0; 0 never merges.
        schedule: makes the schedule from `joint_steps`: `Cycle` (the released code's), `EachInTurn` (the text's), or
            `lambda joint_steps: Jointly()`.

    Raises:
        ConfigurationError: if an argument or a group cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        c: float = 0.1,
        initial_step_size: float = 0.1,
        growth: float = 2 ** (1 / 500),
        shrink: float = 0.9,
        max_trials: int = 100,
        joint_steps: int = 6,
        merge_below: float = 1e-12,
        schedule: Callable[[int], Turn] = Cycle,
    ) -> None:
        super().__init__(
            params,
            direction=Adam(),
            **_line_parts(c, initial_step_size, growth, shrink, max_trials),
            turn=schedule(joint_steps),
            merging=MergeSmallest(merge_below),
            partition=ByLabel(),
        )
