"""One JSON line a step, written as it happens and read back as it was.

    {"step": 7, "loss": 0.61, "forwards": 2, "total_forwards": 21,
     "components": [{"label": "layer.0", "status": "accepted", "step_size": 0.0012, "slope": 3.1, "trials": 1,
                     "trial_loss": 0.58}],
     "searches": [{"components": ["layer.0"], "status": "accepted", "first_step_size": 0.0012, "step_size": 0.0012,
                   "slope": 3.1, "trials": [[0.0012, 0.58]]}],
     "merges": [["layer.3", "layer.5"]]}

JSON has no NaN and no infinities: they are the strings "NaN", "Infinity" and "-Infinity", so that every JSON reader can
read the file. `null` means that there is no value.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import distributed

from armijo.errors import ConfigurationError
from armijo.observers.report import ComponentReport, SearchReport, StepReport
from armijo.search.values import Status, Trial

__all__ = ["StepRecorder", "is_first_rank", "read_steps"]

logger = logging.getLogger("armijo")


class StepRecorder:
    """An observer that writes each step's report to a file, and keeps it in memory if wanted.

    A line is handed to the operating system whole before `optimizer.step` returns. A process that is killed leaves
    every earlier line complete and the last one complete or absent; should its machine die in the middle of a line,
    `read_steps` passes over the torn end, and the next run cuts it off.

    The file holds the steps that led to the present parameters, each once. Where a run goes on from a checkpoint, or
    goes back to one, the lines of the steps behind it are cut off (and the log says so), because these steps are taken
    again. The count of forward passes, which each report and each checkpoint carry, tells which lines these are.

    The file is looked at when the recorder is made. If a line cannot be written later, as on a full disk, the log says
    so once, training goes on without that line, and the next step tries again: a log must not end a run.

    On several ranks, which all take the same steps, only rank 0 writes (`is_first_rank`); the file is its own.
    A recorder serves one optimizer.

    Args:
        path: the file, for instance `"run/steps.jsonl"`; missing folders are made. None to keep the reports in memory
            alone.
        resume: whether the file may hold steps already. There need be none, so that a job that is started again and
            again can always say so.
        keep: whether to keep the reports in memory. By default only without a file: a long run has many.

    Raises:
        ConfigurationError: the file cannot be written, or holds the steps of another run.

    Examples:
        >>> import tempfile, torch, armijo
        >>> from pathlib import Path
        >>> from armijo.observers.recorder import StepRecorder, read_steps
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = armijo.SGDSLS([weight], initial_step_size=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "steps.jsonl"
        ...     handle = optimizer.register_observer(StepRecorder(path))
        ...     for _ in range(3):
        ...         loss = optimizer.step(lambda: (weight**2).sum())
        ...     [(report.step, report.forwards) for report in read_steps(path)]
        [(1, 2), (2, 2), (3, 2)]
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, resume: bool = False, keep: bool | None = None
    ) -> None:
        # A program may change its folder later.
        self.path = None if path is None else Path(path).absolute()
        self._kept: list[StepReport] | None = [] if keep or (keep is None and path is None) else None
        self._forwards = 0
        """The passes up to the last step that is recorded."""
        self._end = 0
        """Where the last complete line of the file ends."""
        self._torn = False
        """Whether something may stand behind that."""
        self._failed = False
        if self.path is not None and is_first_rank():
            self._begin(self.path, resume)

    @property
    def steps(self) -> list[StepReport]:
        """The steps so far: those kept in memory, otherwise those in the file."""
        if self._kept is not None:
            return list(self._kept)
        return [] if self.path is None or not self.path.exists() else read_steps(self.path)

    def __call__(self, report: StepReport) -> None:
        """Record one step."""
        before = report.total_forwards - report.forwards
        if self._kept is not None and before < self._forwards:
            self._kept = [kept for kept in self._kept if kept.total_forwards <= before]
        if self.path is not None and is_first_rank():
            try:
                self._write(self.path, report, before)
            except (OSError, ConfigurationError) as error:
                self._warn(self.path, error)
        if self._kept is not None:
            self._kept.append(report)
        self._forwards = report.total_forwards

    # ------------------------------------------------------------------------------------------------------ the file

    def _begin(self, path: Path, resume: bool) -> None:
        exists = path.exists()
        if exists and not path.is_file():
            raise ConfigurationError(
                f"{path} is a folder; name a file in it, for instance {path / 'steps.jsonl'}."
                if path.is_dir()
                else f"{path} is no ordinary file; name one, for instance steps.jsonl."
            )
        if exists and not resume and path.stat().st_size > 0:
            raise ConfigurationError(
                f"{path} holds the steps of another run. Name a new file, or pass resume=True if this run goes on from "
                "a checkpoint of that one."
            )
        if exists:
            for self._end, report in _lines(path):
                self._forwards = report.total_forwards
                if self._kept is not None:
                    self._kept.append(report)
            self._torn = path.stat().st_size > self._end
        try:
            if not path.parent.exists():
                path.parent.mkdir(parents=True)
            with path.open("ab"), tempfile.TemporaryFile(dir=path.parent) as file:
                # A full disk may take a few bytes more, but not a block.
                file.write(bytes(1 << 16))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if not exists:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            raise ConfigurationError(
                f"The steps cannot be written to {path} ({error.strerror or error}). Name a file in a folder that can "
                "be written to and has room."
            ) from error

    def _write(self, path: Path, report: StepReport, before: int) -> None:
        if before < self._forwards:
            self._cut(path, before)
        line = _encoded(report)
        # Opened for each line, so that nothing has to be closed, and nothing is lost with a buffer. Buffered writing
        # would try again at the end to write what a full disk refused.
        with path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if self._torn and size > self._end:
                file.truncate(self._end)
                size = self._end
            self._torn, self._end = True, size
            rest = memoryview(line)
            while rest:
                rest = rest[file.write(rest) :]
            self._torn, self._end = False, size + len(line)

    def _cut(self, path: Path, before: int) -> None:
        """Cut off the lines of the steps that are taken again."""
        kept, number, last = 0, 0, 0
        for end, report in _lines(path):
            if report.total_forwards > before:
                number, last = number + 1, report.step
            elif not number:
                kept = end
        if number:
            self._torn, self._end = True, kept
            logger.warning(
                "The run goes on from an earlier step, so the last %d steps in %s, up to step %d, are cut off. (Two "
                "optimizers need a recorder each.)",
                number,
                path,
                last,
            )

    def _warn(self, path: Path, error: OSError | ConfigurationError) -> None:
        if self._failed:
            return
        self._failed = True
        logger.warning(
            "A step could not be recorded in %s (%s). Training goes on, and each later step is tried; make room, or "
            "see whether the folder is still there.",
            path,
            getattr(error, "strerror", None) or error,
        )


