"""What a run counts: steps, losses, epochs, seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CLOCKS", "Progress"]

CLOCKS = ("training", "evaluation", "logging")


@dataclass
class Progress:
    """The counters of a run; every value is a JSON value and part of the checkpoint."""

    step: int = 0
    forwards: int = 0
    log_loss_sum: float = 0.0
    epoch_loss_sum: float = 0.0
    failed_searches: int = 0
    trials: int = 0
    ties: int = 0
    merges: list[list[Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None
    final: dict[str, float] | None = None
    nonfinite_since: int | None = None
    """The first of the latest steps whose losses were all not finite."""
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLOCKS, 0.0))

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the time inside the context to `seconds[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
