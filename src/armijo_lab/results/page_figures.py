"""The figures of the laboratory's pages, drawn from the cells of a study as PNG."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armijo_lab.results import quantities
from armijo_lab.results.cells import Cell, task_names, time_ratio
from armijo_lab.results.figures import INK, PALETTE, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "draw"]


def draw(names: Sequence[str], page: str, cells: Sequence[Cell], folder: Path) -> list[tuple[Path, str]]:
    """Draw the figures called `names` into a folder, which is made; return each PNG file with its caption.

    A figure of step sizes is left out where no cell is a line search.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name in names:
        make, caption = FIGURES[name]
        text = caption(cells)
        if text is not None:
            path = folder / f"{page}-{name}.png"
            save(make(cells), path)
            drawn.append((path, text))
    return drawn


def _accuracy_caption(cells: Sequence[Cell]) -> str:
    return "Accuracy of each seed and the mean, on all held-out rows after training; dashed: the most frequent class"


def _epochs_caption(cells: Sequence[Cell]) -> str:
    cut = f"; of each task the {len(PALETTE)} cells that end highest" if _is_crowded(cells) else ""
    return f"Accuracy after each epoch, mean over the seeds{cut}"


def _step_sizes_caption(cells: Sequence[Cell]) -> str | None:
    if not any(quantities.has_line_search(record) for cell in cells for record in cell.ended.values()):
        return None
    crowded = _is_crowded(_line_searches(cells))
    cut = f"; of each task the first {len(PALETTE)} line searches of the table" if crowded else ""
    return f"The smallest and the largest step size at each step, seed 0{cut}"


def _time_caption(cells: Sequence[Cell]) -> str:
    return "Training time an epoch against Adam"


def _line_searches(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if 0 in cell.ended and quantities.has_line_search(cell.ended[0])]


def _is_crowded(cells: Sequence[Cell]) -> bool:
    """Whether a task has more cells than there are colours."""
    return any(len(group) > len(PALETTE) for group in _by_task(cells).values())


