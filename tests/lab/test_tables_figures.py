"""Tables and figures: every number recomputed from made-up runs, what is missing never averaged away."""

import csv
import io
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from armijo_lab.errors import BadInputError
from armijo_lab.results import figures, tables
from armijo_lab.results.run_folder import Run, read_run, read_runs
from lab.made_up_runs import write_run

PNG = b"\x89PNG"


def change_summary(folder: Path, **facts: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def change_last_epoch(folder: Path, **facts: Any) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | facts)
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    for seed in range(3):
        write_run(tmp_path / f"plasls-{seed}", seed=seed, seconds=24 + seed)
        adam = {"lr": "2e-5", "schedule": "cosine"}
        write_run(tmp_path / f"adam-{seed}", optimizer="adam", arguments=adam, components=[], seed=seed, seconds=10)
    return read_runs(tmp_path)


def test_a_row_holds_what_the_logs_say(runs: list[Run]) -> None:
    adam, plasls = tables.comparison(runs)
    ours = [run for run in runs if run.summary["optimizer"]["name"] == "plasls"]
    assert (adam.optimizer, plasls.optimizer) == ("adam:lr=2e-5,schedule=cosine", "plasls")
    assert plasls.seeds == 3
    accuracies = [[epoch["evaluation"]["accuracy"] for epoch in run.epochs] for run in ours]
    assert plasls.best is not None
    assert plasls.best.mean == pytest.approx(statistics.mean(max(values) for values in accuracies))
    assert plasls.best.deviation == pytest.approx(statistics.stdev(max(values) for values in accuracies))
    assert plasls.last is not None
    assert plasls.last.mean == pytest.approx(statistics.mean(values[-1] for values in accuracies))
    assert plasls.train_loss is not None
    last = [statistics.mean(step["loss"] for step in run.steps[-16:]) for run in ours]
    assert plasls.train_loss.mean == pytest.approx(statistics.mean(last))
    assert plasls.mean_log_loss is not None
    logs = [statistics.mean(math.log(step["loss"]) for step in run.steps) for run in ours]
    assert plasls.mean_log_loss.mean == pytest.approx(statistics.mean(logs))
    assert plasls.forwards == pytest.approx(statistics.mean(run.summary["forwards"] / 80 for run in ours))
    assert plasls.time == pytest.approx((24 + 25 + 26) / 30)
    assert plasls.failed_searches == 11
    assert plasls.merges == 1
    smallest = min(c["step_size"] for run in ours for c in run.summary["optimizer"]["components"])
    assert plasls.smallest_step_size == smallest


def test_what_has_no_meaning_for_an_optimizer_is_missing(runs: list[Run]) -> None:
    adam = tables.comparison(runs)[0]
    assert (adam.failed_searches, adam.merges, adam.smallest_step_size) == (None, None, None)
    assert adam.forwards == 1
    assert adam.time == 1


def test_the_time_is_compared_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    for seed, seconds in ((0, 30.0), (1, 1000.0)):
        write_run(tmp_path / f"plasls-{seed}", seed=seed, seconds=seconds)
    write_run(tmp_path / "adam", optimizer="adam", components=[], seed=0, seconds=10)
    times = {row.optimizer: row.time for row in tables.comparison(read_runs(tmp_path))}
    assert times == {"adam": 1, "plasls": 3}


def test_adamw_is_the_measure_of_time_where_there_is_no_adam(tmp_path: Path) -> None:
    write_run(tmp_path / "a", optimizer="adamsls", components=["all"], seconds=30)
    write_run(tmp_path / "b", optimizer="sgdsls", components=["all"], seconds=20)
    assert [row.time for row in tables.comparison(read_runs(tmp_path))] == [None, None]
    write_run(tmp_path / "c", optimizer="adamw", components=[], seconds=10)
    assert [row.time for row in tables.comparison(read_runs(tmp_path))] == [3, 2, 1]


def test_one_seed_has_no_spread_and_a_diverged_seed_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0)
    (row,) = tables.comparison(read_runs(tmp_path))
    assert row.last is not None
    assert row.last.deviation is None
    assert "±" not in tables.to_markdown([row])
    write_run(tmp_path / "b", seed=1)
    change_last_epoch(tmp_path / "b", train_loss=None)
    (row,) = tables.comparison(read_runs(tmp_path))
    assert row.train_loss is None
    assert row.last is not None
    assert "±" in tables.to_markdown([row])


def test_different_arguments_are_different_rows_and_tasks_are_not_mixed(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", arguments={"split": "projection"})
    assert [row.optimizer for row in tables.comparison(read_runs(tmp_path))] == ["plasls", "plasls:split=projection"]
    assert "| task" not in tables.to_markdown(tables.comparison(read_runs(tmp_path)))
    write_run(tmp_path / "c")
    task = read_run(tmp_path / "c").summary["task"]
    change_summary(tmp_path / "c", task=task | {"name": "mrpc"})
    rows = tables.comparison(read_runs(tmp_path))
    assert [row.task for row in rows] == ["sst2", "sst2", "mrpc"]
    assert tables.to_markdown(rows).startswith("| task")


def test_an_interrupted_run_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path / "half", status="interrupted")
    with pytest.raises(BadInputError, match="no completed run"):
        tables.comparison(read_runs(tmp_path))
    write_run(tmp_path / "whole", seed=1)
    (row,) = tables.comparison(read_runs(tmp_path))
    assert row.seeds == 1
    assert "half is left out" in caplog.text


