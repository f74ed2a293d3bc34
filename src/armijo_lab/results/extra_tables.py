"""Tables that single studies add to their pages; each is a function from cells to Markdown, `""` for none."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence

from armijo_lab.names import counted
from armijo_lab.results import quantities
from armijo_lab.results.cells import Cell, difference, mean_score, seeds_reaching, task_names, time_ratio
from armijo_lab.results.formatting import (
    MISSING,
    adam_baseline,
    format_mean,
    format_spread,
    number_text,
    spread_text,
)
from armijo_lab.results.tables import Spread, aligned

__all__ = ["against_rivals", "costs", "decidability", "peaks", "ranks"]


def _adams(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.optimizer.partition(":")[0] in ("adam", "adamw")]


def _compared_cells(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with at least one other cell on their task; alone, a rank of 1 means nothing."""
    counts = Counter(cell.task for cell in cells if cell.ended)
    return [cell for cell in cells if cell.ended and counts[cell.task] > 1]


def against_rivals(cells: Sequence[Cell]) -> str:
    """Return the tables of ranks, of wins, and of the time to Adam's accuracy."""
    cells = _compared_cells(cells)
    return "\n\n".join(part for part in (ranks(cells), _wins(cells), _time_to_adam(cells)) if part)


def ranks(cells: Sequence[Cell]) -> str:
    """Return the ranks, and the differences to AdamSLS and to the best Adam in hindsight."""
    cells = _compared_cells(cells)
    if not cells:
        return ""
    tasks = task_names(cells)
    names = list(dict.fromkeys(cell.name for cell in cells))
    by_key = {(cell.task, cell.name): cell for cell in cells}
    task_ranks: dict[str, list[float]] = {name: [] for name in names}
    for task in tasks:
        task_cells = [cell for cell in cells if cell.task == task]
        # A mean over fewer seeds is a mean of other runs.
        seeds = max(len(cell.ended) for cell in task_cells)
        scores = {cell.name: mean_score(cell, quantities.final) for cell in task_cells if len(cell.ended) == seeds}
        for name, score in scores.items():
            above = sum(other > score for other in scores.values())
            equal = sum(other == score for other in scores.values())
            task_ranks[name].append(above + (equal + 1) / 2)
    hindsight = {task: _best_adam([cell for cell in cells if cell.task == task]) for task in tasks}
    # The default, or what it was when these runs were done.
    ours = next((name for name in ("adamsls", "growing-adamsls") if name in names), "adamsls")
    headings = ["optimizer", "mean rank"]
    for task in tasks:
        headings.append(f"{task}: minus {ours}")
        if hindsight[task] is not None:
            headings.append(f"{task}: minus the best Adam(W)")
    rows = []
    for name in sorted(names, key=lambda name: (-len(task_ranks[name]), sum(task_ranks[name]))):
        values = task_ranks[name]
        partial = "" if len(values) == len(tasks) else f" ({counted(len(values), 'task')})"
        row = [name, f"{statistics.fmean(values):.1f}{partial}" if values else MISSING]
        for task in tasks:
            cell = by_key.get((task, name))
            row.append(_difference_text(cell, by_key.get((task, ours))))
            if hindsight[task] is not None:
                row.append(_difference_text(cell, hindsight[task]))
        rows.append(row)
    note = (
        "On all held-out rows after the last epoch, in points; ranks among the cells with as many seeds as any of "
        "their task, 1 the best. In brackets the 95 % confidence interval of the paired difference (Student's t over "
        "the seeds: it covers what the seed decides, not which rows are held out)."
    )
    chosen = ", ".join(f"{task}: `{cell.name}`" for task, cell in hindsight.items() if cell is not None)
    if any(len(_adams([cell for cell in cells if cell.task == task])) > 1 for task in tasks):
        note += (
            f" The best Adam or AdamW was picked in hindsight, by the very numbers that it is compared on ({chosen})."
        )
    return f"## Ranks and paired differences\n\n{aligned(headings, rows)}\n\n{note}"


