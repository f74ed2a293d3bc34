"""One rank of a run of several processes: torchrun starts it as `python -m armijo_lab.studies.rank`.

It stops after the step it is in, with a checkpoint, when its standard input ends: `launch` closes that pipe to stop the
ranks, and the pipe also closes when the launching process dies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from armijo_lab.studies import worker
from armijo_lab.training import TrainingConfig


def main(folder: str, config: str, errors: str) -> None:
    """Do this rank's share of a run.

    Args:
        folder: The run's folder.
        config: The configuration as JSON.
        errors: The folder for the error of this rank, in a file named by its number.
    """
    threading.Thread(target=_stop_when_closed, args=(sys.stdin.fileno(),), daemon=True).start()
    try:
        worker.train_or_resume(TrainingConfig(**json.loads(config)), Path(folder), lambda record: None, worker.Cache())
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        (Path(errors) / os.environ["RANK"]).write_text(message, encoding="utf-8")
        raise


def _stop_when_closed(pipe: int) -> None:
    # sys.stdin is not read: a thread that holds its lock at exit makes Python end with an error.
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(*sys.argv[1:])
