"""Figures of what the steps of a run did, one after it or one while it goes on; needs matplotlib.

matplotlib is imported where something is drawn, and no global state of it is used or changed. The parts that draw into
given axes are the laboratory's too.
"""

from __future__ import annotations

import functools
import io
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from armijo.errors import ConfigurationError
from armijo.observers.recorder import StepRecorder, is_first_rank
from armijo.observers.report import StepReport
from armijo.search.values import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

__all__ = [
    "INK",
    "PALETTE",
    "LivePanel",
    "colors",
    "draw_forwards",
    "draw_losses",
    "draw_step_sizes",
    "log_ticks",
    "new_figure",
    "panel",
    "plain",
    "smooth",
    "style",
    "whole_numbers",
]

# Okabe and Ito's palette, without its black and its yellow, which is too light for a thin line.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
INK = "#333333"
_FAILURES = (Status.EXHAUSTED, Status.NONDETERMINISTIC, Status.NONFINITE, Status.ASCENT)
# What matters most comes last: where many steps share a pixel, it is what is seen.
_STATUSES = {
    Status.UNSEARCHED: "#E4E4E4",
    Status.SKIPPED: "#A6D0EC",
    Status.ACCEPTED: "#009E73",
    Status.EXHAUSTED: "#E69F00",
    Status.ASCENT: "#D55E00",
    Status.NONDETERMINISTIC: "#CC79A7",
    Status.NONFINITE: "#000000",
}
_COLUMNS = 700
"""The most columns in the picture of the statuses."""
_ROW = 0.17
"""Inches for a component there."""
_ROWS = 26
"""Components from which on the rows grow thinner."""
_LETTERS = 28
"""The longest name of a component that is written out."""
_WIDTH = 7.0


def panel(steps: Iterable[StepReport], *, title: str | None = None) -> Figure:
    """Draw a run: losses, step sizes, forward passes, and what became of each component's search.

    The four parts share their horizontal axis. The marks beside the names below have the colours of the lines above.

    Args:
        steps: the steps in their order, as `read_steps` or `StepRecorder.steps` returns them.
        title: what stands above it.

    Returns:
        A figure that belongs to no window: `figure.savefig("steps.png")`. As the last value of a notebook's cell it
        is shown.

    Raises:
        ConfigurationError: there are no steps.
        ImportError: matplotlib is not installed.

    Examples:
        >>> import torch, armijo
        >>> from armijo.observers.recorder import StepRecorder
        >>> weight, recorder = torch.nn.Parameter(torch.ones(3)), StepRecorder()
        >>> optimizer = armijo.SGDSLS([weight], initial_step_size=0.1)
        >>> handle = optimizer.register_observer(recorder)
        >>> for _ in range(3):
        ...     loss = optimizer.step(lambda: (weight**2).sum())
        >>> figure = panel(recorder.steps)
        >>> [axis.get_title(loc="left") for axis in figure.axes]
        ['Loss', 'Step size', 'Forward passes a step, mean 2.00',
         'Status, 100 % accepted where searched']
    """
    reports = list(steps)
    if not reports:
        raise ConfigurationError(
            "There are no steps to draw. Register the recorder before the first step: "
            "optimizer.register_observer(recorder)."
        )
    figure = new_figure(_WIDTH, 1.0)
    _fill(figure, reports, title)
    # A notebook shows the figures of pyplot by itself; of others it asks for this.
    vars(figure)["_repr_png_"] = functools.partial(_png, figure)
    return figure


