"""The cells of a study: the records of one configuration over its seeds, and comparisons of two cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from armijo_lab.results import quantities
from armijo_lab.results.tables import Spread

__all__ = [
    "Cell",
    "Difference",
    "Planned",
    "collect",
    "difference",
    "mean_score",
    "seeds_reaching",
    "task_names",
    "time_ratio",
]

Planned = Sequence[tuple[Mapping[str, Any], Sequence[str]]]
"""For each cell what its runs have in common, and the identity of each, seed by seed."""


@dataclass(frozen=True, eq=False)  # a cell is itself: its records are no values to compare
class Cell:
    """One row of a study's table.

    Attributes:
        config: What its runs have in common: task, optimizer, and other settings.
        varied: The part of it, without task and optimizer, in which the cells of the study differ.
        records: The record of each seed, `None` where it was not run.
    """

    config: Mapping[str, Any]
    varied: Mapping[str, Any]
    records: tuple[Mapping[str, Any] | None, ...]

    @property
    def task(self) -> str:
        """The task's name."""
        return self.config["task"] or "embedded"

    @property
    def optimizer(self) -> str:
        """The optimizer as the user named it."""
        return self.config["optimizer"]

    @property
    def name(self) -> str:
        """The optimizer, and the settings that distinguish this cell from others of its task."""
        return "  ".join([self.optimizer, *(f"{key} {_word(value)}" for key, value in self.varied.items())])

    @property
    def ended(self) -> dict[int, Mapping[str, Any]]:
        """The records of runs that ended without an error, by seed."""
        return {
            record["seed"]: record
            for record in self.records
            if record is not None and record["status"] in ("completed", "diverged")
        }

    @property
    def failed(self) -> int:
        """How many runs ended with an error."""
        return sum(record is not None and record["status"] == "failed" for record in self.records)

    @property
    def diverged(self) -> int:
        """How many runs ended with a loss that is not finite."""
        return sum(record["status"] == "diverged" for record in self.ended.values())

    def spread(self, value: Callable[[Mapping[str, Any]], float | None]) -> Spread | None:
        """A quantity over the runs that ended; `None` without any, or where it is missing in one of them."""
        return Spread.from_values([value(record) for record in self.ended.values()])

    def mean(self, value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
        """The mean of a quantity over the runs that ended."""
        spread = self.spread(value)
        return None if spread is None else spread.mean


def collect(planned: Planned, varied: Sequence[str], known: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    """Combine planned cells with the records of their runs; `varied` names the settings that a cell's name shows.

    A record without `final_majority`, as earlier commits wrote them, gets that of another record of its task.
    """
    shares = {
        record["task"]["name"]: record["final_majority"]
        for record in known.values()
        if record.get("final") is not None and record.get("final_majority") is not None
    }

    def find_record(identity: str) -> Mapping[str, Any] | None:
        record = known.get(identity)
        if record is None or record.get("final") is None or record.get("final_majority") is not None:
            return record
        return {**record, "final_majority": shares.get(record["task"]["name"])}

    return [
        Cell(
            config=config,
            varied={key: config[key] for key in varied if key in config},
            records=tuple(map(find_record, identities)),
        )
        for config, identities in planned
    ]


def task_names(cells: Sequence[Cell]) -> list[str]:
    """Return the tasks, in the order of their first cells."""
    return list(dict.fromkeys(cell.task for cell in cells))


@dataclass(frozen=True)
class Difference:
    """Cell minus cell over the seeds that both have.

    Attributes:
        mean: The mean difference.
        low: The lower end of its 95 % confidence interval, Student's t over the seeds; `None` for one seed.
        high: The upper end.
        seeds: How many.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def verdict(self) -> str | None:
        """`win`, `loss`, or `tie` where the interval holds 0; `None` where there is no interval."""
        if self.low is None or self.high is None:
            return None
        if self.low <= 0 <= self.high:
            return "tie"
        return "win" if self.low > 0 else "loss"


def difference(ours: Cell, theirs: Cell, value: Callable[[Mapping[str, Any]], float | None]) -> Difference | None:
    """Compute the paired difference of a quantity over the seeds that both cells have; `None` without a pair.

    A run whose value is missing, because it diverged, counts as 0: of each metric here higher is better.
    """
    shared = sorted(ours.ended.keys() & theirs.ended.keys())
    pairs = [((value(ours.ended[seed]) or 0.0), (value(theirs.ended[seed]) or 0.0)) for seed in shared]
    if not pairs:
        return None
    gaps = [a - b for a, b in pairs]
    mean = statistics.fmean(gaps)
    if len(gaps) < 2:
        return Difference(mean, None, None, len(gaps))
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return Difference(mean, mean - half, mean + half, len(gaps))


def time_ratio(
    cell: Cell, baseline: Cell | None, seconds: Callable[[Mapping[str, Any]], float] = quantities.training_seconds
) -> float | None:
    """Divide the training time by that of the baseline, over seeds run under equal conditions (`_conditions`).

    Args:
        cell: The cell whose time is measured.
        baseline: The cell to compare with; `None` where there is none.
        seconds: Which time of a record.
    """
    if baseline is None:
        return None
    others = baseline.ended
    shared = [seed for seed, record in cell.ended.items() if _conditions(record) == _conditions(others.get(seed))]
    ours = sum(seconds(cell.ended[seed]) for seed in shared)
    theirs = sum(seconds(baseline.ended[seed]) for seed in shared)
    return ours / theirs if theirs > 0 else None


def seeds_reaching(cell: Cell, targets: Mapping[int, float]) -> tuple[int, float, float] | None:
    """Count the seeds that reach their target, and average the epochs and training seconds they need.

    Args:
        cell: The cell whose metric after each epoch is used.
        targets: The metric to reach, by seed.

    Returns:
        Seeds, epochs and seconds (0 where no seed does); `None` where no seed has a target.
    """
    times = []
    shared = cell.ended.keys() & targets.keys()
    for seed in shared:
        record = cell.ended[seed]
        for epoch, score in zip(record["epochs"], quantities.scores(record), strict=True):
            if score >= targets[seed]:
                times.append((float(epoch["epoch"]), float(epoch["seconds"]["training"])))
                break
    if not shared:
        return None
    if not times:
        return 0, 0.0, 0.0
    return len(times), statistics.fmean(e for e, _ in times), statistics.fmean(s for _, s in times)


def mean_score(cell: Cell, value: Callable[[Mapping[str, Any]], float | None]) -> float:
    """Return the mean of a metric over the seeds that ended; a run that diverged counts as 0."""
    return statistics.fmean((value(record) or 0.0) for record in cell.ended.values()) if cell.ended else 0.0


def _conditions(record: Mapping[str, Any] | None) -> tuple[Any, ...] | None:
    """Return commit and hardware; runs of different commits were done on different days, under different load."""
    if record is None:
        return None
    hardware = record["hardware"]
    return record["commit"], hardware.get("gpu", hardware["cpu"]), hardware["threads"], hardware.get("float32_matmul")


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
