"""`armijo finetune` killed with SIGKILL, out of disk, and resumed: nothing is lost, to the last bit."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armijo_lab.cli import main
from armijo_lab.results.run_folder import read_run
from lab import tiny
from processes import forked

MAIN = [sys.executable, "-c", "from armijo_lab.cli import main; main()"]
# 20 rows in batches of 2, 12 epochs: 120 steps, a checkpoint every 10, an evaluation and perhaps a model every 10.
ARGUMENTS = [
    "finetune",
    # Components, turns and merges are to be resumed too.
    "--optimizer",
    "plasls",
    "--model",
    "../model",
    "--train",
    "../rows.jsonl",
    "--text",
    "text",
    "--label",
    "label",
    "--epochs",
    "12",
    "--batch-size",
    "2",
    "--max-length",
    "16",
    "--checkpoint-every",
    "10",
    "--device",
    "cpu",
    "--output",
    "run",
]
MEASURED = ("seconds", "peak_memory")
"""What is measured and not computed: times, and the peak memory of the process that came last."""


def _start(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*MAIN, *arguments],
        cwd=folder,
        env=surroundings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _finish(arguments: list[str], folder: Path, limit: Callable[[], None] = lambda: None) -> tuple[int, str]:
    def run(given: list[str]) -> None:
        limit()
        main(given)

    done = forked(run, *arguments, cwd=folder)
    return done.returncode, done.stderr


def _outcome(folder: Path) -> Any:
    """All that a run leaves, but for measurements."""
    run = read_run(folder)
    epochs = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in run.epochs]
    summary = {key: value for key, value in run.summary.items() if key not in MEASURED}
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("best", "last")]
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "tfevents" not in path.name)
    return json.dumps([summary, run.steps, epochs]), weights, names


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The uninterrupted run's folder, and the seconds that it took."""
    base = tmp_path_factory.mktemp("kills")
    tiny.save_model(base / "model")
    tiny.write_rows(base / "rows.jsonl", 25)
    (base / "whole").mkdir()
    began = time.monotonic()
    code, said = _finish(ARGUMENTS, base / "whole")
    assert code == 0, said
    assert read_run(base / "whole" / "run").summary["steps"] == 120
    return base / "whole", time.monotonic() - began


def _kill_and_resume(whole: Path, name: str, wait: Callable[[subprocess.Popen[bytes], Path], None]) -> str:
    """Kill a run when `wait` returns, and resume it; what was there to resume."""
    folder = whole.parent / name
    folder.mkdir()
    process = _start(ARGUMENTS, folder)
    wait(process, folder / "run")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode == 0:
        found = "complete already"
    elif (folder / "run" / "checkpoint" / "state.pt").is_file() or (folder / "run" / "last").is_dir():
        code, said = _finish(["finetune", "--resume", "run"], folder)
        complete = code == 2 and "is complete" in said
        assert code == 0 or complete, said
        found = "resumed"
    else:
        # Killed before there was anything to lose.
        shutil.rmtree(folder / "run", ignore_errors=True)
        code, said = _finish(ARGUMENTS, folder)
        assert code == 0, said
        found = "started again"
    assert _outcome(folder / "run") == _outcome(whole / "run")
    shutil.rmtree(folder)
    return found


def _at(seconds: float) -> Callable[[subprocess.Popen[bytes], Path], None]:
    def wait(process: subprocess.Popen[bytes], folder: Path) -> None:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    return wait


def _in_mid_write(which: str, after: int) -> Callable[[subprocess.Popen[bytes], Path], None]:
    """Until the file or folder that is written aside is seen for the `after`-th time."""

    def wait(process: subprocess.Popen[bytes], folder: Path) -> None:
        seen, there = 0, False
        while process.poll() is None:
            now = (folder / which).exists()
            seen, there = seen + (now and not there), now
            if seen == after:
                return

    return wait


CHECKPOINT, MODEL = "checkpoint/.state.partial", ".best.partial"


def _after_records(number: int) -> Callable[[subprocess.Popen[bytes], Path], None]:
    def wait(process: subprocess.Popen[bytes], folder: Path) -> None:
        metrics = folder / "metrics.jsonl"
        while process.poll() is None and not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= number):
            time.sleep(0.01)

    return wait


@pytest.mark.parametrize(
    "wait",
    [_in_mid_write(CHECKPOINT, 5), pytest.param(_after_records(65), marks=pytest.mark.soak)],
    ids=["in mid-write", "between"],
)
def test_a_killed_run_is_resumed_to_the_last_bit(whole: tuple[Path, float], wait: Any, tally: Any) -> None:
    assert _kill_and_resume(whole[0], "killed", wait) == "resumed"
    tally("kills of the command survived")


@pytest.mark.soak
@pytest.mark.parametrize("number", range(20))
def test_twenty_kills_over_the_whole_run_and_in_mid_write(whole: tuple[Path, float], number: int, tally: Any) -> None:
    folder, seconds = whole
    draw = random.Random(number)
    if number < 14:  # one in each fourteenth of the run's time
        wait = _at((number + draw.random()) / 14 * seconds)
    else:
        wait = _in_mid_write(CHECKPOINT if number % 2 else MODEL, draw.randrange(1, 4))
    found = _kill_and_resume(folder, f"kill-{number}", wait)
    tally("kills of the command survived")
    tally(f"… of them: {found}")


def test_a_full_disk_is_a_sentence_and_the_checkpoint_before_is_intact(whole: tuple[Path, float], tally: Any) -> None:
    """The system's own limit on the size of a file stands for the disk: writing fails in the middle."""
    folder = whole[0].parent / "full"
    folder.mkdir()

    def limit() -> None:  # the first checkpoint has no moments yet and still fits
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    code, said = _finish(ARGUMENTS, folder, limit=limit)
    assert code == 1, said
    assert "The checkpoint of step 10 could not be written" in said
    assert "the one before it is intact: make room and continue. Continue with: armijo finetune --resume run" in said
    assert "Traceback" not in said
    assert [path.name for path in (folder / "run" / "checkpoint").iterdir()] == ["state.pt"]
    code, said = _finish(["finetune", "--resume", "run"], folder)
    assert code == 0, said
    assert _outcome(folder / "run") == _outcome(whole[0] / "run")
    tally("full disks survived")


def test_a_disk_too_full_for_the_first_checkpoint_is_told_to_start_again(whole: tuple[Path, float]) -> None:
    folder = whole[0].parent / "fuller"
    folder.mkdir()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    code, said = _finish(ARGUMENTS, folder, limit=limit)
    assert code == 1, said
    assert "The checkpoint of step 0 could not be written" in said
    assert "start again" in said
    assert "--resume" not in said


def test_figures_and_card_are_made_by_resume_if_they_are_missing(whole: tuple[Path, float]) -> None:
    folder = whole[0].parent / "unreported"
    shutil.copytree(whole[0], folder)
    (folder / "run" / "README.md").unlink()
    shutil.rmtree(folder / "run" / "figures")
    code, said = _finish(["finetune", "--resume", "run"], folder)
    assert code == 0, said
    assert (folder / "run" / "README.md").is_file()
    assert list((folder / "run" / "figures").iterdir())
    code, said = _finish(["finetune", "--resume", "run"], folder)
    assert code == 2
    assert "is complete" in said