class LivePanel:
    """An observer that draws the panel of the run so far, again and again, below the cell of a notebook.

    Elsewhere than in a notebook only `figure` changes. Between two drawings lie at least `every` steps, `seconds`, and
    fifty times what a drawing takes, so that drawing costs no more than 2 % of the time. The last steps may be
    missing; `draw()` adds them. All reports are kept in memory. On several ranks only rank 0 draws.

    Args:
        every: the fewest steps between two drawings, ≥ 1.
        seconds: the least time between them, ≥ 0.
        title: what stands above the panel.

    Raises:
        ConfigurationError: an argument is out of its range.
        ImportError: matplotlib is not installed.

    Attributes:
        figure: the figure as last drawn, for instance for `figure.savefig("steps.png")`.

    Examples:
        >>> import torch, armijo
        >>> weight, live = torch.nn.Parameter(torch.ones(3)), LivePanel(every=1, seconds=0)
        >>> optimizer = armijo.SGDSLS([weight], initial_step_size=0.1)
        >>> handle = optimizer.register_observer(live)
        >>> loss = optimizer.step(lambda: (weight**2).sum())
        >>> len(live.figure.axes)
        4
    """

    _SHARE = 50.0

    def __init__(self, every: int = 10, seconds: float = 5.0, *, title: str | None = None) -> None:
        if every < 1 or not seconds >= 0:
            raise ConfigurationError(
                f"every is {every} and seconds is {seconds}; a panel needs at least 1 step and 0 seconds between two "
                "drawings."
            )
        self.figure = new_figure(_WIDTH, 1.0)
        self._every, self._seconds, self._title = every, seconds, title
        self._recorder = StepRecorder()
        self._waiting = 0
        self._next = -math.inf
        self._shown: Any = None

    def __call__(self, report: StepReport) -> None:
        """Take up one step, and draw if it is time."""
        if not is_first_rank():
            return
        self._recorder(report)
        self._waiting += 1
        if self._waiting >= self._every and time.monotonic() >= self._next:
            self.draw()

    def draw(self) -> None:
        """Draw all steps so far, if there are any."""
        steps = self._recorder.steps
        if not steps:
            return
        began = time.monotonic()
        self.figure.clear()
        _fill(self.figure, steps, self._title)
        self._show()
        now = time.monotonic()
        self._waiting, self._next = 0, now + max(self._seconds, self._SHARE * (now - began))

    def _show(self) -> None:
        try:
            from IPython import get_ipython  # pyright: ignore[reportMissingImports]
            from IPython.display import Image, display  # pyright: ignore[reportMissingImports]
        except ImportError:
            return
        # A terminal has a shell too, but nothing that shows pictures.
        if getattr(get_ipython(), "kernel", None) is None:
            return
        content, size = _png(self.figure)
        picture = Image(content, **size)
        if self._shown is None:
            self._shown = display(picture, display_id=True)
        else:
            self._shown.update(picture)