def test_mean_log_loss() -> None:
    assert tables.mean_log_loss([1.0, math.e, math.e**2]) == pytest.approx(1)
    assert tables.mean_log_loss([0.0]) == math.log(tables.LOSS_FLOOR)
    assert tables.mean_log_loss([]) is None
    assert tables.mean_log_loss([0.5, None]) is None
    assert tables.mean_log_loss(iter([0.5, math.inf])) is None


def test_markdown_is_a_table(runs: list[Run]) -> None:
    lines = tables.to_markdown(tables.comparison(runs)).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1  # aligned
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].split("|")[-2].strip() == "–"
    assert "1.00×" in lines[2]
    assert "2.50×" in lines[3]


def test_csv_keeps_every_digit(runs: list[Run]) -> None:
    rows = tables.comparison(runs)
    adam, plasls = csv.DictReader(io.StringIO(tables.to_csv(rows)))
    assert plasls["best_mean"] == repr(rows[1].best.mean)  # pyright: ignore[reportOptionalMemberAccess]
    assert plasls["best_std"] == repr(rows[1].best.deviation)  # pyright: ignore[reportOptionalMemberAccess]
    assert adam["optimizer"] == "adam:lr=2e-5,schedule=cosine"
    assert adam["smallest_step_size"] == ""


def test_the_terminal_shows_brackets_as_they_are(runs: list[Run]) -> None:
    from rich.console import Console

    for run in runs:
        run.summary["config"]["optimizer"] = run.summary["config"]["optimizer"].replace("plasls", "[red]plasls")
    console = Console(width=200, file=io.StringIO())
    console.print(tables.to_rich(tables.comparison(runs)))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "[red]plasls" in text
    assert "2.50×" in text


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"optimizer": "adam", "components": []},
        {"optimizer": "adamsls", "components": ["all"]},
        {"metrics": ("accuracy", "f1")},
        {"metrics": ("matthews",)},
        {"components": [f"layer.{place}.$x_{place}" for place in range(40)]},
        {"epochs": 1, "steps_per_epoch": 1},
        {"components": ["_hidden", "b", "c"], "merge_at": 5},
    ],
)
def test_every_kind_of_run_is_drawn(tmp_path: Path, kind: dict[str, Any]) -> None:
    folder = write_run(tmp_path / "run", **kind)
    (path,) = figures.draw_run(folder)
    assert path == folder / "figures" / "training.png"
    assert path.read_bytes().startswith(PNG)


def test_a_run_that_diverged_or_was_interrupted_early_is_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=2)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines[-8:]:
        line["loss"] = None
        for component in line.get("components", ()):
            component |= {"step_size": None, "status": "nonfinite"}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert figures.draw_run(folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
    assert figures.draw_run(folder)  # no epoch ended
    (folder / "metrics.jsonl").write_text("")
    assert figures.draw_run(folder) == []


def test_the_panels_show_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    folder = write_run(tmp_path / "run")
    figures.draw_run(folder)
    axes = {axis.get_title(): axis for axis in drawn[0].axes}
    sizes = axes["Step size of each component"]
    lines = {line.get_label(): line for line in sizes.get_lines()}
    assert sizes.get_yscale() == "log"
    assert lines["layer.11"].get_xdata()[-1] == 40  # merged away there
    assert lines["head"].get_xdata()[-1] == 80
    failed = [s["step"] for s in read_run(folder).steps if any(c["status"] == "exhausted" for c in s["components"])]
    assert list(lines["search failed"].get_xdata()) == failed
    majority = next(line for line in axes["Validation"].get_lines() if line.get_label() == "majority class")
    assert set(majority.get_ydata()) == {0.525}
    assert all(axis.get_xlabel() == "step" and axis.get_ylabel() for axis in drawn[0].axes)


def test_one_step_size_needs_no_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    folder = write_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "step":
            line |= {"components": line["components"][-1:], "merges": []}
            line["components"][0]["status"] = "accepted"
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures.draw_run(folder)
    sizes = next(axis for axis in drawn[0].axes if axis.get_title() == "Step size")
    assert len(sizes.get_legend_handles_labels()[1]) == 1
    assert sizes.get_legend() is None


def test_a_comparison_is_drawn(runs: list[Run], tmp_path: Path) -> None:
    path = figures.draw_comparison(runs, tmp_path / "new" / "comparison.png")
    assert path.read_bytes().startswith(PNG)
    assert figures.draw_comparison(runs[:1], path) == path  # one optimizer, one seed
    runs[0].summary["task"]["name"] = "mrpc"
    with pytest.raises(BadInputError, match="mrpc, sst2 cannot stand in one figure"):
        figures.draw_comparison(runs, path)


def test_ten_optimizers_and_a_diverged_seed_are_drawn(tmp_path: Path) -> None:
    for place in range(10):
        write_run(tmp_path / f"{place}", arguments={"n_groups": place}, epochs=2)
    diverged = write_run(tmp_path / "diverged", arguments={"n_groups": 0}, seed=1, epochs=2)
    lines = (diverged / "metrics.jsonl").read_text().splitlines()
    nulls = [json.dumps(json.loads(line) | {"loss": None}) for line in lines if '"step"' in line[:20]]
    (diverged / "metrics.jsonl").write_text("\n".join(nulls) + "\n")
    figures.draw_comparison(read_runs(tmp_path), tmp_path / "comparison.png")


def test_drawing_leaves_matplotlibs_global_state_alone(tmp_path: Path) -> None:
    import matplotlib
    from matplotlib import _pylab_helpers

    before = dict(matplotlib.rcParams)
    figures.draw_run(write_run(tmp_path / "run", epochs=1))
    assert dict(matplotlib.rcParams) == before
    assert not _pylab_helpers.Gcf.figs
