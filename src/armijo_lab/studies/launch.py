"""A run of several processes: torchrun starts one for each rank, and this process waits."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from armijo.errors import RankError
from armijo_lab.training import InterruptedRunError, TrainingConfig

__all__ = ["run"]

_RANK_MODULE = "armijo_lab.studies.rank"
"""Started by its name, and not imported: it imports the worker, which imports this module."""
_INTERRUPTED = InterruptedRunError.__name__


def run(config: TrainingConfig, folder: Path) -> None:
    """Do a run with `config.processes` ranks on this machine, which share its threads.

    On Ctrl-C, SIGTERM or the death of this process the ranks stop after the current step, with a checkpoint; a second
    Ctrl-C stops at once.

    Raises:
        ChildProcessError: A rank failed; the message is that of its error.
        KeyboardInterrupt: A signal stopped the ranks.
    """
    assert config.processes is not None
    threads = max(1, torch.get_num_threads() // config.processes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={config.processes}"]
    with tempfile.TemporaryDirectory() as errors:
        command += ["-m", _RANK_MODULE, str(folder), json.dumps(dataclasses.asdict(config)), errors]
        with _forwarded_signals() as signals:
            # In its own session torchrun does not receive the terminal's Ctrl-C. The ranks inherit the pipe and stop
            # when it is closed.
            process = subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            assert process.stdin is not None
            signals.process = process
            if signals.count:
                process.stdin.close()
            code = process.wait()
            process.stdin.close()
        error = _first_error(Path(errors))
    if error is not None and not error.startswith(_INTERRUPTED):
        raise ChildProcessError(error)
    if signals.count or error is not None:
        raise KeyboardInterrupt
    if code:
        raise ChildProcessError(
            f"torchrun ended with exit code {code} and no rank reported an error; one may have been killed, for "
            "example because memory ran out."
        )


class _SignalForwarder:
    """Passes SIGINT and SIGTERM on to the ranks: the first closes their pipe, the second ends torchrun."""

    def __init__(self) -> None:
        self.count = 0
        self.process: subprocess.Popen[bytes] | None = None

    def handle(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.process is not None and self.process.stdin is not None:
            if self.count == 1:
                self.process.stdin.close()
            else:
                self.process.terminate()


@contextmanager
def _forwarded_signals() -> Iterator[_SignalForwarder]:
    forwarder = _SignalForwarder()
    # Only the main thread may set handlers.
    main = threading.current_thread() is threading.main_thread()
    previous = (
        {number: signal.signal(number, forwarder.handle) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    )
    try:
        yield forwarder
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _first_error(folder: Path) -> str | None:
    """Return the error of a rank that failed by itself, or else of one that failed because of it or was stopped."""
    errors = [path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())]
    return min(
        errors, key=lambda text: (text.startswith(_INTERRUPTED), text.startswith(RankError.__name__)), default=None
    )