def _png(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """A picture with half as many pixels again as it is shown in, and that size."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=144)
    return content.getvalue(), {"width": int(96 * figure.get_figwidth()), "height": int(96 * figure.get_figheight())}


def _fill(figure: Figure, steps: Sequence[StepReport], title: str | None) -> None:
    rows = len(_lines(steps))
    heights = (1.7, 2.3, 0.9, _ROW * (min(rows, _ROWS) + 1))
    figure.set_figheight(sum(heights) + 1.8 + (0.3 if title else 0.0))
    losses, sizes, forwards, statuses = figure.subplots(4, 1, sharex=True, height_ratios=heights)
    draw_losses(losses, steps)
    draw_step_sizes(sizes, steps)
    draw_forwards(forwards, steps)
    legend = _draw_statuses(statuses, steps)
    for axis in figure.axes:
        axis.set_title(axis.get_title(), loc="left", fontsize=9, color=INK)
        axis.set_title("")
        axis.yaxis.label.set_fontsize(8)
        axis.tick_params(labelsize=8, color="#AAAAAA")
    losses.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")
    sizes.set_ylabel("η (log)")
    marks = [(h, n) for h, n in zip(*sizes.get_legend_handles_labels(), strict=True) if n in _MARKS]
    if marks:
        sizes.legend(*zip(*marks, strict=True), frameon=False, fontsize=8, ncols=2, loc="upper right")
    statuses.set_xlabel("step", fontsize=8)
    whole_numbers(statuses.xaxis)
    statuses.set_xlim(min(step.step for step in steps) - 0.5, max(step.step for step in steps) + 0.5)
    # A short thick line in the colour of the component, where an axis has its ticks.
    statuses.tick_params(axis="y", length=8, width=3)
    names = colors(rows)
    for row, tick in zip(statuses.get_yticks(), statuses.yaxis.get_major_ticks(), strict=True):
        tick.tick1line.set_markeredgecolor(names[int(row)])
    figure.legend(handles=legend, loc="outside lower right", frameon=False, fontsize=8, ncols=len(legend))
    figure.align_ylabels([losses, sizes, forwards])
    style(figure)
    if title:
        figure.suptitle(plain(title), fontsize=11, color=INK)


# ------------------------------------------------------------------------------------------- the parts of a panel


_MARKS = ("search failed", "merged")


def draw_losses(axis: Axes, steps: Sequence[StepReport]) -> None:
    """The loss of each step and its running mean, on a logarithmic axis if the mean covers more than a decade."""
    places, losses = [step.step for step in steps], [step.loss for step in steps]
    smoothed = smooth(losses)
    # A line of one point has no length.
    alone = "o" if len(steps) == 1 else None
    axis.plot(places, losses, color=PALETTE[5], linewidth=0.8, alpha=0.6, label="batch")
    axis.plot(places, smoothed, color=PALETTE[0], linewidth=2, marker=alone, markersize=4, label="running mean")
    finite = [loss for loss in losses if math.isfinite(loss)]
    means = [mean for mean in smoothed if math.isfinite(mean)]
    if min(finite, default=0.0) > 0 and max(means) > 10 * min(means):
        axis.set_yscale("log")
        log_ticks(axis)
    elif min(finite, default=0.0) >= 0:
        axis.set_ylim(0, 1.25 * max(finite, default=1.0) or 1.0)
    lost = [step.step for step in steps if not math.isfinite(step.loss)]
    if lost:
        axis.plot(
            lost,
            [0.04] * len(lost),
            "x",
            color="black",
            markersize=5,
            transform=axis.get_xaxis_transform(),
            label="not finite",
        )
    axis.set(title="Loss", ylabel="loss")


def draw_step_sizes(axis: Axes, steps: Sequence[StepReport]) -> None:
    """A line for each component, labelled with its name, and marks where a search failed and where one was merged."""
    lines = _lines(steps)
    failures: tuple[list[int], list[float]] = ([], [])
    merged: tuple[list[int], list[float]] = ([], [])
    for step in steps:
        sizes = {component.label: _positive(component.step_size) for component in step.components}
        for component in step.components:
            if component.status in _FAILURES:
                failures[0].append(step.step)
                failures[1].append(sizes[component.label])
        for _, absorbed in step.merges:
            merged[0].append(step.step)
            merged[1].append(sizes[absorbed])
    for place, ((name, (places, values)), color) in enumerate(zip(lines.items(), colors(len(lines)), strict=True)):
        # Components often share a step size: later lines are thinner, so that none hides another.
        width = 1.2 + 1.8 * (1 - place / max(1, len(lines) - 1)) if len(lines) > 1 else 2
        alone = "o" if len(places) == 1 else None
        axis.plot(places, values, color=color, linewidth=width, marker=alone, markersize=4, label=plain(name))
    if failures[0]:
        size = 5 if len(failures[0]) < 50 else 3
        axis.plot(*failures, "x", color="black", markersize=size, markeredgewidth=size / 4, label=_MARKS[0], zorder=4)
    if merged[0]:
        axis.plot(*merged, "o", color="black", markerfacecolor="white", markersize=5, label=_MARKS[1], zorder=4)
    title = "Step size of each component" if len(lines) > 1 else "Step size"
    axis.set(title=title, ylabel="step size η (log)", yscale="log")
    log_ticks(axis)


def draw_forwards(axis: Axes, steps: Sequence[StepReport]) -> None:
    """The forward passes of each step: one with gradients, and one for each trial."""
    places, passes = [step.step for step in steps], [step.forwards for step in steps]
    # One shape however many steps there are; a bar each takes seconds to draw.
    edges = [edge for place in places for edge in (place - 0.5, place + 0.5)]
    axis.fill_between(edges, [p for p in passes for _ in range(2)], color=PALETTE[5], alpha=0.5, linewidth=0)
    axis.plot(places, smooth(passes), color=PALETTE[0], linewidth=2)
    axis.set(title=f"Forward passes a step, mean {statistics.fmean(passes):.2f}", ylabel="passes")
    axis.set_ylim(0, 1.1 * max(passes))
    whole_numbers(axis.yaxis)


def _draw_statuses(axis: Axes, steps: Sequence[StepReport]) -> list[Patch]:
    """A row for each component, coloured by the status of each step; a merge leads from the row that ends to another.

    Where several steps share a column, the worst status is seen. Returned are the colours' meanings, for a legend.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    ranks = {status: rank for rank, status in enumerate(_STATUSES)}
    rows = {label: row for row, label in enumerate(_lines(steps))}
    first, last = min(step.step for step in steps), max(step.step for step in steps)
    columns = min(_COLUMNS, last - first + 1)
    picture = [[math.nan] * columns for _ in rows]
    searches, accepted = 0, 0
    for step in steps:
        column = (step.step - first) * columns // (last - first + 1)
        for component in step.components:
            row = picture[rows[component.label]]
            rank = float(ranks[component.status])
            row[column] = rank if math.isnan(row[column]) else max(row[column], rank)
            if component.trials:
                searches += 1
                accepted += component.status is Status.ACCEPTED
    axis.imshow(
        picture,
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(list(_STATUSES.values())),
        vmin=-0.5,
        vmax=len(_STATUSES) - 0.5,
        extent=(first - 0.5, last + 0.5, len(rows) - 0.5, -0.5),
    )
    for row in range(1, len(rows)):
        axis.axhline(row - 0.5, color="white", linewidth=1)
    for step in steps:
        for kept, absorbed in step.merges:
            ends = (rows[absorbed], rows[kept])
            axis.plot([step.step + 0.5] * 2, ends, color=INK, linewidth=1, clip_on=False)
            axis.plot(step.step + 0.5, ends[0], "o", color=INK, markerfacecolor="white", markersize=4, clip_on=False)
    every = math.ceil(len(rows) / _ROWS)
    axis.set_yticks(list(rows.values())[::every], _short(list(rows))[::every])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    share = f"{accepted / searches:.1%}".replace(".0%", "%").replace("%", " %") if searches else ""
    title = "Status of each component" if len(rows) > 1 else "Status"
    axis.set_title(f"{title}, {share} accepted where searched" if searches else "Nothing was searched")
    present = {component.status for step in steps for component in step.components}
    return [Patch(color=color, label=str(status)) for status, color in _STATUSES.items() if status in present]


def _short(labels: Sequence[str]) -> list[str]:
    """The names without what all begin with, and without the middle of long ones, to leave room for the picture."""
    parts = [label.split(".") for label in labels]
    common = next((n for n, same in enumerate(zip(*parts, strict=False)) if len(set(same)) > 1), 0)
    names = [".".join(part[max(0, common - 1) :]) for part in parts]
    half = _LETTERS // 2
    return [plain(name if len(name) <= _LETTERS else f"{name[:half]}…{name[-half:]}") for name in names]


# --------------------------------------------------------------------------------------------------- shared


def _lines(steps: Sequence[StepReport]) -> dict[str, tuple[list[int], list[float]]]:
    """The steps and the step sizes of each component, in the order in which they are first seen."""
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for step in steps:
        for component in step.components:
            places, sizes = lines.setdefault(component.label, ([], []))
            places.append(step.step)
            sizes.append(_positive(component.step_size))
    return lines


def _positive(size: float) -> float:
    """A gap where a logarithmic axis has no place."""
    return size if size > 0 else math.nan


def smooth(values: Sequence[float]) -> list[float]:
    """The mean over a window of about a fifteenth of the run around each entry, of what is finite there.

    The window shrinks towards both ends and stays centred, so that a falling line is not bent there.
    """
    import numpy as np

    entries = np.asarray(values, dtype=float)
    finite = np.isfinite(entries)
    # Summed anew in each window: one huge loss would blot out the digits of all that follow in a running sum.
    entries = np.where(finite, entries, 0.0)
    counts = np.concatenate([[0], np.cumsum(finite)])
    widest = max(2, len(entries) // 30)
    means = []
    for place in range(len(entries)):
        half = min(widest, place, len(entries) - 1 - place)
        count = int(counts[place + half + 1] - counts[place - half])
        means.append(float(entries[place - half : place + half + 1].sum()) / count if count else math.nan)
    return means


def colors(count: int) -> list[Any]:
    """Distinct hues for few lines; for many, whose order means depth in the network, dark to light."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    from matplotlib import colormaps

    # The light end of viridis cannot be seen on white.
    return [colormaps["viridis"](0.92 * place / (count - 1)) for place in range(count)]


def plain(text: str) -> str:
    """Without what matplotlib would read as a formula, or hide from a legend."""
    return text.replace("$", r"\$").removeprefix("_")


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that belongs to no window and no global state.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Drawing needs matplotlib: pip install 'armijo[plots]'.") from error

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style(figure: Figure) -> None:
    """Style the axes as in all figures of armijo."""
    for axis in figure.axes:
        if not axis.images:
            axis.grid(color="#E6E6E6", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_color(INK)


def log_ticks(axis: Axes) -> None:
    """Plain numbers along a logarithmic axis; 2 and 5 times the powers of ten too where there are few of those."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axis.yaxis.set_major_formatter(FuncFormatter(_general))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _general(value: float, _: int | None) -> str:
    return f"{value:g}"


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    # One tick is enough: for two, an axis of one epoch would be divided into fractions.
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
