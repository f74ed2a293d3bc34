"""One page for each study: its tables (Markdown, CSV) and figures (PNG, SVG), with the command that made the runs.

A page is made of the records alone. What a person concludes from it stands in `results/NAME.md`, if there is one, and
is put above the tables. A cell that was not run is printed "not run".
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armijo_lab.names import counted
from armijo_lab.results import cells as of
from armijo_lab.results.cells import Cell
from armijo_lab.results.records import write_text
from armijo_lab.results.tables import Spread, aligned

__all__ = ["Header", "write"]

_MISSING = "–"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Header:
    """What stands above the tables.

    Attributes:
        study: Its name.
        page: The name of the page's files.
        title: A few words.
        question: What it answers.
        command: The command that does its runs.
        report: The command that makes the page.
        notes: What a person concluded; `None` if nobody has written it.
    """

    study: str
    page: str
    title: str
    question: str
    command: str
    report: str
    notes: str | None = None


def write(header: Header, cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write `PAGE.md`, `PAGE.csv` and the figures of a study into a folder, which is made.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # What is drawn and set side by side has been run; the table lists everything.
    run = [cell for cell in cells if cell.ended]
    figures = _draw(header, run, folder) if run else []
    parts = [f"# {header.title}", header.question]
    parts.append(f"    {header.command}\n    {header.report}")
    parts.append(_provenance(cells))
    if header.notes:
        parts.append(header.notes.strip())
    parts += [f"![{caption}]({path.relative_to(folder).as_posix()})" for path, caption in figures]
    for task in of.tasks(cells):
        parts += [f"## {task}", _table([cell for cell in cells if cell.task == task])]
    for extra in _EXTRA.get(header.study, ()):
        said = extra(cells)
        if said:
            parts.append(said)
    parts.append(_legend(cells))
    page, data = folder / f"{header.page}.md", folder / f"{header.page}.csv"
    write_text(page, "\n\n".join(parts) + "\n")
    write_text(data, _csv(cells))
    return [page, data, *(path for path, _ in figures), *(path.with_suffix(".svg") for path, _ in figures)]


# ----------------------------------------------------------------------------------------------- the main table

_Column = tuple[str, Callable[[Cell], str]]


def _table(cells: Sequence[Cell]) -> str:
    columns: list[_Column] = [
        ("optimizer", lambda cell: cell.name),
        ("seeds", lambda cell: f"{len(cell.ended)}/{len(cell.records)}" if _some(cell) else str(len(cell.ended))),
        ("best", _shown(of.best, ".3f")),
        ("last", _shown(of.last, ".3f")),
        ("all rows", _shown(of.final, ".3f")),
        ("training loss", _shown(of.train_loss, ".4f")),
        ("mean log loss", _shown(lambda record: record["mean_log_loss"], ".2f")),
        ("forwards a step", _mean(of.forwards_a_step, ".2f")),
        ("time / Adam(W)", lambda cell: _number(of.time_ratio(cell, _baseline(cell, cells)), ".2f", "×")),
        ("failed searches", _mean(_if_searched(lambda record: record["failed_searches"]), ".2g")),
        ("components left", _mean(_if_searched(lambda record: len(record["components"])), "g")),
        ("smallest step size", lambda cell: _number(_least(cell, of.smallest_step_size), ".1e")),
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


def _some(cell: Cell) -> bool:
    return len(cell.ended) < len(cell.records)


def _baseline(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """Of the cells with the same task, model, rows and batches Adam's first that was run, or else AdamW's."""
    alike = [other for other in cells if other.ended and (other.task, other.varied) == (cell.task, cell.varied)]
    for name in ("adam", "adamw"):
        for other in alike:
            if other.optimizer.partition(":")[0] == name:
                return other
    return None


def _error(cell: Cell) -> str:
    return next(record["error"] for record in cell.records if record is not None and record["status"] == "failed")


def _shown(value: Callable[[Mapping[str, Any]], float | None], form: str) -> Callable[[Cell], str]:
    def show(cell: Cell) -> str:
        spread = cell.spread(value)
        if spread is None:
            return "diverged" if cell.diverged else _MISSING
        return _spread(spread, form)

    return show


def _spread(spread: Spread, form: str) -> str:
    mean = format(spread.mean, form)
    return mean if spread.deviation is None else f"{mean} ± {format(spread.deviation, form)}"


def _mean(value: Callable[[Mapping[str, Any]], float | None], form: str) -> Callable[[Cell], str]:
    return lambda cell: _number(cell.mean(value), form)


def _number(value: float | None, form: str, after: str = "") -> str:
    return _MISSING if value is None else format(value, form) + after


def _if_searched(value: Callable[[Mapping[str, Any]], float]) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda record: value(record) if of.searched(record) else None


def _least(cell: Cell, value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    return min((found for record in cell.ended.values() if (found := value(record)) is not None), default=None)


def _csv(cells: Sequence[Cell]) -> str:
    """One line for each run, in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    varied = list(dict.fromkeys(key for cell in cells for key in cell.varied))
    values: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "best": of.best,
        "last": of.last,
        "all_rows": of.final,
        "train_loss": of.train_loss,
        "mean_log_loss": lambda record: record["mean_log_loss"],
        "steps": lambda record: record["steps"],
        "forwards": lambda record: record["forwards"],
        "training_seconds": of.training_seconds,
        "failed_searches": _if_searched(lambda record: record["failed_searches"]),
        "merges": _if_searched(lambda record: len(record["merges"])),
        "components": _if_searched(lambda record: len(record["components"])),
        "smallest_step_size": of.smallest_step_size,
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


