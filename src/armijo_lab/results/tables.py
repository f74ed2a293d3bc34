"""Tables of finished runs: one row per optimizer, over its seeds, computed from the logs alone."""

import csv
import io
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from armijo_lab.errors import BadInputError
from armijo_lab.results.run_folder import Run

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "LOSS_FLOOR",
    "Row",
    "Spread",
    "aligned",
    "comparison",
    "label",
    "mean_log_loss",
    "to_csv",
    "to_markdown",
    "to_rich",
]

logger = logging.getLogger("armijo")

LOSS_FLOOR = 1e-9
"""The least loss that counts in the mean log loss; a smaller one, 0 included, counts as this.

It is less than float32 distinguishes from 0: one row of a batch of 32 has a cross-entropy of 0 or of at least 2^-24."""

_MISSING = "–"
_BASELINES = ("adam", "adamw")


@dataclass(frozen=True)
class Spread:
    """A quantity over the seeds of one optimizer.

    Attributes:
        mean: The mean.
        deviation: The sample standard deviation (divisor n - 1), `None` for one seed.
    """

    mean: float
    deviation: float | None

    @classmethod
    def from_values(cls, values: Sequence[float | None]) -> "Spread | None":
        """Return the spread of `values`; `None` if one of them is missing or not finite.

        A mean without the missing seed would look better than it is, because the missing seed is one that diverged.
        """
        known = [value for value in values if value is not None and math.isfinite(value)]
        if not known or len(known) < len(values):
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


@dataclass(frozen=True)
class Row:
    """One optimizer on one task, over its seeds; a value that is unknown or meaningless is `None`.

    Attributes:
        task: The task.
        optimizer: The optimizer as the user named it.
        seeds: The number of runs.
        metric: The task's primary metric, which `best` and `last` are of; higher is better.
        best: At each run's best epoch.
        last: After the last epoch.
        train_loss: The mean batch loss over the last epoch.
        mean_log_loss: (1/T)·Σ log f_t over all T steps, in nats (see `mean_log_loss`).
        forwards: Forward passes a step, of which one has gradients.
        time: Training time divided by that of Adam (or else AdamW) on the same task and seeds: a ratio of means.
        failed_searches: Searches that found no step size, a run.
        merges: Merges of components, a run.
        smallest_step_size: The smallest step size of any component at the end of any run.
        diverged: The number of runs whose loss was not finite at the end.
    """

    task: str
    optimizer: str
    seeds: int
    metric: str
    best: Spread | None
    last: Spread | None
    train_loss: Spread | None
    mean_log_loss: Spread | None
    forwards: float | None
    time: float | None
    failed_searches: float | None
    merges: float | None
    smallest_step_size: float | None
    diverged: int


def label(run: Run) -> str:
    """Return the optimizer of a run as the user named it, as in `adam:lr=2e-5,schedule=cosine`."""
    return run.summary["config"]["optimizer"]


def mean_log_loss(losses: Iterable[float | None]) -> float | None:
    """(1/T)·Σ_t log max(f_t, `LOSS_FLOOR`), in nats, which measures the whole run and not only its end.

    Args:
        losses: The batch loss f_t of each step, before the step.

    Returns:
        The mean; `None` if there is no step, or one whose loss is not finite.
    """
    total, steps = 0.0, 0
    for loss in losses:
        if loss is None or not math.isfinite(loss):
            return None
        total += math.log(max(loss, LOSS_FLOOR))
        steps += 1
    return total / steps if steps else None