def read_steps(path: str | os.PathLike[str]) -> list[StepReport]:
    """Read what a `StepRecorder` wrote, exactly as it was reported; a torn last line is passed over.

    Args:
        path: the file. Other keys in its lines do not matter.

    Raises:
        ConfigurationError: there is no such file, or another line than the last is damaged.

    Examples:
        >>> # steps = read_steps("run/steps.jsonl")
        >>> # armijo.observers.matplotlib.panel(steps).savefig("run/steps.png")
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(f"There is no file {path}. A StepRecorder makes it when it is created, on rank 0.")
    return [report for _, report in _lines(path)]


def is_first_rank() -> bool:
    """Whether this process is the one that writes: rank 0 of torch.distributed.

    Before torch.distributed is initialised it is what torchrun says (the variable RANK), and without that the only one.
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


# ---------------------------------------------------------------------------------------------------------- the format


def _encoded(report: StepReport) -> bytes:
    record = {
        "step": report.step,
        "loss": _number(report.loss),
        "forwards": report.forwards,
        "total_forwards": report.total_forwards,
        "components": [
            {
                "label": component.label,
                "status": component.status,
                "step_size": _number(component.step_size),
                "slope": _number(component.slope),
                "trials": component.trials,
                "trial_loss": None if component.trial_loss is None else _number(component.trial_loss),
            }
            for component in report.components
        ],
        "searches": [
            {
                "components": search.components,
                "status": search.status,
                "first_step_size": _number(search.first_step_size),
                "step_size": _number(search.step_size),
                "slope": _number(search.slope),
                "trials": [[_number(trial.step_size), _number(trial.loss)] for trial in search.trials],
            }
            for search in report.searches
        ],
        "merges": report.merges,
    }
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _lines(path: Path) -> Iterator[tuple[int, StepReport]]:
    """Each complete line's report, with the place in the file where the line ends."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                report = _decoded(json.loads(line))
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise ConfigurationError(
                    f"Line {number} of {path} is not the record of a step; the file was changed, or something else "
                    "wrote it. Remove the line, or name the file that a StepRecorder wrote."
                ) from error
            yield end, report


def _decoded(record: dict[str, Any]) -> StepReport:
    return StepReport(
        step=int(record["step"]),
        loss=float(record["loss"]),
        components=tuple(
            ComponentReport(
                label=component["label"],
                status=Status(component["status"]),
                step_size=float(component["step_size"]),
                slope=float(component["slope"]),
                trials=int(component["trials"]),
                trial_loss=None if component["trial_loss"] is None else float(component["trial_loss"]),
            )
            for component in record["components"]
        ),
        searches=tuple(
            SearchReport(
                components=tuple(search["components"]),
                status=Status(search["status"]),
                first_step_size=float(search["first_step_size"]),
                step_size=float(search["step_size"]),
                slope=float(search["slope"]),
                trials=tuple(Trial(float(step_size), float(loss)) for step_size, loss in search["trials"]),
            )
            for search in record["searches"]
        ),
        merges=tuple((kept, absorbed) for kept, absorbed in record["merges"]),
        forwards=int(record["forwards"]),
        total_forwards=int(record["total_forwards"]),
    )
