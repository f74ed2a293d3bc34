"""The page of a study: its tables (Markdown, CSV) and figures (PNG), with the command that did the runs.

A page is made from the records alone. Conclusions are written by a person in `results/NAME.md`; the page shows them
above the tables. A cell without a record is printed as "not run".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armijo_lab.names import counted
from armijo_lab.results import quantities
from armijo_lab.results.cells import Cell, task_names
from armijo_lab.results.main_table import main_table, runs_csv
from armijo_lab.results.run_folder import write_text

__all__ = ["Page", "write"]


@dataclass(frozen=True)
class Page:
    """What a page shows beside its main tables.

    Attributes:
        name: The name of the page's files.
        title: A few words.
        question: The question that the study answers.
        command: The command that does its runs.
        report: The command that makes the page.
        notes: A person's conclusions; `None` if there are none yet.
        tables: Functions from the cells to more Markdown, `""` for none.
        figures: Names of `page_figures.FIGURES`.
    """

    name: str
    title: str
    question: str
    command: str
    report: str
    notes: str | None = None
    tables: Sequence[Callable[[Sequence[Cell]], str]] = ()
    figures: Sequence[str] = ()


_GROWING = (
    "On this page AdamSLS, PLASLS and SGDSLS mean what they were until November 2026, `growing-adamsls` and so on: "
    "β1 = 0.9, c = 0.1, a step size that grows, a search in each step, with PLASLS one component at a time. `adamsls`, "
    "`plasls` and `sgdsls` are those of today."
)


def write(page: Page, cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write `NAME.md`, `NAME.csv` and the figures of a page into a folder, which is made.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Figures and comparisons show what was run; the main table lists every cell.
    completed = [cell for cell in cells if cell.ended]
    figures = _draw(page, completed, folder) if completed else []
    parts = [f"# {page.title}", page.question]
    parts.append(f"    {page.command}\n    {page.report}")
    parts.append(_provenance(cells))
    if any(cell.optimizer.startswith("growing-") for cell in completed):
        parts.append(_GROWING)
    if page.notes:
        parts.append(page.notes.strip())
    parts += [f"![{caption}]({path.relative_to(folder).as_posix()})" for path, caption in figures]
    for task in task_names(cells):
        parts += [f"## {task}", main_table([cell for cell in cells if cell.task == task])]
    parts += [text for table in page.tables if (text := table(cells))]
    parts.append(_legend(cells))
    markdown, data = folder / f"{page.name}.md", folder / f"{page.name}.csv"
    write_text(markdown, "\n\n".join(parts) + "\n")
    write_text(data, runs_csv(cells))
    return [markdown, data, *(path for path, _ in figures)]


def _draw(page: Page, cells: Sequence[Cell], folder: Path) -> list[tuple[Path, str]]:
    """Draw the page's figures; none without matplotlib."""
    try:
        from armijo_lab.results import page_figures
    except ImportError:
        return []
    return page_figures.draw(page.figures, page.name, cells, folder / "images")


def _provenance(cells: Sequence[Cell]) -> str:
    records = [record for cell in cells for record in cell.ended.values()]
    total = sum(len(cell.records) for cell in cells)
    if not records:
        return f"None of {counted(total, 'run')} was done."

    def join_distinct(value: Callable[[Mapping[str, Any]], Any]) -> str:
        return ", ".join(dict.fromkeys(str(item) for record in records if (item := value(record)) is not None))

    models = join_distinct(
        lambda record: f"{record['model']['name']} ({record['model']['parameters'] / 1e6:.1f} M parameters)"
    )
    hardware = join_distinct(
        lambda r: f"{r['hardware'].get('gpu', r['hardware']['cpu'])}, {counted(r['hardware']['threads'], 'thread')}"
    )
    versions = join_distinct(
        lambda r: f"torch {r['versions']['torch']}, transformers {r['versions'].get('transformers')}"
    )
    precision = join_distinct(lambda record: record["config"]["precision"])
    commits = join_distinct(
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
            f"{record['task']['eval_rows']} held out, the most frequent class {_majority_text(record)}"
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


def _majority_text(record: Mapping[str, Any]) -> str:
    total_share = quantities.majority(record)
    share = f"{record['majority']:.3f}"
    return (
        share
        if record["final"] is None or total_share is None
        else f"{share} of them and {total_share:.3f} of all rows"
    )