def _best_adam(cells: Sequence[Cell]) -> Cell | None:
    """Return the Adam or AdamW with the best mean after training, of those with the most seeds."""
    adams = _adams(cells)
    return max(adams, key=lambda cell: (len(cell.ended), mean_score(cell, quantities.final)), default=None)


def _difference_text(cell: Cell | None, other: Cell | None) -> str:
    if cell is None or other is None or other is cell:
        return MISSING
    gap = difference(cell, other, quantities.final)
    if gap is None:
        return MISSING
    mean = f"{100 * gap.mean:+.1f}"
    return mean if gap.low is None or gap.high is None else f"{mean} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def _wins(cells: Sequence[Cell]) -> str:
    """Compare each line search of this library with every other cell of its task."""
    ours = [name for name in dict.fromkeys(cell.name for cell in cells) if _is_line_search(name)]
    rows = []
    for name in ours:
        counts = {"win": 0, "tie": 0, "loss": 0}
        lost = []
        for mine, other in itertools.product(cells, cells):
            if mine.name != name or mine.task != other.task or _is_line_search(other.name):
                continue
            gap = difference(mine, other, quantities.final)
            if gap is not None and gap.verdict is not None:
                counts[gap.verdict] += 1
                if gap.verdict == "loss":
                    lost.append(f"{other.task}: {other.name}")
        if any(counts.values()):
            rows.append([name, *(str(counts[key]) for key in ("win", "tie", "loss")), "; ".join(lost) or "none"])
    if not rows:  # an interval needs two seeds
        return ""
    return (
        "## Wins, ties and losses of the line searches against every rival on every task\n\n"
        + aligned(["optimizer", "wins", "ties", "losses", "lost to"], rows)
        + "\nA win or a loss is a paired difference whose 95 % interval does not hold 0; with three seeds that "
        "interval is wide, and most of what looks different is a tie."
    )


def _is_line_search(name: str) -> bool:
    return name.partition(":")[0].removeprefix("growing-") in ("adamsls", "plasls", "sgdsls")


def _time_to_adam(cells: Sequence[Cell]) -> str:
    """Return how soon each cell reaches the last score of the paper's Adam and of the best Adam, seed by seed."""
    rows = []
    for task in task_names(cells):
        task_cells = [cell for cell in cells if cell.task == task]
        for adam in dict.fromkeys((_paper_adam(task_cells), _best_adam(task_cells))):
            if adam is None:
                continue
            targets = {
                seed: score for seed, record in adam.ended.items() if (score := quantities.last(record)) is not None
            }
            for cell in task_cells:
                result = seeds_reaching(cell, targets)
                if result is None:
                    continue
                seeds, epochs, seconds = result
                reached = f"{seeds} of {len(cell.ended.keys() & targets.keys())}"
                times = [f"{epochs:.1f}", f"{seconds:.0f}"] if seeds else [MISSING, MISSING]
                rows.append([task, adam.name, cell.name, reached, *times])
    if not rows:
        return ""
    headings = ["task", "to reach the end of", "optimizer", "seeds that do", "epochs", "training seconds"]
    return (
        "## Time to Adam's final accuracy\n\n"
        + aligned(headings, rows)
        + "\nOn the rows that are evaluated after each epoch; means over the seeds that reach what that Adam ends at "
        "with the same seed, the paper's rate of 2e-5 and the best one in hindsight."
    )


def _paper_adam(cells: Sequence[Cell]) -> Cell | None:
    """Return Adam with the rate and the schedule of the paper, or else AdamW with them."""
    named = {cell.optimizer: cell for cell in cells}
    wanted = ("adam", *(f"{name}:lr=2e-5,schedule=cosine,warmup=0.1" for name in ("adam", "adamw")))
    return next((named[name] for name in wanted if name in named), None)


