"""What a StepRecorder writes is read back as it was, and no kill, full disk or resume leaves a false line."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed

import armijo
from armijo.errors import ConfigurationError
from armijo.observers.recorder import StepRecorder, read_steps

Floats = st.floats(allow_nan=True, allow_infinity=True)
Labels = st.text(st.characters(), min_size=1, max_size=5)  # lone surrogates too: a label is any string
Components = st.builds(
    armijo.ComponentReport,
    label=Labels,
    status=st.sampled_from(armijo.Status),
    step_size=Floats,
    slope=Floats,
    trials=st.integers(0, 30),
    trial_loss=st.none() | Floats,
)
Steps = st.tuples(
    Floats, st.lists(Components, max_size=3), st.lists(st.tuples(Labels, Labels), max_size=2), st.integers(1, 30)
)


def reports_of(steps: list[Any]) -> list[armijo.StepReport]:
    reports, total = [], 0
    for number, (loss, components, merges, forwards) in enumerate(steps, 1):
        total += forwards
        reports.append(armijo.StepReport(number, loss, tuple(components), tuple(merges), forwards, total))
    return reports


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@given(st.lists(Steps, max_size=4))
def test_what_is_read_is_what_was_reported(steps: list[Any]) -> None:
    reports = reports_of(steps)
    with tempfile.TemporaryDirectory() as folder:
        recorder = StepRecorder(Path(folder) / "steps.jsonl")
        for report in reports:
            recorder(report)
        # repr tells NaN from NaN no more, and -0.0 from 0.0.
        assert repr(read_steps(Path(folder) / "steps.jsonl")) == repr(reports)
        lines = (Path(folder) / "steps.jsonl").read_text(encoding="ascii").splitlines()
        assert len([json.loads(line, parse_constant=no_constant) for line in lines]) == len(reports)


class Problem:
    """A small network on noisy rows, some of them poisoned, whose components merge."""

    def __init__(self, poisoned: int | None = None) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 6), torch.nn.Linear(6, 2)
        )
        self.optimizer = armijo.PLASLS(
            armijo.split(self.model, by="module"), merging=armijo.MergeSmallest(below=10.0), selection=armijo.Cycle(2)
        )
        self.poisoned, self.batch = poisoned, 0

    def step(self) -> armijo.StepReport:
        generator = torch.Generator().manual_seed(self.batch)
        inputs = torch.randn(8, 4, generator=generator)
        labels = torch.randint(2, (8,), generator=generator)
        if self.batch == self.poisoned:
            inputs[0, 0] = math.nan
        self.batch += 1
        self.optimizer.step(lambda: torch.nn.functional.cross_entropy(self.model(inputs), labels))
        assert self.optimizer.report is not None
        return self.optimizer.report

    def checkpoint(self) -> dict[str, Any]:
        states = (self.model.state_dict(), self.optimizer.state_dict())
        return {"batch": self.batch, "states": torch.load(_saved(states), weights_only=True)}

    def restore(self, checkpoint: dict[str, Any]) -> None:
        self.batch = checkpoint["batch"]
        self.model.load_state_dict(checkpoint["states"][0])
        self.optimizer.load_state_dict(checkpoint["states"][1])


def _saved(states: Any) -> Any:
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return file


def test_a_run_is_recorded_with_its_merges_and_its_steps_without_a_number(tmp_path: Path) -> None:
    problem, reports = Problem(poisoned=3), []
    problem.optimizer.register_observer(reports.append)
    problem.optimizer.register_observer(StepRecorder(tmp_path / "new" / "folder" / "steps.jsonl"))
    for _ in range(6):
        problem.step()
    found = read_steps(tmp_path / "new" / "folder" / "steps.jsonl")
    assert repr(found) == repr(reports)
    assert math.isnan(found[3].loss)
    assert found[3].step == found[4].step  # a step that changed nothing leaves its number to the next
    assert any(report.merges for report in found)


def whole(path: Path, poisoned: int | None = None) -> bytes:
    """The file of eight steps that nothing interrupted."""
    problem = Problem(poisoned)
    problem.optimizer.register_observer(StepRecorder(path))
    for _ in range(8):
        problem.step()
    return path.read_bytes()


@pytest.mark.parametrize("poisoned", [None, 3, 4], ids=["sound", "before the checkpoint", "behind it"])
@pytest.mark.parametrize("kept", [0, 2, 4, 5, 8], ids=lambda kept: f"{kept} lines")
def test_a_resumed_run_has_the_file_of_the_whole_one(
    tmp_path: Path, kept: int, poisoned: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = whole(tmp_path / "whole.jsonl", poisoned)
    lines = wanted.splitlines(keepends=True)
    problem = Problem(poisoned)
    for _ in range(4):
        problem.step()
    # Killed after `kept` lines, in the middle of the next one, with a checkpoint of the fourth step.
    torn = lines[kept][:20] if kept < len(lines) else b""
    (tmp_path / "steps.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
    resumed = Problem(poisoned)
    recorder = StepRecorder(tmp_path / "steps.jsonl", resume=True, keep=True)
    resumed.restore(problem.checkpoint())
    resumed.optimizer.register_observer(recorder)
    for _ in range(4):
        resumed.step()
    # A file that ended before the checkpoint has a gap; one that went on has every step once.
    missing = lines[kept:4]
    assert (tmp_path / "steps.jsonl").read_bytes() == b"".join(line for line in lines if line not in missing)
    assert repr(recorder.steps) == repr(read_steps(tmp_path / "steps.jsonl"))
    assert ("are cut off" in caplog.text) == (kept > 4)


def test_going_back_within_a_run_takes_the_steps_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = whole(tmp_path / "whole.jsonl")
    problem = Problem()
    recorder = StepRecorder(tmp_path / "steps.jsonl", keep=True)
    problem.optimizer.register_observer(recorder)
    for _ in range(4):
        problem.step()
    checkpoint = problem.checkpoint()
    for _ in range(3):
        problem.step()
    problem.restore(checkpoint)
    for _ in range(4):
        problem.step()
    assert (tmp_path / "steps.jsonl").read_bytes() == wanted
    assert repr(recorder.steps) == repr(read_steps(tmp_path / "whole.jsonl"))
    assert "the last 3 steps" in caplog.text


def test_cut_at_any_byte_the_complete_lines_are_read_and_the_file_goes_on(tmp_path: Path) -> None:
    reports = reports_of([(0.5, [], [("ä", "b")], 2), (math.nan, [], [], 1), (0.25, [], [], 2)])
    path = tmp_path / "steps.jsonl"
    recorder = StepRecorder(path)
    for report in reports:
        recorder(report)
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for cut in sorted(
        {*range(0, len(content), 23), *(end + off for end in ends for off in (-1, 0, 1))} - {len(content) + 1}
    ):
        path.write_bytes(content[:cut])
        complete = content[:cut].count(b"\n")
        assert repr(read_steps(path)) == repr(reports[:complete])
        again = StepRecorder(path, resume=True)
        assert path.read_bytes() == content[:cut]  # nothing is changed before there is something to write
        for report in reports[complete:]:
            again(report)
        assert path.read_bytes() == content


def test_a_file_with_steps_is_not_written_to_unasked(tmp_path: Path) -> None:
    content = whole(tmp_path / "steps.jsonl")
    with pytest.raises(ConfigurationError, match=r"holds the steps of another run.*resume=True"):
        StepRecorder(tmp_path / "steps.jsonl")
    assert (tmp_path / "steps.jsonl").read_bytes() == content
    StepRecorder(tmp_path / "first.jsonl", resume=True)  # there need be nothing to go on from
    StepRecorder(tmp_path / "first.jsonl")  # and an empty file is nobody's


def test_a_place_that_cannot_be_written_to_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match=r"cannot be written to .*Not a directory.*Name a file in a folder"):
        StepRecorder(tmp_path / "file" / "steps.jsonl")
    with pytest.raises(ConfigurationError, match="is a folder; name a file in it"):
        StepRecorder(tmp_path)
    with pytest.raises(ConfigurationError, match="no ordinary file"):
        StepRecorder(os.devnull)


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_refused_at_once_and_leaves_no_file(tmp_path: Path) -> None:
    with disk_full_at(10_000), pytest.raises(ConfigurationError, match=r"cannot be written to .*has room"):
        StepRecorder(tmp_path / "steps.jsonl")
    assert not (tmp_path / "steps.jsonl").exists()


def test_a_disk_that_fills_up_costs_lines_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "steps.jsonl"
    problem = Problem()
    problem.optimizer.register_observer(StepRecorder(path))
    reports = [problem.step(), problem.step()]
    with disk_full_at(path.stat().st_size + 30):  # room for a part of a line
        problem.step()
        problem.step()
    assert path.stat().st_size > sum(map(len, path.read_bytes().splitlines(keepends=True)[:2]))
    assert read_steps(path) == reports
    reports += [problem.step(), problem.step()]
    assert read_steps(path) == reports
    assert caplog.text.count("could not be recorded") == 1
    assert "Training goes on" in caplog.text


def test_a_folder_that_disappears_costs_lines_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    problem = Problem()
    problem.optimizer.register_observer(StepRecorder(tmp_path / "run" / "steps.jsonl"))
    problem.step()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    problem.step()
    (tmp_path / "run").mkdir()
    last = problem.step()
    assert read_steps(tmp_path / "run" / "steps.jsonl") == [last]
    assert caplog.text.count("could not be recorded") == 1


def test_a_file_that_somebody_damages_does_not_stop_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    problem = Problem()
    problem.optimizer.register_observer(StepRecorder(tmp_path / "steps.jsonl"))
    checkpoint = problem.checkpoint()
    problem.step()
    (tmp_path / "steps.jsonl").write_text("not a record\n")
    problem.restore(checkpoint)
    problem.step()
    assert "Line 1 of" in caplog.text


KILLED = """
import os, signal, sys, torch, armijo
from armijo.observers.recorder import StepRecorder
weight = torch.nn.Parameter(torch.ones(3))
optimizer = armijo.SGDSLS([weight])
optimizer.register_observer(StepRecorder(sys.argv[1]))
for _ in range(5):
    optimizer.step(lambda: (weight**2).sum())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_every_step_that_it_took(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "steps.jsonl")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [report.step for report in read_steps(tmp_path / "steps.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("initialised", [False, True])
def test_only_rank_0_writes(tmp_path: Path, initialised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def rank(number: int) -> None:
        if initialised:
            monkeypatch.setattr(distributed, "is_initialized", lambda: True)
            monkeypatch.setattr(distributed, "get_rank", lambda: number)
            monkeypatch.setenv("RANK", "7")  # what is initialised counts
        else:
            monkeypatch.setenv("RANK", str(number))

    reports = reports_of([(0.5, [], [], 2), (0.25, [], [], 2)])
    rank(1)
    other = StepRecorder(tmp_path / "steps.jsonl", keep=True)
    other(reports[0])
    assert not (tmp_path / "steps.jsonl").exists()
    assert other.steps == reports[:1]
    rank(0)
    first = StepRecorder(tmp_path / "steps.jsonl")
    first(reports[0])
    rank(1)
    StepRecorder(tmp_path / "steps.jsonl")  # it would write nothing, so it refuses nothing
    other(reports[1])
    rank(0)
    first(reports[1])
    assert read_steps(tmp_path / "steps.jsonl") == reports


def test_reports_are_kept_in_memory_where_there_is_no_file_or_somebody_asks(tmp_path: Path) -> None:
    reports = reports_of([(0.5, [], [], 2), (0.25, [], [], 2)])
    memory, file, both = StepRecorder(), StepRecorder(tmp_path / "a"), StepRecorder(tmp_path / "b", keep=True)
    for recorder in (memory, file, both):
        assert recorder.steps == []
        for report in reports:
            recorder(report)
        assert recorder.steps == reports
    (tmp_path / "a").unlink()
    (tmp_path / "b").unlink()
    assert (file.steps, both.steps) == ([], reports)


def test_the_file_stays_where_it_is_when_the_program_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    recorder = StepRecorder("steps.jsonl")
    monkeypatch.chdir(tmp_path / "elsewhere")
    recorder(reports_of([(0.5, [], [], 2)])[0])
    assert len(read_steps(tmp_path / "steps.jsonl")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "7",
        "null",
        "{}",
        '{"step": 1',
        '{"step": 1, "loss": "half"}',
        "\ufeff{}",
        '{"step": 1e999}',
        '{"step": null}',
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    sound = whole(tmp_path / "steps.jsonl").splitlines(keepends=True)[0]
    (tmp_path / "steps.jsonl").write_bytes(sound + line.encode() + b"\n" + sound)
    with pytest.raises(ConfigurationError, match=r"Line 2 of .* is not the record of a step"):
        read_steps(tmp_path / "steps.jsonl")
    with pytest.raises(ConfigurationError, match="Line 2"):
        StepRecorder(tmp_path / "steps.jsonl", resume=True)


def test_what_later_versions_add_is_passed_over_and_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    reports = reports_of([(0.5, [], [], 2)])
    StepRecorder(tmp_path / "steps.jsonl")(reports[0])
    record = json.loads((tmp_path / "steps.jsonl").read_text())
    (tmp_path / "steps.jsonl").write_text(json.dumps({"seconds": 3, **record}) + "\n")
    assert read_steps(tmp_path / "steps.jsonl") == reports
    with pytest.raises(ConfigurationError, match="There is no file"):
        read_steps(tmp_path / "other.jsonl")
