"""`armijo study`: the runs of a study, on Hydra's launchers."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armijo_lab.errors import BadInputError
from armijo_lab.names import counted

if TYPE_CHECKING:
    from armijo_lab.studies.plan import Options
    from armijo_lab.training import TrainingConfig

__all__ = ["study"]

_READ_INTERVAL = 2.0
"""Seconds between two reads of the records."""
_LINE_INTERVAL = 60.0
"""Seconds between the lines that replace the progress bar where there is no terminal."""


def study(
    name: Annotated[str | None, typer.Argument(help="The study; without it, all are listed.", metavar="NAME")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Options of the study and of Hydra, as key=value.", metavar="KEY=VALUE…"),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="List the runs and what is known of each; run nothing.")] = False,
) -> None:
    """Do the runs of a study and record each as a line of results/NAME.jsonl.

    A run that has its record is skipped, so the same command continues what
    was interrupted; a run that fails is recorded as failed, and the others go
    on. armijo report makes tables and figures of the records.

    Options: seeds, tasks, select (a regular expression on the optimizer),
    model, data_dir, limit, evaluation_limit, epochs, batch_size, max_length,
    protocol (paper, clean), precision, device, threads, processes (of one
    run, started by torchrun), checkpoint_every, results, work. Hydra's
    launcher says where the runs are done.

    \b
    Examples:
      armijo study
      armijo study rivals data_dir=glue tasks=sst2,mrpc
      armijo study rivals data_dir=glue seeds=1 select='adamsls|salsa'
      armijo study paper-small data_dir=glue hydra/launcher=joblib
      armijo study paper-full data_dir=glue hydra/launcher=submitit_slurm
      armijo study paper-full data_dir=glue processes=4 device=cuda
    """  # noqa: D301 (\b, which keeps the lines that follow as they are, is one character)
    from armijo_lab.commands.progress import errors, interrupted, output

    if importlib.util.find_spec("hydra") is None:
        raise BadInputError(
            "Studies run on Hydra, which is not installed; install it with: pip install 'armijo[studies]', or do the "
            "runs one after the other with: python -m armijo_lab.studies NAME key=value."
        )
    from armijo_lab.studies import engine, plan, worker

    if name is None:
        for known in plan.STUDIES.values():
            output.print(f"{known.name:14} {known.question}", markup=False, highlight=False)
        output.print("regret         How much does a default lose that knows no learning rate?", highlight=False)
        return
    if name == "regret":
        from armijo_lab.regret.__main__ import main

        raise typer.Exit(main([*(["show"] if show else []), *(overrides or [])]))
    if name not in plan.STUDIES:
        raise BadInputError(f"There is no study {name!r}; choose one of {', '.join(plan.STUDIES)}.")
    given = list(overrides or [])
    chosen = engine.options(name, given)
    planned, todo = engine.pending_runs(chosen)
    if show:
        _list(chosen, planned, todo)
        return
    if not todo:
        message = f"All {counted(len(planned), 'run')} of {name} are done. Next: {_report(chosen, given)}"
        output.print(message, markup=False, highlight=False)
        return
    worker.check_sources(todo, chosen)
    try:
        with _progress(chosen, planned, todo):
            engine.run(chosen, given, todo)
    except KeyboardInterrupt:
        _, todo = engine.pending_runs(chosen)
        interrupted(f"Interrupted; {counted(len(todo), 'run')} left. The same command does the rest.")
    _, todo = engine.pending_runs(chosen)
    done = len(planned) - len(todo)
    message = f"{done} of {counted(len(planned), 'run')} done. Next: {_report(chosen, given)}"
    output.print(message, markup=False, highlight=False)
    if todo:
        from armijo_lab.results import store
        from armijo_lab.studies.plan import as_dict

        known = store.read(Path(chosen.results))
        for config in todo:
            entry = known.get(store.identity(as_dict(config)), {})
            reason = entry.get("error", "it left no record")
            errors.print(f"{plan.label(name, config)}: {reason}", markup=False, highlight=False)
        errors.print(
            f"{counted(len(todo), 'run')} failed; the same command tries again.", markup=False, highlight=False
        )
        raise typer.Exit(1)


def _report(chosen: Options, given: list[str]) -> str:
    """Return the command that reports on these runs, with the options that decide what they compute."""
    from armijo_lab.studies.plan import EXECUTION_OPTIONS

    elsewhere = (*EXECUTION_OPTIONS, "seeds", "tasks", "select")
    decisive = [text for text in given if not text.startswith("hydra") and text.partition("=")[0] not in elsewhere]
    place = [] if chosen.results == "results" else ["--results", chosen.results, "--output", "pages"]
    return shlex.join(["armijo", "report", chosen.study, *decisive, *place])


def _list(chosen: Options, planned: list[TrainingConfig], todo: list[TrainingConfig]) -> None:
    from armijo_lab.commands.progress import output
    from armijo_lab.results import store
    from armijo_lab.studies import plan

    known = store.read(Path(chosen.results))
    for config in planned:
        identity, label = store.identity(plan.as_dict(config)), plan.label(chosen.study, config)
        entry = known.get(identity)
        begun = (Path(chosen.work) / identity).is_dir()
        line = f"{'begun' if begun else 'left':8} {label}" if entry is None else store.line(entry, label)
        output.print(line, markup=False, highlight=False)
    output.print(f"{len(planned) - len(todo)} of {counted(len(planned), 'run')} done", markup=False, highlight=False)


@contextlib.contextmanager
def _progress(chosen: Options, planned: list[TrainingConfig], todo: list[TrainingConfig]) -> Iterator[None]:
    """Show the progress of the runs, on whichever machine they are, from their records."""
    from armijo_lab.commands.progress import errors

    stop = threading.Event()
    reader = _ProgressReader(chosen, planned, todo)
    target = _bar if errors.is_terminal else _lines
    thread = threading.Thread(target=target, args=(reader, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


class _ProgressReader:
    """Counts finished, running and waiting runs from the records and the folders of unfinished runs."""

    def __init__(self, chosen: Options, planned: list[TrainingConfig], todo: list[TrainingConfig]) -> None:
        from armijo_lab.results import store
        from armijo_lab.studies import plan

        self._results, self._work = Path(chosen.results), Path(chosen.work)
        self._todo = {store.identity(plan.as_dict(config)): plan.label(chosen.study, config) for config in todo}
        self._known = {key: entry for key, entry in store.read(self._results).items() if key in self._todo}
        self.total, self.before = len(planned), len(planned) - len(todo)
        self._began = time.monotonic()
        self._files: object = None
        self._ended: set[str] = set()
        self.failed = 0
        self.news: list[str] = []

    def read(self) -> tuple[int, int, int, float | None]:
        """Return the finished, running and waiting runs, and the seconds to the end (`None` before a run has ended).

        `news` has a line for each run that ended since the last call, `failed` the number of failures so far.
        """
        from armijo_lab.results import store

        files = sorted((path.name, path.stat().st_size) for path in self._results.glob("*.jsonl"))
        if files != self._files:
            records = store.read(self._results)
            before = self._ended
            self._ended = {key for key in self._todo if key in records and records[key] != self._known.get(key)}
            self.news = [
                store.line(records[key], label) for key, label in self._todo.items() if key in self._ended - before
            ]
            self.failed = sum(records[key]["status"] == "failed" for key in self._ended)
            self._files = files
        else:
            self.news = []
        ended = self._ended
        running = sum(key not in ended and (self._work / key).is_dir() for key in self._todo)
        left = len(self._todo) - len(ended)
        seconds = (time.monotonic() - self._began) / len(ended) * left if ended else None
        return self.before + len(ended), running, left - running, seconds


def _status_text(counts: tuple[int, int, int, float | None], failed: int) -> str:
    _, running, waiting, seconds = counts
    time_left = "" if seconds is None else f", about {math.ceil(seconds / 60)} min left"
    return f"{f'{failed} failed, ' if failed else ''}{running} running, {waiting} left{time_left}"


def _bar(reader: Any, stop: threading.Event) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from armijo_lab.commands.progress import errors

    columns = (
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("runs", total=reader.total, completed=reader.before, status="")
        over = False
        while not over:
            # Read once more at the end, to show the last run too.
            over = stop.wait(_READ_INTERVAL)
            counts = reader.read()
            for line in reader.news:
                progress.console.print(line, markup=False, highlight=False)
            progress.update(task, completed=counts[0], status=_status_text(counts, reader.failed))


def _lines(reader: Any, stop: threading.Event) -> None:
    from armijo_lab.commands.progress import errors

    shown, last, over = -1, time.monotonic(), False
    while not over:
        over = stop.wait(_READ_INTERVAL)
        counts = reader.read()
        for line in reader.news:
            errors.print(line, markup=False, highlight=False)
        if not over and (counts[0] != shown or time.monotonic() - last > _LINE_INTERVAL):
            shown, last = counts[0], time.monotonic()
            errors.print(
                f"{counts[0]}/{reader.total} runs done, {_status_text(counts, reader.failed)}",
                markup=False,
                highlight=False,
            )
