"""Ctrl-C that waits until a step is finished or undone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Interrupts"]

_Result = TypeVar("_Result")


class Interrupts:
    """Delays Ctrl-C while this context is open, so that no step is half taken, except in `interruptible` functions."""

    def __init__(self) -> None:
        self._handler: Any = None
        self._open = False
        self._caught: tuple[int, Any] | None = None

    def __enter__(self) -> Interrupts:
        handler = signal.getsignal(signal.SIGINT)
        # Only the main thread may set handlers, and only Python's own can be called later.
        if threading.current_thread() is threading.main_thread() and callable(handler):
            self._handler = handler
            signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._deliver()

    def interruptible(self, function: Callable[[], _Result]) -> Callable[[], _Result]:
        """The same function, which Ctrl-C may interrupt."""

        def call() -> _Result:
            try:
                self._open = True
                self._deliver()
                return function()
            finally:
                self._open = False

        return call

    def _receive(self, number: int, frame: Any) -> None:
        self._caught = (number, frame)
        if self._open:
            self._deliver()

    def _deliver(self) -> None:
        if self._caught is not None:
            caught, self._caught = self._caught, None
            # Closed while the handler raises: nothing may interrupt the code that undoes the step.
            was_open, self._open = self._open, False
            self._handler(*caught)
            self._open = was_open