def grouped(runs: Iterable[Run]) -> dict[tuple[str, str], list[Run]]:
    """Group the runs that ended (completed or diverged) by task and optimizer, in the order of first appearance.

    Each list holds the seeds.

    Raises:
        BadInputError: There is none.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.summary.get("status") not in ("completed", "diverged"):
            logger.warning("The run %s is left out of the comparison: it is not completed.", run.folder.name)
            continue
        groups.setdefault((run.summary["task"]["name"], label(run)), []).append(run)
    if not groups:
        raise BadInputError("There is no completed run to compare; continue an interrupted one with --resume.")
    return groups


def comparison(runs: Iterable[Run]) -> list[Row]:
    """Make one row for each optimizer on each task; runs that are not completed are left out with a warning.

    Raises:
        BadInputError: No run is completed.
    """
    groups = grouped(runs)
    baselines: dict[str, list[Run]] = {}
    for name in _BASELINES:
        for (task, _), members in groups.items():
            if members[0].summary["optimizer"]["name"] == name:
                baselines.setdefault(task, members)
    return [_row(task, optimizer, members, baselines.get(task)) for (task, optimizer), members in groups.items()]


def _row(task: str, optimizer: str, runs: list[Run], baseline: list[Run] | None) -> Row:
    metric = runs[0].summary["task"]["metrics"][0]
    # Where the loss is not finite, some class is still the most probable one, so that metric does not count.
    values = [
        [epoch["evaluation"][metric] if epoch["evaluation"]["loss"] is not None else None for epoch in run.epochs]
        for run in runs
    ]
    searched = [run.summary["optimizer"] for run in runs if run.summary["optimizer"]["components"]]
    sizes = [c["step_size"] for facts in searched for c in facts["components"] if c["step_size"] is not None]
    steps = sum(len(run.steps) for run in runs)
    return Row(
        task=task,
        optimizer=optimizer,
        seeds=len(runs),
        metric=metric,
        best=Spread.from_values([max((v for v in seed if v is not None), default=None) for seed in values]),
        last=Spread.from_values([seed[-1] if seed else None for seed in values]),
        train_loss=Spread.from_values([run.epochs[-1]["train_loss"] if run.epochs else None for run in runs]),
        mean_log_loss=Spread.from_values([mean_log_loss(step["loss"] for step in run.steps) for run in runs]),
        forwards=sum(step["forwards"] for run in runs for step in run.steps) / steps if steps else None,
        time=_time_ratio(runs, baseline),
        failed_searches=statistics.fmean(facts["failed_searches"] for facts in searched) if searched else None,
        merges=statistics.fmean(len(facts["merges"]) for facts in searched) if searched else None,
        smallest_step_size=min(sizes, default=None),
        diverged=sum(run.summary["status"] == "diverged" for run in runs),
    )


def _time_ratio(runs: list[Run], baseline: list[Run] | None) -> float | None:
    """Σ training time / Σ that of the baseline, over the seeds that both have."""
    ours, theirs = (
        {tuple(run.summary["seeds"]): run.summary["seconds"]["training"] for run in group}
        for group in (runs, baseline or [])
    )
    shared = ours.keys() & theirs.keys()
    base = sum(theirs[seed] for seed in shared)
    return sum(ours[seed] for seed in shared) / base if base > 0 else None


# ---------------------------------------------------------------------------------------------- printing


def _spread(form: str, factor: float = 1.0) -> Callable[[Spread | None], str]:
    def show(spread: Spread | None) -> str:
        if spread is None:
            return _MISSING
        mean = format(factor * spread.mean, form)
        return mean if spread.deviation is None else f"{mean} ± {format(factor * spread.deviation, form)}"

    return show


def _number(form: str, after: str = "") -> Callable[[float | None], str]:
    return lambda value: _MISSING if value is None else format(value, form) + after


def _columns(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    """Heading and cell of each column."""
    metrics = {row.metric for row in rows}
    metric = metrics.pop() if len(metrics) == 1 else "metric"
    score, loss, log_loss = _spread(".3f"), _spread(".4f"), _spread(".2f")

    def spread(show: Callable[[Spread | None], str], value: Spread | None, row: Row) -> str:
        return "diverged" if value is None and row.diverged else show(value)

    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("optimizer", lambda row: row.optimizer),
        ("seeds", lambda row: str(row.seeds)),
        (f"best {metric}", lambda row: spread(score, row.best, row)),
        (f"last {metric}", lambda row: spread(score, row.last, row)),
        ("training loss", lambda row: spread(loss, row.train_loss, row)),
        ("mean log loss", lambda row: spread(log_loss, row.mean_log_loss, row)),
        ("forwards a step", lambda row: _number(".2f")(row.forwards)),
        ("time / Adam(W)", lambda row: _number(".2f", "×")(row.time)),
        ("failed searches", lambda row: _number("g")(row.failed_searches)),
        ("merges", lambda row: _number("g")(row.merges)),
        ("smallest step size", lambda row: _number(".2g")(row.smallest_step_size)),
    ]
    if len({row.task for row in rows}) > 1:
        columns.insert(0, ("task", lambda row: row.task))
    return columns


def to_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table with aligned columns; ± is the sample standard deviation over the seeds."""
    columns = _columns(rows)
    return aligned([heading for heading, _ in columns], [[cell(row) for _, cell in columns] for row in rows])


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in the source too: words to the left, numbers to the right."""
    table = [[cell.replace("|", "\\|") for cell in line] for line in (headings, *rows)]
    texts = [heading in ("task", "optimizer", "lost to", "to reach the end of") for heading in headings]
    widths = [max(3, *(len(line[place]) for line in table)) for place in range(len(headings))]
    rule = [("-" * width) if text else "-" * (width - 1) + ":" for text, width in zip(texts, widths, strict=True)]
    lines = [
        [
            cell.ljust(width) if text else cell.rjust(width)
            for cell, text, width in zip(line, texts, widths, strict=True)
        ]
        for line in table
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def to_csv(rows: Sequence[Row]) -> str:
    """The rows in full precision, a mean and its standard deviation in two columns, what is missing empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for number, row in enumerate(rows):
        cells: dict[str, Any] = {}
        for name, value in vars(row).items():
            if name in ("best", "last", "train_loss", "mean_log_loss"):
                cells[f"{name}_mean"] = None if value is None else value.mean
                cells[f"{name}_std"] = None if value is None else value.deviation
            else:
                cells[name] = value
        if number == 0:
            writer.writerow(cells)
        writer.writerow(cells.values())
    return out.getvalue()


def to_rich(rows: Sequence[Row]) -> "Table":
    """The table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    columns = _columns(rows)
    for heading, _ in columns:
        text = heading in ("task", "optimizer")
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row)) for _, cell in columns))
    return table
