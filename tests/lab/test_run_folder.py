"""The run folder: always valid JSON, nothing half-written, torn lines skipped, no name of this machine."""

import json
import logging
import math
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from armijo_lab.errors import BadInputError
from armijo_lab.results import run_folder
from armijo_lab.results.run_folder import RunLog, read_run, read_runs, write_json
from lab.made_up_runs import write_run


def step(number: int, loss: float = 0.5, epoch: int = 1) -> dict[str, Any]:
    component = {
        "label": "head",
        "status": "accepted",
        "step_size": 0.1,
        "slope": 1.0,
        "trials": 1,
        "trial_loss": 0.4,
    }
    return {
        "step": number,
        "epoch": epoch,
        "loss": loss,
        "forwards": 2,
        "total_forwards": 2 * number,
        "lr": None,
        "components": [component],
        "merges": [],
    }


def epoch(number: int, at: int) -> dict[str, Any]:
    return {
        "epoch": number,
        "step": at,
        "train_loss": 0.5,
        "evaluation": {"accuracy": 0.8, "loss": 0.4},
        "seconds": {"training": 1.0, "evaluation": 1.0, "logging": 0.0},
    }


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_what_is_logged_is_read_back(tmp_path: Path) -> None:
    with RunLog.create(tmp_path / "a" / "run") as log:
        log.step(step(1))
        log.step(step(2))
        log.epoch(epoch(1, 2))
    run = read_run(tmp_path / "a" / "run")
    assert [{"kind": "step", **step(1)}, {"kind": "step", **step(2)}] == run.steps
    assert [{"kind": "epoch", **epoch(1, 2)}] == run.epochs
    assert run.summary == {}


def test_a_record_is_on_disk_before_the_call_returns(tmp_path: Path) -> None:
    with RunLog.create(tmp_path) as log:
        log.step(step(1))
        assert len(read_run(tmp_path).steps) == 1
        assert events(tmp_path)["train/loss"] == [(1, 0.5)]


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    with RunLog.create(tmp_path) as log:
        log.step(step(1, loss=0.25) | {"lr": 0.5})
        log.epoch(epoch(1, 1))
    read = events(tmp_path)
    assert read["train/loss"] == [(1, 0.25)]
    assert read["train/lr"] == [(1, 0.5)]
    assert read["step_size/head"] == [(1, pytest.approx(0.1))]
    assert read["evaluation/accuracy"] == [(1, pytest.approx(0.8))]


def test_resume_cuts_the_records_after_the_checkpoint(tmp_path: Path) -> None:
    with RunLog.create(tmp_path) as log:
        for number in range(1, 6):
            log.step(step(number))
            if number == 3:
                log.epoch(epoch(1, 3))
    with RunLog.resume(tmp_path, 3, 1) as log:
        log.step(step(4, loss=0.125))
    run = read_run(tmp_path)
    assert [record["step"] for record in run.steps] == [1, 2, 3, 4]
    assert run.steps[-1]["loss"] == 0.125
    assert len(run.epochs) == 1
    # TensorBoard forgets the steps that came again, and keeps the others.
    assert events(tmp_path)["train/loss"] == [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.125)]


