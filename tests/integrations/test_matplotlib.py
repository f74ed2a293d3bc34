"""The panel shows the steps that it was given, and the live one costs next to nothing."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import pytest
import torch

import armijo
from armijo.errors import ConfigurationError

pytest.importorskip("matplotlib")

from armijo.observers import matplotlib as drawing
from armijo.observers.matplotlib import LivePanel, panel, smooth
from armijo.observers.recorder import StepRecorder

PNG = b"\x89PNG"
STATUSES = armijo.Status


def part(label: str, status: str = "accepted", step_size: float = 0.1) -> armijo.ComponentReport:
    trials = 0 if status in ("unsearched", "skipped", "nonfinite") else 1
    return armijo.ComponentReport(label, armijo.Status(status), step_size, 1.0, trials, None)


def steps_of(
    *statuses: dict[str, str],
    losses: list[float] | None = None,
    merges: dict[int, tuple[str, str]] | None = None,
    sizes: list[float] | None = None,
) -> list[armijo.StepReport]:
    """One step for each dict from a component's label to its status."""
    reports, total = [], 0
    for place, of_step in enumerate(statuses):
        total += 2 + place % 3
        loss = 1.0 if losses is None else losses[place]
        size = 0.1 if sizes is None else sizes[place]
        parts = tuple(part(label, status, size * (1 + n)) for n, (label, status) in enumerate(of_step.items()))
        merged = ((merges or {})[place + 1],) if place + 1 in (merges or {}) else ()
        reports.append(armijo.StepReport(place + 1, loss, parts, merged, 2 + place % 3, total))
    return reports


def axes_of(figure: Any) -> list[Any]:
    return list(figure.axes)


def picture(figure: Any) -> list[list[Any]]:
    """The names of the statuses in the picture, row by row; None where there is nothing."""
    (image,) = axes_of(figure)[3].images
    names = [str(status) for status in drawing._STATUSES]
    return [[None if math.isnan(v) else names[int(v)] for v in row] for row in image.get_array().filled(math.nan)]


def test_each_number_of_the_steps_is_where_it_belongs() -> None:
    steps = steps_of(
        {"a": "accepted", "b": "accepted", "c": "unsearched"},
        {"a": "exhausted", "b": "unsearched", "c": "unsearched"},
        {"a": "unsearched", "b": "nondeterministic"},
        losses=[1.0, 0.9, 0.8],
        merges={2: ("a", "c")},
        sizes=[0.1, 0.2, 0.3],
    )
    figure = panel(steps)
    losses, sizes, forwards, statuses = axes_of(figure)
    batch, mean = losses.get_lines()
    assert list(batch.get_ydata()) == [1.0, 0.9, 0.8]
    assert list(mean.get_ydata()) == pytest.approx([1.0, 0.9, 0.8])
    lines = {line.get_label(): [list(map(float, axis)) for axis in line.get_data()] for line in sizes.get_lines()}
    assert lines["a"] == [[1, 2, 3], [0.1, 0.2, 0.3]]
    assert lines["c"] == [[1, 2], pytest.approx([0.3, 0.6])]
    assert lines["search failed"] == [[2, 3], [0.2, 0.6]]
    assert lines["merged"] == [[2], pytest.approx([0.6])]
    assert forwards.get_title(loc="left") == "Forward passes a step, mean 3.00"
    assert picture(figure) == [
        ["accepted", "exhausted", "unsearched"],
        ["accepted", "unsearched", "nondeterministic"],
        ["unsearched", "unsearched", None],
    ]
    assert statuses.get_title(loc="left") == "Status of each component, 50 % accepted where searched"
    # The merge leads from the row that ends, to the row of what it became, after the second step.
    assert [[list(map(float, axis)) for axis in line.get_data()] for line in statuses.get_lines()][-2] == [
        [2.5, 2.5],
        [2.0, 0.0],
    ]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        *("accepted", "exhausted", "unsearched", "nondeterministic"),
    }


def test_the_marks_beside_the_names_have_the_colours_of_the_lines() -> None:
    for count in (3, 12, 60):
        figure = panel(steps_of({f"layer.{n}": "accepted" for n in range(count)}))
        assert axes_of(figure)[3].get_yticklabels()  # which writes the names
        lines = {line.get_label(): line.get_color() for line in axes_of(figure)[1].get_lines()}
        ticks = axes_of(figure)[3].yaxis.get_major_ticks()
        assert len(ticks) <= drawing._ROWS
        for tick in ticks:
            assert tick.tick1line.get_markeredgecolor() == lines[tick.label1.get_text()]


