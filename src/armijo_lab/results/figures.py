"""Figures of runs, drawn from their logs in colours that are safe for colour-blind readers."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import armijo
from armijo.observers.matplotlib import (
    INK,
    PALETTE,
    draw_forwards,
    draw_losses,
    draw_step_sizes,
    log_ticks,
    new_figure,
    plain,
    smooth,
    style,
    whole_numbers,
)
from armijo_lab.errors import BadInputError
from armijo_lab.results.run_folder import Run, read_run
from armijo_lab.results.tables import LOSS_FLOOR, grouped, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["INK", "PALETTE", "draw_comparison", "draw_run", "new_figure", "plain", "reports", "save"]

_LEGEND_LIMIT = 16
_DPI = 150


def draw_run(folder: Path) -> list[Path]:
    """Draw `figures/training.png` of a run: loss, validation, and of a line search forward passes and step sizes.

    Args:
        folder: The run folder, with its summary and at least one step.

    Returns:
        The files that were written.

    Raises:
        BadInputError: There is no run in `folder`.
    """
    run = read_run(folder)
    if not run.steps:
        return []
    panels: list[Callable[[Axes, Run], None]] = [_draw_loss, _draw_validation]
    if any(step["components"] for step in run.steps):
        figure = new_figure(13, 8)
        panels += [_draw_forwards, _draw_step_sizes]
        axes = figure.subplot_mosaic([["loss", "validation", "forwards"], ["sizes"] * 3], height_ratios=[1, 1.3])
    else:
        figure = new_figure(13, 4)
        panels.append(_draw_rate)
        axes = figure.subplot_mosaic([["loss", "validation", "rate"]])
    for draw, axis in zip(panels, axes.values(), strict=True):
        draw(axis, run)
        axis.set_xlabel("step")
        axis.set_xlim(0, 1.02 * run.steps[-1]["step"] + 1)
        for epoch in run.epochs[:-1]:
            axis.axvline(epoch["step"] + 0.5, color="#BBBBBB", linewidth=0.8, linestyle=":", zorder=0)
    figure.suptitle(plain(f"{label(run)} on {run.summary['task']['name']}"), fontsize=14, color=INK)
    return [save(figure, folder / "figures" / "training.png")]


def draw_comparison(runs: Sequence[Run], path: Path) -> Path:
    """Draw runs side by side: training loss and validation over the run, and validation against training time.

    Each line is the mean over an optimizer's seeds and each band one sample standard deviation to either side (of the
    logarithm, for the loss). Runs that are not completed are left out with a warning.

    Args:
        runs: Runs on one task.
        path: The PNG file to write; its folder is made.

    Raises:
        BadInputError: No run is completed, or they are on more than one task.
    """
    groups = grouped(runs)
    tasks = {task for task, _ in groups}
    if len(tasks) > 1:
        raise BadInputError(f"Runs on {', '.join(sorted(tasks))} cannot stand in one figure; draw one for each task.")
    first = next(iter(groups.values()))[0]
    metric = first.summary["task"]["metrics"][0]
    figure = new_figure(14.5, 5.0)
    loss, validation, time = figure.subplots(1, 3)
    for place, ((_, optimizer), members) in enumerate(groups.items()):
        # A colour that is used again gets another line style.
        color = PALETTE[place % len(PALETTE)]
        look: dict[str, Any] = {"color": color, "linestyle": ("-", "--", ":")[place // len(PALETTE) % 3]}
        _draw_losses(loss, members, look)
        _draw_epochs(validation, time, members, {**look, "label": plain(optimizer)})
    loss.set(title="Training loss", xlabel="step", ylabel="batch loss, smoothed (log)", yscale="log")
    log_ticks(loss)
    validation.set(title=f"Validation {metric}", xlabel="epoch", ylabel=f"validation {metric}")
    whole_numbers(validation.xaxis)
    majority = first.summary["result"]["majority"]
    if metric == "accuracy" and majority is not None:
        for axis in (validation, time):
            axis.axhline(majority, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        validation.annotate(
            "majority class",
            (1, majority),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=INK,
        )
    time.set(title="Against training time", xlabel="training time (s)", ylabel=f"validation {metric}")
    time.set_xlim(left=0)
    handles, names = validation.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4), frameon=False)
    seeds = {len(members) for members in groups.values()}
    many = f", mean ± standard deviation over {'–'.join(str(n) for n in sorted(seeds))} seeds" if max(seeds) > 1 else ""
    figure.suptitle(plain(first.summary["task"]["name"]) + many, fontsize=13, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(figure, path)


# ------------------------------------------------------------------------------------------ the panels of a run


def _draw_loss(axis: "Axes", run: Run) -> None:
    draw_losses(axis, reports(run))
    axis.set(title="Training loss", ylabel="loss (nats)" if run.summary["task"]["labels"] else "loss")
    axis.legend(frameon=False, loc="upper right", ncols=2)


def _draw_validation(axis: "Axes", run: Run) -> None:
    steps = [epoch["step"] for epoch in run.epochs]
    metrics = run.summary["task"]["metrics"]
    for place, metric in enumerate(metrics):
        values = [_value(epoch["evaluation"][metric]) for epoch in run.epochs]
        width = 2 if place == 0 else 1.2
        axis.plot(steps, values, marker="o", color=PALETTE[place], linewidth=width, label=plain(metric))
        finite = [value for value in values if not math.isnan(value)]
        if place == 0 and finite:
            best = values.index(max(finite))
            axis.annotate(
                f"{values[best]:.3f}",
                (steps[best], values[best]),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontweight="bold",
                color=PALETTE[0],
            )
    majority = run.summary["result"]["majority"]
    if majority is not None and metrics[0] == "accuracy":
        axis.axhline(majority, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="majority class")
    axis.set(title="Validation", ylabel=metrics[0] if len(metrics) == 1 else "metric")
    axis.margins(y=0.18)
    axis.legend(frameon=False, loc="best")


def _draw_rate(axis: "Axes", run: Run) -> None:
    steps = [step["step"] for step in run.steps]
    axis.plot(steps, [_value(step["lr"]) for step in run.steps], color=PALETTE[0], linewidth=2)
    axis.set(title="Learning rate", ylabel="learning rate")
    axis.set_ylim(bottom=0)


def _draw_step_sizes(axis: "Axes", run: Run) -> None:
    draw_step_sizes(axis, reports(run))
    handles, names = axis.get_legend_handles_labels()
    lines = len({component["label"] for step in run.steps for component in step["components"]})
    if lines > _LEGEND_LIMIT:
        # Too many lines for a legend: the names of the first and the last show the order of the colours.
        kept = [0, lines - 1, *range(lines, len(handles))]
        names[0], names[lines - 1] = f"first: {names[0]}", f"last of {lines}: {names[lines - 1]}"
        handles, names = [handles[place] for place in kept], [names[place] for place in kept]
    if len(handles) > 1:
        axis.legend(handles, names, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)


def _draw_forwards(axis: "Axes", run: Run) -> None:
    draw_forwards(axis, reports(run))
    axis.set_ylabel("forward passes")


def reports(run: Run) -> list[armijo.StepReport]:
    """Return the steps of a run as reports of the optimizer; numbers that were not finite are NaN."""
    return [
        armijo.StepReport(
            step=step["step"],
            loss=_value(step["loss"]),
            components=tuple(
                armijo.ComponentReport(
                    label=component["label"],
                    status=armijo.Status(component["status"]),
                    step_size=_value(component["step_size"]),
                    slope=_value(component["slope"]),
                    trials=component["trials"],
                    trial_loss=component["trial_loss"],
                )
                for component in step["components"]
            ),
            merges=tuple((kept, absorbed) for kept, absorbed in step["merges"]),
            forwards=step["forwards"],
            total_forwards=step["total_forwards"],
        )
        for step in run.steps
    ]


# ---------------------------------------------------------------------------------------- the panels of many


def _draw_losses(axis: "Axes", runs: list[Run], look: dict[str, Any]) -> None:
    seeds = [smooth([math.log(max(_value(s["loss"]), LOSS_FLOOR)) for s in run.steps]) for run in runs]
    columns = list(zip(*seeds, strict=False))  # as far as every seed goes
    steps = list(range(1, len(columns) + 1))
    means = [statistics.fmean(column) for column in columns]
    axis.plot(steps, [math.exp(mean) for mean in means], linewidth=1.8, **look)
    if len(runs) > 1:
        spreads = [statistics.stdev(column) if all(map(math.isfinite, column)) else math.nan for column in columns]
        low = [math.exp(mean - spread) for mean, spread in zip(means, spreads, strict=True)]
        high = [math.exp(mean + spread) for mean, spread in zip(means, spreads, strict=True)]
        axis.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _draw_epochs(validation: "Axes", time: "Axes", runs: list[Run], look: dict[str, Any]) -> None:
    metric = runs[0].summary["task"]["metrics"][0]
    columns = list(zip(*([_value(e["evaluation"][metric]) for e in run.epochs] for run in runs), strict=False))
    epochs = list(range(1, len(columns) + 1))
    means = [statistics.fmean(column) for column in columns]
    validation.plot(epochs, means, marker="o", markersize=4, linewidth=1.8, **look)
    if len(runs) > 1:
        spreads = [statistics.stdev(column) if all(map(math.isfinite, column)) else math.nan for column in columns]
        low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
        high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        validation.fill_between(epochs, low, high, color=look["color"], alpha=0.15, linewidth=0)
    elapsed = [statistics.fmean(column) for column in zip(*map(_elapsed, runs), strict=False)]
    time.plot(elapsed, means, marker="o", markersize=4, linewidth=1.8, **look)


def _elapsed(run: Run) -> list[float]:
    """The seconds of training up to the end of each epoch."""
    return [epoch["seconds"]["training"] for epoch in run.epochs]


# --------------------------------------------------------------------------------------------------- shared


def _value(value: float | None) -> float:
    # Logs hold null for numbers that are not finite; NaN makes a gap in the line.
    return math.nan if value is None else value


def save(figure: "Figure", path: Path) -> Path:
    """Write a figure as PNG, in the style of all figures of this project."""
    style(figure)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    return path