# ----------------------------------------------------------------------------------------- provenance and legend


def _provenance(cells: Sequence[Cell]) -> str:
    records = [record for cell in cells for record in cell.ended.values()]
    total = sum(len(cell.records) for cell in cells)
    if not records:
        return f"None of {counted(total, 'run')} was done."

    def of_all(value: Callable[[Mapping[str, Any]], Any]) -> str:
        return ", ".join(dict.fromkeys(str(found) for record in records if (found := value(record)) is not None))

    models = of_all(
        lambda record: f"{record['model']['name']} ({record['model']['parameters'] / 1e6:.1f} M parameters)"
    )
    hardware = of_all(
        lambda r: f"{r['hardware'].get('gpu', r['hardware']['cpu'])}, {counted(r['hardware']['threads'], 'thread')}"
    )
    versions = of_all(lambda r: f"torch {r['versions']['torch']}, transformers {r['versions'].get('transformers')}")
    precision = of_all(lambda record: record["config"]["precision"])
    commits = of_all(
        lambda record: (record["commit"] or "unknown")[:12] + ("-dirty" if "-dirty" in str(record["commit"]) else "")
    )
    return (
        f"{len(records)} of {counted(total, 'run')} done. Models: {models}. On: {hardware}; {precision}; {versions}. "
        f"Commits: {commits}."
    )


def _legend(cells: Sequence[Cell]) -> str:
    ended = [record for cell in cells for record in cell.ended.values()]
    if not ended:
        return ""
    rows = ", ".join(
        dict.fromkeys(
            f"{record['task']['name']} {record['task']['train_rows']} rows to train on, "
            f"{record['task']['eval_rows']} held out, the most frequent class {_share(record)}"
            for record in ended
        )
    )
    everywhere = {record["final"] is not None for record in ended}
    final = "after the last epoch on all held-out rows" if everywhere == {True} else "as last, or on all held-out rows"
    return (
        f"*best*, *last*: the task's first metric after the best and the last epoch, on the held-out rows ({rows}); "
        f"*all rows*: {final}. ± is the sample standard deviation over the seeds. *mean log loss* is (1/T)·Σ log f_t "
        "over all steps. *time*: training time over that of the first Adam or AdamW on the same task, rows, batches, "
        "model, hardware and commit, a ratio over shared seeds; runs shared their machine with others, so the study "
        "`overhead` is the one to believe. *failed searches*: steps of a run in which one failed. *smallest step "
        "size*: of any component at any step of any seed."
    )


def _share(record: Mapping[str, Any]) -> str:
    of_all = of.majority(record)
    share = f"{record['majority']:.3f}"
    return share if record["final"] is None or of_all is None else f"{share} of them and {of_all:.3f} of all rows"