def decidability(cells: Sequence[Cell]) -> str:
    """Return how far the tests were from being decided by rounding, and why searches failed."""
    cells = [cell for cell in cells if cell.ended]
    rows = []
    for cell in cells:
        for seed, record in cell.ended.items():
            searches = record["searches"]
            if searches is None:
                continue
            quantiles = [number_text(value, ".1f") for value in searches["log10"] or [None] * 4]
            failed = Counter(searches["failed"])
            rows.append(
                [
                    cell.name,
                    str(seed),
                    str(searches["count"]),
                    *quantiles,
                    str(searches["below"]),
                    str(searches["ties"]),
                    str(failed["order"]),
                    str(failed["rounding"]),
                    str(failed["range"]),
                    str(failed["nonfinite"] + failed["nondeterministic"]),
                    number_text(quantities.smallest_step_size(record), ".1e"),
                    str(len(record["components"])),
                ]
            )
    if not rows:
        return ""
    headings = ["optimizer", "seed", "searches", "least", "1 %", "10 %", "median", "below 0", "ties"]
    headings += ["failed: order", "rounding", "range", "other", "smallest step size", "components left"]
    return (
        "## How decidable the tests were\n\n"
        + aligned(headings, rows)
        + "\n*least* to *median*: quantiles over the searches of log10(c·η·S/(u·|f|)) at the step size that was "
        "kept. A test can be decided only where c·η·S ≳ u·|f|, that is above 0 (u is the unit roundoff of the "
        "logits: 2^-24, 2^-53, 2^-8). *ties*: trials with f(w(η)) = f_k to the last bit. A search failed by "
        "*order* if the loss with the components before it already moved was measured, and lay above f_k by more "
        "than rounding shows; by *rounding* if it went down to tests that promise less than ten units of it; by "
        "*range* if it ended before that."
    )


def peaks(cells: Sequence[Cell]) -> str:
    """Return the epoch where each cell peaks, and how far it falls after."""
    cells = [cell for cell in cells if cell.ended]
    rows = []
    for cell in cells:
        peaks, drops = [], []
        for record in cell.ended.values():
            scores = quantities.scores(record)
            if any(math.isnan(score) for score in scores):
                continue
            peaks.append(float(scores.index(max(scores)) + 1))
            drops.append(100 * (max(scores) - scores[-1]))
        peak, drop = Spread.from_values(peaks), Spread.from_values(drops)
        if peak is not None and drop is not None:
            rows.append(
                [
                    cell.task,
                    cell.name,
                    spread_text(peak, ".1f"),
                    format_spread(quantities.best, ".3f")(cell),
                    spread_text(drop, ".1f"),
                ]
            )
    headings = ["task", "optimizer", "epoch of the peak", "peak", "points lost until the end"]
    return "## After the peak\n\n" + aligned(headings, rows) if rows else ""


def costs(cells: Sequence[Cell]) -> str:
    """Return time and forwards against Adam with the same rows, batches, lengths and model."""
    cells = [cell for cell in cells if cell.ended]
    rows = []
    for cell in cells:
        adam = adam_baseline(cell, cells)
        seconds = cell.mean(lambda r: quantities.training_seconds(r) / len(r["epochs"]))
        evaluation = cell.mean(lambda r: r["seconds"]["evaluation"] / len(r["epochs"]))
        rows.append(
            [
                cell.name,
                number_text(seconds, ".2f"),
                number_text(time_ratio(cell, adam), ".2f", "×"),
                format_mean(quantities.forwards_per_step, ".2f")(cell),
                number_text(time_ratio(cell, adam, quantities.last_epoch_seconds), ".2f", "×"),
                format_mean(quantities.last_epoch_forwards, ".2f")(cell),
                number_text(evaluation, ".2f"),
                format_mean(lambda r: r["peak_memory"].get("cuda", r["peak_memory"].get("resident", 0)) / 2**20, ".0f")(
                    cell
                ),
            ]
        )
    headings = [
        "optimizer",
        "seconds an epoch",
        "against Adam",
        "forwards a step",
        "last epoch against Adam",
        "its forwards a step",
        "evaluation (s)",
        "peak memory (MiB)",
    ]
    return "## Time an epoch\n\n" + aligned(headings, rows) if rows else ""
