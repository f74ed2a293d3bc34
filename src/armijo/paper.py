"""The same three optimizers exactly as arXiv 2403.18506 has them, evaluation for evaluation.

They are here to reproduce and to compare; for your own training use `armijo.AdamSLS`. Where the paper is silent its
released code decides, except for that code's departures from the paper's own equations, which `docs/` lists.

| | direction | search | selection | merging | partition |
|---|---|---|---|---|---|
| `SGDSLS` | `GradientDirection()` | `backtracking()` | `Jointly()` | `NeverMerge()` | `Together()` |
| `AdamSLS` | `AdamDirection()` | `backtracking()` | `Jointly()` | `NeverMerge()` | `Together()` |
| `PLASLS` | `AdamDirection()` | `backtracking()` | `Cycle(6)` | `MergeSmallest(1e-12)` | `ByLabel()` |

- before a search, and at every step, η ← growth·η; the first trial of all is at growth·initial_step_size;
- while the test fails η ← shrink·η; after max_trials failures the step is taken with the next, untried one;
- no search where f_k = 0 or S < 1e-8: the grown η is used as it is;
- PLASLS searches all components jointly for six steps, then one a step in a cycle, and merges the two components with
  the smallest η once the smallest is below `merge_below`.

Every number is a keyword, so that every branch can be reached in a few steps.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from torch.optim.optimizer import ParamsT

from armijo.components.merging import MergeSmallest
from armijo.components.partition import ByLabel, Together
from armijo.components.selection import Cycle, Selection
from armijo.directions.adam import AdamDirection
from armijo.directions.gradient import GradientDirection
from armijo.optimizer import LineSearch
from armijo.search.backtracking import PaperBacktracking
from armijo.search.criteria import Armijo
from armijo.search.guesses import Growth

__all__ = ["PLASLS", "SGDSLS", "AdamSLS", "SearchNumbers", "backtracking"]


class SearchNumbers(TypedDict, total=False):
    """The numbers of the paper's search, by the keywords of `backtracking`."""

    c: float
    initial_step_size: float
    growth: float
    shrink: float
    max_trials: int


def backtracking(
    c: float = 0.1,
    initial_step_size: float = 0.1,
    growth: float = 2 ** (1 / 500),
    shrink: float = 0.9,
    max_trials: int = 100,
) -> PaperBacktracking:
    """The paper's search.

    Args:
        c: sufficient decrease, 0 < c < 1.
        initial_step_size: η before the first growth, > 0.
        growth: the factor of η at every step, ≥ 1.
        shrink: the factor of η after a failed trial, 0 < shrink < 1.
        max_trials: the most trials of a search, ≥ 1.

    Raises:
        ConfigurationError: if a number is out of its range.
    """
    return PaperBacktracking(Armijo(c), Growth(initial_step_size, growth), shrink, max_trials)


class SGDSLS(LineSearch):
    """SGDSLS: f_k(w - η·g) ≤ f_k(w) - c·η·‖g‖², then w ← w - η·g.

    Args:
        params: parameters, groups or named parameters; one step size for all of them.
        numbers: the keywords of `backtracking`.

    Raises:
        ConfigurationError: if an argument or a group cannot be used.
    """

    def __init__(self, params: ParamsT, **numbers: Unpack[SearchNumbers]) -> None:
        super().__init__(params, direction=GradientDirection(), search=backtracking(**numbers), partition=Together())


class AdamSLS(LineSearch):
    """ADAMSLS: f_k(w - η·P·g) ≤ f_k(w) - c·η·Σ g²·P, then w ← w - η·P·m̂.

    Args:
        params: parameters, groups or named parameters; one step size for all of them.
        numbers: the keywords of `backtracking`.

    Raises:
        ConfigurationError: if an argument or a group cannot be used.
    """

    def __init__(self, params: ParamsT, **numbers: Unpack[SearchNumbers]) -> None:
        super().__init__(params, direction=AdamDirection(), search=backtracking(**numbers), partition=Together())


class PLASLS(LineSearch):
    """PLASLS: ADAMSLS with a step size for each component, searched with the other components at w_k.

    Args:
        params: labelled groups, as `armijo.split` makes them.
        selection: `Cycle(joint_steps)` (the released code's), `EachAlone(joint_steps)` (the text's), or `Jointly()`.
        merge_below: λ ≥ 0; 0 never merges.
        numbers: the keywords of `backtracking`.

    Raises:
        ConfigurationError: if an argument or a group cannot be used.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        selection: Selection = Cycle(),
        merge_below: float = 1e-12,
        **numbers: Unpack[SearchNumbers],
    ) -> None:
        super().__init__(
            params,
            direction=AdamDirection(),
            search=backtracking(**numbers),
            selection=selection,
            merging=MergeSmallest(merge_below),
            partition=ByLabel(),
        )