# ------------------------------------------------------------------------------------------ what single studies add

PUBLISHED: dict[tuple[str, str], tuple[float, float | None]] = {
    # Digitised from the plots of arXiv 2403.18506, mean of five runs: final accuracy, final training loss.
    ("sst2", "adam"): (0.847, 0.037),
    ("sst2", "paper-sgdsls"): (0.851, None),
    ("sst2", "paper-adamsls"): (0.853, 0.0080),
    ("sst2", "paper-plasls"): (0.852, 0.0031),
    ("mrpc", "adam"): (0.700, 0.22),
    ("mrpc", "paper-sgdsls"): (0.729, None),
    ("mrpc", "paper-adamsls"): (0.740, 0.0062),
    ("mrpc", "paper-plasls"): (0.724, 0.0062),
    ("qnli", "adam"): (0.732, 0.117),
    ("qnli", "paper-sgdsls"): (0.712, None),
    ("qnli", "paper-adamsls"): (0.754, 0.0086),
    ("qnli", "paper-plasls"): (0.741, 0.0136),
    ("mnli", "adam"): (0.470, 0.53),
    ("mnli", "paper-sgdsls"): (0.484, None),
    ("mnli", "paper-adamsls"): (0.553, 0.0088),
    ("mnli", "paper-plasls"): (0.529, 0.015),
}
PUBLISHED_WHOLE: dict[tuple[str, str], tuple[float, float | None]] = {
    (task, name): (value, None)
    for task, values in {
        "sst2": (0.927, 0.917, 0.926, 0.923),
        "mrpc": (0.828, 0.844, 0.867, 0.856),
        "qnli": (0.909, 0.897, 0.904, 0.902),
        "mnli": (0.834, 0.828, 0.835, 0.830),
    }.items()
    for name, value in zip(("adam", "paper-sgdsls", "paper-adamsls", "paper-plasls"), values, strict=True)
}


def _published(numbers: Mapping[tuple[str, str], tuple[float, float | None]]) -> Callable[[Sequence[Cell]], str]:
    def table(cells: Sequence[Cell]) -> str:
        rows = []
        for cell in cells:
            found = numbers.get((cell.task, cell.optimizer))
            if found is None:
                continue
            accuracy, loss = found
            rows.append(
                [
                    cell.task,
                    cell.optimizer,
                    f"{accuracy:.3f}",
                    _shown(of.final, ".3f")(cell) if cell.ended else NOT_RUN,
                    _number(loss, ".4g"),
                    _shown(of.train_loss, ".4f")(cell) if cell.ended else NOT_RUN,
                ]
            )
        headings = ["task", "optimizer", "published accuracy", "here", "published training loss", "here"]
        return (
            "## Beside the published numbers\n\n"
            + aligned(headings, rows)
            + "\nPublished: bert-base-uncased (12 layers, 110 M parameters), five runs, digitised from the plots, ± "
            "0.001. Here: the model and the rows named above; MRPC is judged on the labelled test file (1,725 "
            "rows), QNLI and MNLI on subsets; texts of the small sets are cut at 128 tokens instead of 256. On a "
            "model of six layers the paper's splitting has 8 components, one for each layer, so `n_groups=layers` "
            "is the same optimizer there."
        )

    return table


def _adams(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.optimizer.partition(":")[0] in ("adam", "adamw")]