def test_where_steps_share_a_column_the_worst_status_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_COLUMNS", 2)
    statuses = ["accepted", "exhausted", "unsearched", "accepted"]
    assert picture(panel(steps_of(*({"a": status} for status in statuses)))) == [["exhausted", "accepted"]]


def test_a_step_without_a_number_of_its_own_is_seen() -> None:
    sound, bad = steps_of({"a": "accepted"}, {"a": "nonfinite"}, losses=[1.0, math.nan])
    again = armijo.StepReport(2, 0.5, (part("a"),), (), 2, 5)
    figure = panel([sound, bad, again])
    assert picture(figure) == [["accepted", "nonfinite"]]
    marks = {line.get_label(): list(line.get_xdata()) for line in axes_of(figure)[0].get_lines()}
    assert marks["not finite"] == [2]


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([1.0, 0.9, 0.5], "linear"),
        ([1.0, 0.1, 0.01, 0.001, 0.0001], "log"),
        ([1.0, 0.1, 0.01, 0.001, 0.0], "linear"),
        ([1.0, -5.0, -50.0], "linear"),
        ([math.nan, math.nan], "linear"),
        ([0.0, 0.0], "linear"),
        ([math.inf, 1.0, 1e300], "linear"),
        ([0.5] * 20 + [0.04] + [0.5] * 20, "linear"),  # one easy batch is no reason
    ],
)
def test_the_loss_is_logarithmic_where_its_mean_covers_more_than_a_decade(losses: list[float], scale: str) -> None:
    figure = panel(steps_of(*({"a": "accepted"} for _ in losses), losses=losses))
    assert axes_of(figure)[0].get_yscale() == scale


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_is_drawn(status: armijo.Status) -> None:
    assert picture(panel(steps_of({"all": status}))) == [[status]]


def test_names_and_titles_are_no_formulas_and_a_notebook_can_show_them() -> None:
    figure = panel(steps_of({"$_all": "accepted", "_b": "accepted"}), title="50 % of $x_")
    content, size = figure._repr_png_()  # what a notebook asks of the last value of a cell
    assert content.startswith(PNG)
    assert size["width"] == 672


@pytest.mark.parametrize("size", [0.0, math.nan, math.inf, 1e-300])
def test_a_step_size_that_a_logarithm_cannot_show_is_a_gap(size: float) -> None:
    line = axes_of(panel(steps_of({"a": "accepted"}, {"a": "exhausted"}, sizes=[0.1, size])))[1].get_lines()[0]
    assert list(line.get_ydata()) == pytest.approx([0.1, size if size > 0 else math.nan], nan_ok=True)
    assert axes_of(panel(steps_of({"a": "accepted"}, sizes=[size])))[1].get_yscale() == "log"


def test_long_names_keep_what_tells_them_apart() -> None:
    assert drawing._short([f"bert.encoder.layer.{n}.output.dense.weight" for n in (0, 11)]) == [
        "layer.0.output.dense.weight",
        "layer.11.output.dense.weight",
    ]
    assert drawing._short(["embeddings", "layer.0-1", "head"]) == ["embeddings", "layer.0-1", "head"]
    assert drawing._short(["a.b.c"]) == ["a.b.c"]
    (short, other) = drawing._short(["x" * 30 + ".weight", "x" * 30 + ".bias"])
    assert short != other
    assert len(short) == drawing._LETTERS + 1


def test_no_steps_are_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="There are no steps to draw"):
        panel([])


def test_smoothing_keeps_a_line_a_line_and_passes_over_gaps() -> None:
    line = [2.0 * place for place in range(100)]
    assert smooth(line) == pytest.approx(line)
    assert smooth([1.0, math.nan, 3.0]) == pytest.approx([1, 2, 3])
    assert math.isnan(smooth([math.nan])[0])
    assert smooth([]) == []
    # One enormous loss does not cost those behind it their digits.
    assert smooth([1e30] + [0.5] * 99)[50:] == [0.5] * 50


def test_matplotlibs_global_state_is_left_alone_and_a_missing_one_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import matplotlib as mpl
    from matplotlib import _pylab_helpers

    before = dict(mpl.rcParams)
    panel(steps_of({"a": "accepted"}))
    assert dict(mpl.rcParams) == before
    assert not _pylab_helpers.Gcf.figs
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r"Drawing needs matplotlib: pip install 'armijo\[plots\]'"):
        LivePanel()


