"""Cells and numbers as text, for the tables of a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from armijo_lab.results import quantities
from armijo_lab.results.cells import Cell
from armijo_lab.results.tables import Spread

__all__ = [
    "MISSING",
    "NOT_RUN",
    "adam_baseline",
    "format_mean",
    "format_spread",
    "if_line_search",
    "number_text",
    "spread_text",
]

MISSING = "–"
NOT_RUN = "not run"


def adam_baseline(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """Return the first Adam, or else AdamW, that was run with the same task, model, rows and batches."""
    same_setup = [other for other in cells if other.ended and (other.task, other.varied) == (cell.task, cell.varied)]
    for name in ("adam", "adamw"):
        for other in same_setup:
            if other.optimizer.partition(":")[0] == name:
                return other
    return None


def format_spread(value: Callable[[Mapping[str, Any]], float | None], form: str) -> Callable[[Cell], str]:
    """Return a function that formats the mean and the deviation of a quantity over a cell's seeds."""

    def show(cell: Cell) -> str:
        spread = cell.spread(value)
        if spread is None:
            return "diverged" if cell.diverged else MISSING
        return spread_text(spread, form)

    return show


def spread_text(spread: Spread, form: str) -> str:
    """Format a mean, and its deviation if there is one."""
    mean = format(spread.mean, form)
    return mean if spread.deviation is None else f"{mean} ± {format(spread.deviation, form)}"


def format_mean(value: Callable[[Mapping[str, Any]], float | None], form: str) -> Callable[[Cell], str]:
    """Return a function that formats the mean of a quantity over a cell's seeds."""
    return lambda cell: number_text(cell.mean(value), form)


def number_text(value: float | None, form: str, after: str = "") -> str:
    """Format a number with `after` behind it; `MISSING` for `None`."""
    return MISSING if value is None else format(value, form) + after


def if_line_search(value: Callable[[Mapping[str, Any]], float]) -> Callable[[Mapping[str, Any]], float | None]:
    """Restrict a quantity to the records of line searches; for others it is `None`."""
    return lambda record: value(record) if quantities.has_line_search(record) else None