def _rivalling(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that were run beside others: who is alone at a task is the first there and beats nobody."""
    counts = Counter(cell.task for cell in cells if cell.ended)
    return [cell for cell in cells if cell.ended and counts[cell.task] > 1]


def _against(cells: Sequence[Cell]) -> str:
    """Ranks and differences, who wins how often, and who is how fast."""
    cells = _rivalling(cells)
    return "\n\n".join(part for part in (_ranks(cells), _wins(cells), _time_to_adam(cells)) if part)


def _ranks(cells: Sequence[Cell]) -> str:
    """Ranks, and differences to AdamSLS and to the best Adam in hindsight."""
    cells = _rivalling(cells)
    if not cells:
        return ""
    tasks = of.tasks(cells)
    names = list(dict.fromkeys(cell.name for cell in cells))
    by_place = {(cell.task, cell.name): cell for cell in cells}
    ranks: dict[str, list[float]] = {name: [] for name in names}
    for task in tasks:
        here = [cell for cell in cells if cell.task == task]
        # With fewer seeds a cell's mean is of other runs than its neighbours'.
        seeds = max(len(cell.ended) for cell in here)
        scores = {cell.name: of.score(cell, of.final) for cell in here if len(cell.ended) == seeds}
        for name, score in scores.items():
            above = sum(other > score for other in scores.values())
            equal = sum(other == score for other in scores.values())
            ranks[name].append(above + (equal + 1) / 2)
    hindsight = {task: _best_adam([cell for cell in cells if cell.task == task]) for task in tasks}
    headings = ["optimizer", "mean rank"]
    for task in tasks:
        headings.append(f"{task}: minus adamsls")
        if hindsight[task] is not None:
            headings.append(f"{task}: minus the best Adam(W)")
    rows = []
    for name in sorted(names, key=lambda name: (-len(ranks[name]), sum(ranks[name]))):
        found = ranks[name]
        of_tasks = "" if len(found) == len(tasks) else f" ({counted(len(found), 'task')})"
        row = [name, f"{statistics.fmean(found):.1f}{of_tasks}" if found else _MISSING]
        for task in tasks:
            mine = by_place.get((task, name))
            row.append(_gap(mine, by_place.get((task, "adamsls"))))
            if hindsight[task] is not None:
                row.append(_gap(mine, hindsight[task]))
        rows.append(row)
    said = (
        "On all held-out rows after the last epoch, in points; ranks among the cells with as many seeds as any of "
        "their task, 1 the best. In brackets the 95 % confidence interval of the paired difference (Student's t over "
        "the seeds: it covers what the seed decides, not which rows are held out)."
    )
    chosen = ", ".join(f"{task}: `{cell.name}`" for task, cell in hindsight.items() if cell is not None)
    if any(len(_adams([cell for cell in cells if cell.task == task])) > 1 for task in tasks):
        said += (
            f" The best Adam or AdamW was picked in hindsight, by the very numbers that it is compared on ({chosen})."
        )
    return f"## Ranks and paired differences\n\n{aligned(headings, rows)}\n\n{said}"


def _best_adam(cells: Sequence[Cell]) -> Cell | None:
    """The Adam or AdamW with the best mean after training, of those with the most seeds."""
    adams = _adams(cells)
    return max(adams, key=lambda cell: (len(cell.ended), of.score(cell, of.final)), default=None)


def _gap(cell: Cell | None, other: Cell | None) -> str:
    if cell is None or other is None or other is cell:
        return _MISSING
    gap = of.difference(cell, other, of.final)
    if gap is None:
        return _MISSING
    mean = f"{100 * gap.mean:+.1f}"
    return mean if gap.low is None or gap.high is None else f"{mean} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def _wins(cells: Sequence[Cell]) -> str:
    """Each of our line searches against every other cell of its task."""
    ours = [name for name in dict.fromkeys(cell.name for cell in cells) if _ours(name)]
    rows = []
    for name in ours:
        counts = {"win": 0, "tie": 0, "loss": 0}
        lost = []
        for mine, other in itertools.product(cells, cells):
            if mine.name != name or mine.task != other.task or _ours(other.name):
                continue
            gap = of.difference(mine, other, of.final)
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


def _ours(name: str) -> bool:
    return name.partition(":")[0] in ("adamsls", "plasls", "sgdsls")


def _time_to_adam(cells: Sequence[Cell]) -> str:
    """How soon each cell reaches what the paper's Adam, and what the best Adam, ends at with the same seed."""
    rows = []
    for task in of.tasks(cells):
        here = [cell for cell in cells if cell.task == task]
        for adam in dict.fromkeys((_paper_adam(here), _best_adam(here))):
            if adam is None:
                continue
            targets = {seed: score for seed, record in adam.ended.items() if (score := of.last(record)) is not None}
            for cell in here:
                found = of.reached(cell, targets)
                if found is None:
                    continue
                seeds, epochs, seconds = found
                of_seeds = f"{seeds} of {len(cell.ended.keys() & targets.keys())}"
                took = [f"{epochs:.1f}", f"{seconds:.0f}"] if seeds else [_MISSING, _MISSING]
                rows.append([task, adam.name, cell.name, of_seeds, *took])
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
    """Adam with the rate and the schedule of the paper, or else AdamW with them."""
    named = {cell.optimizer: cell for cell in cells}
    wanted = ("adam", *(f"{name}:lr=2e-5,schedule=cosine,warmup=0.1" for name in ("adam", "adamw")))
    return next((named[name] for name in wanted if name in named), None)


def _searches(cells: Sequence[Cell]) -> str:
    """How far the tests were from being decided by rounding, and why searches failed."""
    cells = [cell for cell in cells if cell.ended]
    rows = []
    for cell in cells:
        for seed, record in cell.ended.items():
            found = record["searches"]
            if found is None:
                continue
            quantiles = [_number(value, ".1f") for value in found["log10"] or [None] * 4]
            failed = Counter(found["failed"])
            rows.append(
                [
                    cell.name,
                    str(seed),
                    str(found["count"]),
                    *quantiles,
                    str(found["below"]),
                    str(found["ties"]),
                    str(failed["order"]),
                    str(failed["rounding"]),
                    str(failed["range"]),
                    str(failed["nonfinite"] + failed["nondeterministic"]),
                    _number(of.smallest_step_size(record), ".1e"),
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


def _peaks(cells: Sequence[Cell]) -> str:
    """Where each run peaks, and how far it falls after."""
    cells = [cell for cell in cells if cell.ended]
    rows = []
    for cell in cells:
        peaks, drops = [], []
        for record in cell.ended.values():
            scores = of.scores(record)
            if any(math.isnan(score) for score in scores):
                continue
            peaks.append(float(scores.index(max(scores)) + 1))
            drops.append(100 * (max(scores) - scores[-1]))
        peak, drop = Spread.of(peaks), Spread.of(drops)
        if peak is not None and drop is not None:
            rows.append(
                [cell.task, cell.name, _spread(peak, ".1f"), _shown(of.best, ".3f")(cell), _spread(drop, ".1f")]
            )
    headings = ["task", "optimizer", "epoch of the peak", "peak", "points lost until the end"]
    return "## After the peak\n\n" + aligned(headings, rows) if rows else ""


def _costs(cells: Sequence[Cell]) -> str:
    """Time and forwards against Adam with the same rows, batches, lengths and model."""
    cells = [cell for cell in cells if cell.ended]
    rows = []
    for cell in cells:
        adam = _baseline(cell, cells)
        seconds = cell.mean(lambda r: of.training_seconds(r) / len(r["epochs"]))
        evaluation = cell.mean(lambda r: r["seconds"]["evaluation"] / len(r["epochs"]))
        rows.append(
            [
                cell.name,
                _number(seconds, ".2f"),
                _number(of.time_ratio(cell, adam), ".2f", "×"),
                _mean(of.forwards_a_step, ".2f")(cell),
                _number(of.time_ratio(cell, adam, of.last_epoch_seconds), ".2f", "×"),
                _mean(of.last_epoch_forwards, ".2f")(cell),
                _number(evaluation, ".2f"),
                _mean(lambda r: r["peak_memory"].get("cuda", r["peak_memory"].get("resident", 0)) / 2**20, ".0f")(cell),
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


_EXTRA: Mapping[str, Sequence[Callable[[Sequence[Cell]], str]]] = {
    "paper-small": (_published(PUBLISHED), _ranks),
    "paper-full": (_published(PUBLISHED_WHOLE), _ranks, _peaks),
    "rivals": (_against,),
    "frozen": (_searches,),
    "annealing": (_peaks,),
    "overhead": (_costs,),
    "granularity": (_against,),
}


# ------------------------------------------------------------------------------------------------------- figures


def _draw(header: Header, cells: Sequence[Cell], folder: Path) -> list[tuple[Path, str]]:
    try:
        from armijo_lab.results import lab_figures
    except ImportError:
        return []
    images = folder / "images"
    return lab_figures.draw(header.study, header.page, cells, images)
