"""Ctrl-C and SIGTERM during a run: stop after a whole step, with a checkpoint."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

__all__ = ["InterruptedRunError", "StopSignal"]

logger = logging.getLogger("armijo")


class InterruptedRunError(Exception):
    """Ctrl-C ended the run after a whole step, and its checkpoint is written.

    Attributes:
        folder: The run's folder.
        step: The steps done.
        total_steps: The steps of the whole run.
    """

    def __init__(self, folder: Path, step: int, total_steps: int) -> None:
        super().__init__(f"The run in {folder} was interrupted after {step} of {total_steps} steps.")
        self.folder = folder
        self.step = step
        self.total_steps = total_steps


class StopSignal:
    """Turns a first Ctrl-C or SIGTERM into a request to stop after this step; a second one stops at once.

    Use it as a context manager, which sets the signal handlers. While a checkpoint is written, a second signal is
    ignored: it would lose the checkpoint that the first one asked for.

    Args:
        resumable: Whether a checkpoint will be written; the log message says so.
        several_ranks: Whether the process is one of several. One Ctrl-C then arrives as several signals, from the
            terminal and from torchrun, so a second one is ignored; to stop at once, end torchrun.

    Attributes:
        requested: Whether a signal has arrived.
    """

    def __init__(self, resumable: bool = True, several_ranks: bool = False) -> None:
        self.requested = False
        self._resumable = resumable
        self._several_ranks = several_ranks
        self._writing = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may set handlers.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        # The signal came while the last files were written: this run is complete, but the caller has to stop.
        if self.requested and kind is None:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Ignore a second signal while a file is written that must be complete."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested and not (self._writing or self._several_ranks):
            raise KeyboardInterrupt
        if not self.requested:
            self.requested = True
            if self._several_ranks:
                checkpoint = "with a checkpoint" if self._resumable else "without a checkpoint"
                logger.warning("Stopping after this step, %s.", checkpoint)
            elif self._resumable:
                logger.warning("Stopping after this step, with a checkpoint; a second Ctrl-C stops at once, without.")
            else:
                logger.warning("Stopping after this step; this optimizer cannot be resumed, so there is no checkpoint.")
