"""A run of several processes: torchrun starts one for each rank, and this one waits."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from armijo_lab.training import TrainingConfig

__all__ = ["run"]


def run(config: TrainingConfig, folder: Path) -> None:
    """Do a run with `config.processes` ranks on this machine, which share its threads.

    Ctrl-C and SIGTERM reach the ranks once: they stop after the step that is going on, with a checkpoint.

    Raises:
        ChildProcessError: A rank failed; the message is what it said.
        KeyboardInterrupt: The ranks were told to stop.
    """
    assert config.processes is not None
    threads = max(1, torch.get_num_threads() // config.processes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={config.processes}"]
    command += ["-m", __name__, str(folder), json.dumps(dataclasses.asdict(config))]
    with tempfile.TemporaryDirectory() as aside:
        # torchrun leaves there what the rank said that failed first.
        errors = Path(aside) / "error.json"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCHELASTIC_ERROR_FILE": str(errors)}
        # In a session of its own it does not hear the terminal's Ctrl-C beside ours, and the ranks hear of one alone.
        with subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            said, told = _wait(process)
        if told:
            raise KeyboardInterrupt
        if process.returncode:
            raise ChildProcessError(_first_failure(errors) or said.strip().rpartition("\n")[2] or "torchrun failed")


def _wait(process: subprocess.Popen[str]) -> tuple[str, bool]:
    """What the processes wrote, when they have ended, and whether they were told to."""
    told: list[int] = []

    def tell(number: int, frame: Any) -> None:
        if not told:
            process.terminate()
        told.append(number)

    # Only the main thread may set handlers; elsewhere signals are that thread's affair.
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        return process.communicate()[1], bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_failure(path: Path) -> str | None:
    try:
        message = json.loads(path.read_text(encoding="utf-8"))["message"]
        return message["message"] if isinstance(message, dict) else str(message)
    except (OSError, ValueError, KeyError):
        return None


@record
def _rank(folder: str, config: str) -> None:
    from armijo_lab.studies import worker

    worker.go_on(TrainingConfig(**json.loads(config)), Path(folder), lambda record: None, worker.Shared())


if __name__ == "__main__":
    _rank(*sys.argv[1:])