def _by_task(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    return {task: [cell for cell in cells if cell.task == task] for task in task_names(cells)}


def _color_index(cell: Cell) -> int:
    """Return the index of the colour of an optimizer's kind."""
    name = cell.optimizer.partition(":")[0].removeprefix("paper-").removeprefix("growing-")
    return {"plasls": 0, "adamsls": 1, "sgdsls": 2, "adam": 3, "adamw": 3}.get(name, 4)


def _draw_accuracy(cells: Sequence[Cell]) -> Figure:
    """Draw one line for each cell and one point for each seed, the best mean on top."""
    panels = _by_task(cells)
    height = max(len(group) for group in panels.values())
    figure = new_figure(max(7.0, 6.2 * len(panels)), 1.4 + 0.28 * height)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (task, group) in zip(axes, panels.items(), strict=True):
        ordered = sorted(group, key=lambda cell: cell.mean(quantities.final) or 0.0)
        for place, cell in enumerate(ordered):
            color = PALETTE[_color_index(cell)]
            values = [value for record in cell.ended.values() if (value := quantities.final(record)) is not None]
            axis.plot(values, [place] * len(values), "o", color=color, alpha=0.55, markersize=5, markeredgewidth=0)
            if values:
                axis.plot([statistics.fmean(values)], [place], "|", color=color, markersize=13, markeredgewidth=2.5)
        axis.set_yticks(range(len(ordered)), [plain(cell.name) for cell in ordered], fontsize=8)
        axis.set_ylim(-0.6, len(ordered) - 0.4)
        _draw_majority(axis, group)
        axis.set(title=task, xlabel="accuracy")
    return figure


def _draw_majority(axis: Axes, cells: Sequence[Cell]) -> None:
    records = [record for cell in cells for record in cell.ended.values()]
    share: set[Any] = {quantities.majority(record) for record in records} - {None}
    if len(share) == 1:
        axis.axvline(share.pop(), color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)


def _styles(panels: Iterable[Sequence[Cell]]) -> dict[str, tuple[str, str]]:
    """Return a colour and a dash for each cell's name, the same in all panels."""
    names = dict.fromkeys(cell.name for group in panels for cell in group)
    dashes = ("-", "--", ":", "-.")
    return {
        name: (PALETTE[place % len(PALETTE)], dashes[place // len(PALETTE) % len(dashes)])
        for place, name in enumerate(names)
    }


def _draw_epochs(cells: Sequence[Cell]) -> Figure:
    """Draw the accuracy after each epoch for the cells that end highest, as many as there are colours."""

    def final_score(cell: Cell) -> float:
        return cell.mean(quantities.final) or 0.0

    panels = {
        task: sorted(group, key=final_score, reverse=True)[: len(PALETTE)] for task, group in _by_task(cells).items()
    }
    styles = _styles(panels.values())
    figure = new_figure(max(6.0, 5.0 * len(panels)), 4.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (task, chosen) in zip(axes, panels.items(), strict=True):
        for cell in chosen:
            runs = [quantities.scores(record) for record in cell.ended.values()]
            means = [statistics.fmean(scores) for scores in zip(*runs, strict=True)]
            color, dash = styles[cell.name]
            axis.plot(
                range(1, len(means) + 1), means, "o", linestyle=dash, color=color, markersize=3, label=plain(cell.name)
            )
        axis.set(title=task, xlabel="epoch", ylabel="accuracy")
        axis.legend(frameon=False, fontsize=7)
    return figure


def _draw_step_sizes(cells: Sequence[Cell]) -> Figure:
    panels = {task: group[: len(PALETTE)] for task, group in _by_task(_line_searches(cells)).items()}
    styles = _styles(panels.values())
    figure = new_figure(max(6.0, 5.0 * len(panels)), 4.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (task, group) in zip(axes, panels.items(), strict=True):
        for cell in group:
            record = cell.ended[0]
            low, high = ([size or math.nan for size in record[key]] for key in ("smallest", "largest"))
            steps = range(1, len(low) + 1)
            color, dash = styles[cell.name]
            axis.plot(steps, low, color=color, linestyle=dash, linewidth=1.3, label=plain(cell.name))
            axis.plot(steps, high, color=color, linestyle=dash, linewidth=0.8, alpha=0.5)
            axis.fill_between(steps, low, high, color=color, alpha=0.08)
        axis.set(title=task, xlabel="step", ylabel="step size", yscale="log")
        axis.legend(frameon=False, fontsize=7)
    return figure


def _draw_times(cells: Sequence[Cell]) -> Figure:
    pairs = []
    for cell in cells:
        same = [c for c in cells if c.varied == cell.varied and c.optimizer == "adam" and c.task == cell.task]
        ratio = time_ratio(cell, same[0] if same else None)
        if ratio is not None and cell.optimizer != "adam":
            pairs.append((cell, ratio))
    figure = new_figure(8.0, 1.4 + 0.25 * max(1, len(pairs)))
    axis = figure.subplots()
    for place, (cell, ratio) in enumerate(reversed(pairs)):
        axis.barh(place, ratio, color=PALETTE[_color_index(cell)])
        axis.annotate(
            f"{ratio:.2f}×", (ratio, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7
        )
    axis.set_yticks(range(len(pairs)), [plain(cell.name) for cell, _ in reversed(pairs)], fontsize=8)
    axis.axvline(1.0, color=INK, linewidth=1)
    axis.set(xlabel="training time an epoch, over Adam's")
    return figure


FIGURES: dict[str, tuple[Callable[[Sequence[Cell]], Figure], Callable[[Sequence[Cell]], str | None]]] = {
    "accuracy": (_draw_accuracy, _accuracy_caption),
    "epochs": (_draw_epochs, _epochs_caption),
    "step-sizes": (_draw_step_sizes, _step_sizes_caption),
    "time": (_draw_times, _time_caption),
}
"""What draws each figure, and its caption; a caption of `None` leaves the figure out."""
