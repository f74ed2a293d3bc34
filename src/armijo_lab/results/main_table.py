"""The main table of a page, one row for each cell, and its CSV file, one line for each run."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from armijo_lab.names import counted
from armijo_lab.results import quantities
from armijo_lab.results.cells import Cell, time_ratio
from armijo_lab.results.formatting import (
    NOT_RUN,
    adam_baseline,
    format_mean,
    format_spread,
    if_line_search,
    number_text,
)
from armijo_lab.results.tables import aligned

__all__ = ["main_table", "runs_csv"]

_Column = tuple[str, Callable[[Cell], str]]


def main_table(cells: Sequence[Cell]) -> str:
    """Return the Markdown table of one task's cells, then its failures and the cells that were not run."""
    columns: list[_Column] = [
        ("optimizer", lambda cell: cell.name),
        ("seeds", _seed_count),
        ("best", format_spread(quantities.best, ".3f")),
        ("last", format_spread(quantities.last, ".3f")),
        ("all rows", format_spread(quantities.final, ".3f")),
        ("training loss", format_spread(quantities.train_loss, ".4f")),
        ("mean log loss", format_spread(lambda record: record["mean_log_loss"], ".2f")),
        ("forwards a step", format_mean(quantities.forwards_per_step, ".2f")),
        ("time / Adam(W)", lambda cell: number_text(time_ratio(cell, adam_baseline(cell, cells)), ".2f", "×")),
        ("failed searches", format_mean(if_line_search(lambda record: record["failed_searches"]), ".2g")),
        ("components left", format_mean(if_line_search(lambda record: len(record["components"])), "g")),
        ("smallest step size", lambda cell: number_text(_smallest(cell, quantities.smallest_step_size), ".1e")),
    ]
    rows, missing, errors = [], [], []
    for cell in cells:
        if cell.failed:
            errors.append(f"`{cell.name}` failed: {_error(cell)}")
        if not cell.ended and not cell.failed:
            missing.append(f"`{cell.name}`")
        elif not cell.ended:
            rows.append([cell.name, "0", "failed", *[""] * (len(columns) - 3)])
        else:
            row = [show(cell) for _, show in columns]
            ends = [(cell.diverged, "diverged"), (cell.failed, "failed")]
            if cell.diverged or cell.failed:
                row[1] += f" ({', '.join(f'{number} {word}' for number, word in ends if number)})"
            rows.append(row)
    parts = [aligned([heading for heading, _ in columns], rows)] if rows else []
    parts += errors
    if missing:
        parts.append(f"{NOT_RUN.capitalize()} ({len(missing)} of {counted(len(cells), 'cell')}): {', '.join(missing)}.")
    return "\n".join(parts)


def _seed_count(cell: Cell) -> str:
    ended, planned = len(cell.ended), len(cell.records)
    return str(ended) if ended == planned else f"{ended}/{planned}"


def _error(cell: Cell) -> str:
    return next(record["error"] for record in cell.records if record is not None and record["status"] == "failed")


def _smallest(cell: Cell, value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    return min((number for record in cell.ended.values() if (number := value(record)) is not None), default=None)


def runs_csv(cells: Sequence[Cell]) -> str:
    """Return the runs as CSV, one line for each, in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    varied = list(dict.fromkeys(key for cell in cells for key in cell.varied))
    values: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "best": quantities.best,
        "last": quantities.last,
        "all_rows": quantities.final,
        "train_loss": quantities.train_loss,
        "mean_log_loss": lambda record: record["mean_log_loss"],
        "steps": lambda record: record["steps"],
        "forwards": lambda record: record["forwards"],
        "training_seconds": quantities.training_seconds,
        "failed_searches": if_line_search(lambda record: record["failed_searches"]),
        "merges": if_line_search(lambda record: len(record["merges"])),
        "components": if_line_search(lambda record: len(record["components"])),
        "smallest_step_size": quantities.smallest_step_size,
    }
    writer.writerow(["task", "optimizer", *varied, "seed", "status", *values])
    for cell in cells:
        for seed, record in enumerate(cell.records):
            head = [cell.task, cell.optimizer, *(cell.varied.get(key) for key in varied), seed]
            if record is None:
                writer.writerow([*head, NOT_RUN, *[None] * len(values)])
            elif record["status"] == "failed":
                writer.writerow([*head, "failed", *[None] * len(values)])
            else:
                writer.writerow([*head, record["status"], *(value(record) for value in values.values())])
    return out.getvalue()
