"""The cells and the optimizers, fixed before the first run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "CELLS",
    "CHOSEN_ON",
    "CONFIRMED_ON",
    "EPOCHS",
    "EVERYWHERE",
    "OTHERS",
    "RATES",
    "RATES_OF",
    "REGIMES",
    "Cell",
]

EPOCHS = 5
"""Of every run; a step that needs rows of two epochs takes them."""

REGIMES = ("head", "lora", "whole")
"""A linear head on the frozen encoder; LoRA of rank 8 on queries and values, and the head; all parameters."""

CHOSEN_ON = range(5)
"""The seeds on which a default may be chosen, with the tasks SST-2 and MNLI and the regime head."""

CONFIRMED_ON = range(10, 15)
"""The seeds for the confirmation, once, after the choice."""

RATES = ("1e-5", "3e-5", "1e-4", "3e-4", "1e-3", "3e-3", "1e-2", "3e-2", "1e-1")
"""AdamW's, each with a warm-up over a tenth of the steps and linear decay, without weight decay."""

RATES_OF = {
    "head": RATES,
    "lora": ("1e-4", "1e-3", "3e-3", "1e-2"),
    "whole": ("3e-5", "1e-4", "3e-4", "1e-3", "3e-3", "1e-2"),
}
"""Those of each regime: of LoRA and of whole models, whose runs take minutes, the rates around the best known one, and
others so that four are run everywhere."""

EVERYWHERE = tuple(rate for rate in RATES if all(rate in rates for rates in RATES_OF.values()))
"""The rates that every regime has."""

OTHERS = ("salsa", "prodigy", "schedulefree", "dog")
"""Without a rate to tune, as their authors recommend them."""


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Attributes:
        task: A task of GLUE, or `embedded`.
        regime: One of `REGIMES`.
        rows: Rows to train on, drawn anew for each seed.
        batch_size: Rows of a step.
    """

    task: str
    regime: str
    rows: int
    batch_size: int

    @property
    def steps(self) -> int:
        """How many steps a run takes."""
        return EPOCHS * self.rows // self.batch_size

    @property
    def name(self) -> str:
        """As in the tables."""
        return f"{self.task}, {self.regime}, {self.rows} rows, {self.batch_size} a step"


def _cells() -> Sequence[Cell]:
    tasks = ("sst2", "mnli", "mrpc", "qnli", "embedded")
    heads = [
        Cell(task, "head", rows, size)
        for rows in (100, 500, 2000)
        for size in (8, 32)
        for task in tasks
        if (task != "embedded" or rows <= 500) and (rows, size) != (2000, 8)
    ]
    heads += [Cell(task, "head", 2000, 8) for task in ("sst2", "mnli")]
    models = [Cell(task, regime, 500, 32) for regime in ("lora", "whole") for task in ("sst2", "mnli")]
    return (*heads, *models)


CELLS = _cells()
"""The grid: heads with 100, 500 and 2,000 rows and 8 or 32 a step; LoRA and whole models with 500 rows and 32 a step.

The embedded set has 500 rows to draw from. Heads with 1,250 steps, and whole models, are run on two tasks alone, for
what they cost.
"""