def test_resume_cuts_a_torn_line_and_what_follows_joins_cleanly(tmp_path: Path) -> None:
    with RunLog.create(tmp_path) as log:
        log.step(step(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 2, "lo')
    assert len(read_run(tmp_path).steps) == 1
    with RunLog.resume(tmp_path, 7, 1) as log:
        log.step(step(2))
    assert [record["step"] for record in read_run(tmp_path).steps] == [1, 2]


def test_resume_from_the_start_keeps_nothing(tmp_path: Path) -> None:
    with RunLog.create(tmp_path) as log:
        log.step(step(1))
    RunLog.resume(tmp_path, 0, 0).close()
    assert read_run(tmp_path).steps == []


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no run to resume"):
        RunLog.resume(tmp_path, 3, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "README.md", "best", "checkpoint"])
def test_a_used_folder_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("somebody's")
    foreign = name in ("README.md", "best")
    with pytest.raises(
        BadInputError, match=f"{'is not empty' if foreign else 'another run already'} \\({name}\\)"
    ) as e:
        RunLog.create(tmp_path)
    assert ("--resume" in str(e.value)) is not foreign
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "somebody's"


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(BadInputError, match="is a file"):
        RunLog.create(tmp_path / "run")


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [math.nan, math.inf, (-math.inf, 1.5)], "b": {"c": math.nan}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, None, [None, 1.5]], "b": {"c": None}}
    with RunLog.create(tmp_path / "run") as log:
        log.step(step(1, loss=math.nan))
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert read_run(tmp_path / "run").steps[0]["loss"] is None


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    with pytest.raises(UnicodeEncodeError):
        run_folder.write_text(path, "\ud800")
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_without_tensorboard_a_sentence_is_logged_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_folder.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, "armijo"), RunLog.create(tmp_path) as log:
        log.step(step(1))
        log.epoch(epoch(1, 1))
    assert "TensorBoard is not installed" in caplog.text
    assert not (tmp_path / "tensorboard").exists()
    assert len(read_run(tmp_path).steps) == 1


def test_logging_imports_neither_tensorflow_nor_what_only_figures_need() -> None:
    code = "import sys, armijo_lab.results.run_folder; print({'tensorboard', 'matplotlib'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("line", ['{"kind": "ste', "[]", '{"kind": "other", "step": 1}', '{"kind": "step"}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    with RunLog.create(tmp_path) as log:
        log.step(step(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadInputError, match=r"Line 2 of .* is not a step or an epoch"):
        read_run(tmp_path)


def test_a_summary_that_is_no_object_is_refused(tmp_path: Path) -> None:
    RunLog.create(tmp_path).close()
    for text in ("[1]", "{", "\x80"):
        (tmp_path / "summary.json").write_text(text, encoding="latin-1")
        with pytest.raises(BadInputError, match=r"summary\.json"):
            read_run(tmp_path)


def test_runs_are_found_below_a_folder_and_unfinished_ones_skipped(tmp_path: Path) -> None:
    write_run(tmp_path / "b", epochs=1)
    write_run(tmp_path / "a" / "deep", epochs=1)
    RunLog.create(tmp_path / "running").close()
    assert [run.folder for run in read_runs(tmp_path)] == [tmp_path / "a" / "deep", tmp_path / "b"]
    with pytest.raises(BadInputError, match="There is no run"):
        read_runs(tmp_path / "running")


def test_the_environment_tells_versions_and_hardware_but_not_whose_machine(tmp_path: Path) -> None:
    found = run_folder.environment("cpu")
    assert found["versions"]["python"] == platform.python_version()
    assert {"torch", "transformers"} <= found["versions"].keys()
    assert found["hardware"]["device"] == "cpu"
    assert found["hardware"]["threads"] >= 1
    RunLog.create(tmp_path).close()
    text = json.dumps(found) + " ".join(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert platform.node() not in text
    assert str(Path.home()) not in text


def git(folder: Path, *arguments: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(folder), *name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_our_own_checkout_alone(tmp_path: Path) -> None:
    tmp_path = tmp_path.resolve()
    assert run_folder._commit(tmp_path) is None
    git(tmp_path, "init")
    assert run_folder._commit(tmp_path) is None
    source = tmp_path / "src" / "armijo_lab"
    source.mkdir(parents=True)
    (source / "a.py").write_text("1")
    assert run_folder._commit(tmp_path) is None  # no commit yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert run_folder._commit(tmp_path) == commit
    (tmp_path / "notes.txt").write_text("beside the sources")
    assert run_folder._commit(tmp_path) == commit
    (source / "b.py").write_text("untracked, and imported all the same")
    assert run_folder._commit(tmp_path) == f"{commit}-dirty"
    # Installed somewhere below a repository that is not ours.
    inside = tmp_path / "lib"
    (inside / "src" / "armijo_lab").mkdir(parents=True)
    assert run_folder._commit(inside) is None


def test_peak_memory_counts_from_the_reset() -> None:
    peak = run_folder.peak_memory()
    assert peak["resident"] > 10**7
    run_folder.reset_peak_memory()
    assert run_folder.peak_memory()["resident"] <= peak["resident"]
