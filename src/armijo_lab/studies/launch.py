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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from armijo.errors import RankError
from armijo_lab.training import InterruptedRunError, TrainingConfig

__all__ = ["run"]

_STOPPED = InterruptedRunError.__name__


def run(config: TrainingConfig, folder: Path) -> None:
    """Do a run with `config.processes` ranks on this machine, which share its threads.

    Ctrl-C and SIGTERM, or the end of this process, have the ranks stop after the step that is going on, with a
    checkpoint; a second Ctrl-C stops at once.

    Raises:
        ChildProcessError: A rank failed; the message is what it said.
        KeyboardInterrupt: The ranks were told to stop.
    """
    assert config.processes is not None
    threads = max(1, torch.get_num_threads() // config.processes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={config.processes}"]
    with tempfile.TemporaryDirectory() as last_words:
        command += ["-m", __name__, str(folder), json.dumps(dataclasses.asdict(config)), last_words]
        with _told() as told:
            # In a session of its own torchrun does not hear the terminal's Ctrl-C beside us. The ranks inherit the
            # pipe, and what they wait for in it is its end.
            process = subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            assert process.stdin is not None
            told.process = process
            if told.signals:
                process.stdin.close()
            code = process.wait()
            process.stdin.close()
        error = _first_error(Path(last_words))
    if error is not None and not error.startswith(_STOPPED):
        raise ChildProcessError(error)
    if told.signals or error is not None:
        raise KeyboardInterrupt
    if code:
        raise ChildProcessError(
            f"torchrun ended with {code}, and no process said why; one may have been killed, for memory say."
        )


class _Told:
    """Hears the signals that ask for a stop, and passes them on."""

    def __init__(self) -> None:
        self.signals = 0
        self.process: subprocess.Popen[bytes] | None = None

    def hear(self, number: int, frame: Any) -> None:
        self.signals += 1
        if self.process is not None and self.process.stdin is not None:
            if self.signals == 1:
                self.process.stdin.close()
            else:
                self.process.terminate()


@contextmanager
def _told() -> Iterator[_Told]:
    told = _Told()
    # Only the main thread may set handlers; elsewhere signals are that thread's affair.
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, told.hear) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_error(folder: Path) -> str | None:
    """What a rank said that failed by itself, or else what one said that heard of it, or was stopped."""
    said = [path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())]
    return min(said, key=lambda text: (text.startswith(_STOPPED), text.startswith(RankError.__name__)), default=None)


def _rank(folder: str, config: str, last_words: str) -> None:
    from armijo_lab.studies import worker

    threading.Thread(target=_stop_at_the_end_of, args=(sys.stdin.fileno(),), daemon=True).start()
    try:
        worker.go_on(TrainingConfig(**json.loads(config)), Path(folder), lambda record: None, worker.Shared())
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        (Path(last_words) / os.environ["RANK"]).write_text(said, encoding="utf-8")
        raise


def _stop_at_the_end_of(pipe: int) -> None:
    # Not through sys.stdin: a thread that holds its lock when Python ends makes it end in an error.
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _rank(*sys.argv[1:])
