"""What a person sees while a run goes on: a bar in a terminal, lines elsewhere; both on standard error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from armijo_lab.names import counted, visible

if TYPE_CHECKING:
    from armijo_lab.training import Observe

__all__ = ["Terminal", "errors", "interrupted", "output", "show"]


class Terminal(Console):
    """A console on which no text can do more than be read: what it shows passes through `visible`."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What rich writes, with rich's own control codes and no others."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


output = Terminal(soft_wrap=True)
"""Results go here: standard output."""
errors = Terminal(stderr=True, soft_wrap=True)
"""Progress and complaints go here: standard error."""

LINE_EVERY = 10.0
"""Seconds between the lines that stand for a bar where there is no terminal."""


def interrupted(sentence: str) -> NoReturn:
    """Say how an interrupted command can go on, and exit with 130."""
    errors.print(sentence, markup=False, highlight=False)
    raise SystemExit(130)


@contextlib.contextmanager
def show(title: str) -> Iterator[Observe]:
    """Show a run under `title`; what it yields is to be called with each of the run's records."""
    if errors.is_terminal:
        with _Bar(title) as bar:
            yield bar
    else:
        yield _Lines(title)


class _Watch:
    """The numbers that both displays show, from the records that went by."""

    def __init__(self) -> None:
        self.first = 0
        self.step = 0
        self.total = 0
        self.trials = 0
        self.numbers = ""

    def start(self, record: dict[str, Any]) -> None:
        self.first = self.step = record["step"]
        self.total = record["total_steps"]

    def take(self, record: dict[str, Any]) -> None:
        self.step = record["step"]
        self.trials += record["forwards"] - 1
        parts = [f"loss {record['loss']:.3g}"]
        if record["components"]:
            sizes = [component["step_size"] for component in record["components"]]
            low, high = f"{min(sizes):.1e}", f"{max(sizes):.1e}"
            parts.append(f"step size {low if low == high else f'{low}…{high}'}")
            parts.append(f"{self.trials / (self.step - self.first):.1f} trials a step")
        elif record["lr"] is not None:
            parts.append(f"rate {record['lr']:.1e}")
        self.numbers = "  ".join(parts)


def _start_line(record: dict[str, Any]) -> str:
    parts = [
        f"model {record['model']}",
        f"task {record['task']}",
        f"{counted(record['train_rows'], 'row')} to train on",
        f"{record['eval_rows']} held out",
        *([counted(record["components"], "component")] if record["components"] else []),
        counted(record["total_steps"], "step") + (f", from step {record['step']}" if record["step"] else ""),
    ]
    return ", ".join(parts)


def _epoch_line(record: dict[str, Any]) -> str:
    values = "  ".join(f"{name} {value:.4f}" for name, value in record["evaluation"].items() if name != "loss")
    return (
        f"epoch {record['epoch']}: {values}  training loss {record['train_loss']:.3g}  "
        f"evaluation loss {record['evaluation']['loss']:.3g}"
    )


class _Bar(contextlib.AbstractContextManager["_Bar"]):
    def __init__(self, title: str) -> None:
        self._watch = _Watch()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=errors,
            expand=True,
        )
        self._task = self._progress.add_task(title, total=None, numbers="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, record: dict[str, Any]) -> None:
        watch = self._watch
        if record["kind"] == "start":
            watch.start(record)
            self._progress.reset(self._task, total=watch.total, completed=watch.step)
            for line in (_start_line(record), *record["notices"]):
                self._progress.console.print(line, markup=False, highlight=False)
        elif record["kind"] == "step":
            watch.take(record)
            self._progress.update(self._task, completed=watch.step, numbers=watch.numbers)
        else:
            self._progress.console.print(_epoch_line(record), markup=False, highlight=False)


class _Lines:
    def __init__(self, title: str) -> None:
        self._watch = _Watch()
        self._title = title
        self._began = self._last = time.monotonic()

    def __call__(self, record: dict[str, Any]) -> None:
        watch = self._watch
        now = time.monotonic()
        if record["kind"] == "start":
            watch.start(record)
            self._began = self._last = now
            for line in (f"{self._title}: {_start_line(record)}", *record["notices"]):
                self._print(line)
        elif record["kind"] == "step":
            watch.take(record)
            if now - self._last >= LINE_EVERY:
                self._last = now
                left = (now - self._began) / (watch.step - watch.first) * (watch.total - watch.step)
                minutes, seconds = divmod(round(left), 60)
                self._print(f"step {watch.step}/{watch.total}  {watch.numbers}  {minutes}:{seconds:02} left")
        else:
            self._print(_epoch_line(record))

    def _print(self, line: str) -> None:
        errors.print(line, markup=False, highlight=False)