# ------------------------------------------------------------------------------------------------- the live panel


class Clock:
    """Time as the test sets it; a drawing takes `cost` of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
        self.now, self.drawn = 100.0, []
        monkeypatch.setattr(drawing.time, "monotonic", lambda: self.now)

        def fill(figure: Any, steps: list[armijo.StepReport], title: str | None) -> None:
            self.drawn.append(len(steps))
            self.now += cost

        monkeypatch.setattr(drawing, "_fill", fill)

    def run(self, live: LivePanel, steps: int, seconds: float) -> list[int]:
        for report in steps_of(*({"a": "accepted"} for _ in range(steps))):
            self.now += seconds
            live(report)
        return self.drawn


def test_steps_and_seconds_lie_between_two_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Clock(monkeypatch, 0.0).run(LivePanel(every=3, seconds=0), 10, 1.0) == [3, 6, 9]
    assert Clock(monkeypatch, 0.0).run(LivePanel(every=1, seconds=4.5), 12, 1.0) == [1, 6, 11]
    assert Clock(monkeypatch, 0.0).run(LivePanel(every=7, seconds=4.5), 15, 1.0) == [7, 14]


def test_drawing_takes_no_more_than_a_fiftieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 2.0)
    began = clock.now
    drawn = clock.run(LivePanel(every=1, seconds=0), 1000, 1.0)
    assert 2.0 * (len(drawn) - 1) <= 0.02 * (clock.now - began)
    assert len(drawn) == 10


def test_what_is_drawn_is_the_panel_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, recorder, live = torch.nn.Parameter(torch.ones(3)), StepRecorder(), LivePanel(every=2, title="a run")
    optimizer = armijo.SGDSLS([weight])
    optimizer.register_observer(recorder)
    optimizer.register_observer(live)
    live.draw()  # nothing yet
    assert live.figure.axes == []
    for _ in range(3):
        optimizer.step(lambda: (weight**2).sum())
    batch = axes_of(live.figure)[0].get_lines()[0]
    assert len(batch.get_ydata()) == 2
    live.draw()
    assert len(axes_of(live.figure)[0].get_lines()[0].get_ydata()) == 3
    assert live.figure.get_suptitle() == "a run"
    assert live.figure.get_size_inches() == pytest.approx(panel(recorder.steps, title="a run").get_size_inches())
    monkeypatch.setenv("RANK", "1")
    other = LivePanel(every=1, seconds=0)
    other(recorder.steps[-1])
    other.draw()
    assert other.figure.axes == []


class Notebook:
    """A stand-in for IPython that remembers what is shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, kernel: bool) -> None:
        self.shown: list[Any] = []
        self.updates: list[Any] = []
        shell = types.SimpleNamespace(kernel=object()) if kernel else types.SimpleNamespace()

        def display(picture: Any, *, display_id: bool) -> Any:
            assert display_id
            self.shown.append(picture)
            return types.SimpleNamespace(update=self.updates.append)

        inner = types.ModuleType("IPython.display")
        inner.display = display  # pyright: ignore[reportAttributeAccessIssue]
        inner.Image = lambda data, width, height: data  # pyright: ignore[reportAttributeAccessIssue]
        outer = types.ModuleType("IPython")
        outer.get_ipython = lambda: shell  # pyright: ignore[reportAttributeAccessIssue]
        outer.display = inner  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, "IPython", outer)
        monkeypatch.setitem(sys.modules, "IPython.display", inner)


def test_a_notebook_shows_one_picture_and_renews_it(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(monkeypatch, kernel=True)
    live = LivePanel(every=1, seconds=0)
    monkeypatch.setattr(live, "_SHARE", 0.0)
    first, second = steps_of({"a": "accepted"}, {"a": "exhausted"})
    live(first)
    live(second)
    assert (len(notebook.shown), len(notebook.updates)) == (1, 1)
    assert notebook.shown[0].startswith(PNG)
    assert notebook.updates[0].startswith(PNG)
    assert notebook.updates[0] != notebook.shown[0]


def test_a_terminal_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(monkeypatch, kernel=False)
    live = LivePanel(every=1)
    live(steps_of({"a": "accepted"})[0])
    assert axes_of(live.figure)
    assert notebook.shown == []


@pytest.mark.parametrize("wrong", [{"every": 0}, {"seconds": -1.0}, {"seconds": math.nan}])
def test_a_rhythm_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="at least 1 step and 0 seconds"):
        LivePanel(**wrong)
