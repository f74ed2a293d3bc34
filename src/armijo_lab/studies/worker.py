"""One run of a study, from its configuration to its record; torch and transformers are all that is needed.

Runs in one process share what they have in common: the tokenised rows of a task, and the weights of a model, which
each run gets as they were read. A run in a process that did others before equals one in a process of its own.
"""

from __future__ import annotations

import copy
import gc
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from armijo_lab import models, training
from armijo_lab.errors import BadInputError
from armijo_lab.results import store
from armijo_lab.results.records import read_run, read_summary
from armijo_lab.studies import launch
from armijo_lab.studies.plan import Options, as_dict
from armijo_lab.tasks import glue
from armijo_lab.training import Observe, TrainingConfig

__all__ = ["Shared", "do", "go_on", "is_done", "prepare_places"]


class Shared:
    """What runs in one process have in common: tasks that were read, and models as they were loaded.

    Args:
        capacity: How many of each to keep, ≥ 1; the one that was used longest ago goes first.
    """

    def __init__(self, capacity: int = 4) -> None:
        self._capacity = capacity
        self._tasks: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._models: OrderedDict[tuple[Any, ...], tuple[Any, Any]] = OrderedDict()

    def load(self, config: TrainingConfig) -> tuple[Any, Any, Any]:
        """Task, model and tokenizer for a run, as `load_task` and `models.load` return them."""
        rows = (config.task, config.data_dir, config.limit, config.evaluation_limit, config.evaluate_all)
        task = self._keep(self._tasks, rows, lambda: training.load_task(config))
        key = (config.model, config.paper_protocol, config.task, config.data_dir, config.seed)
        model, tokenizer = self._keep(
            self._models,
            key,
            lambda: models.load(config.model, task, paper_protocol=config.paper_protocol, seed=config.seed),
        )
        return task, copy.deepcopy(model), tokenizer

    def _keep(self, kept: OrderedDict[tuple[Any, ...], Any], key: tuple[Any, ...], load: Any) -> Any:
        if key not in kept:
            kept[key] = load()
        kept.move_to_end(key)
        while len(kept) > self._capacity:
            kept.popitem(last=False)
        return kept[key]


_SHARED = Shared()
"""Of this process."""


def prepare_places(todo: Iterable[TrainingConfig], options: Options) -> None:
    """Look whether the data and models of runs are there, so that a grid does not find out run by run.

    The folders of the records and of runs that go on are made.

    Raises:
        BadInputError: A folder or file of GLUE, or a model's folder, is missing, or a folder cannot be made.
    """
    places = list(todo)
    for task, folder in dict.fromkeys((config.task, config.data_dir) for config in places):
        if task in glue.TASKS and folder is not None:
            glue.find(task, Path(folder))
    for model in dict.fromkeys(config.model for config in places):
        models.check_source(model)
    for key in ("results", "work"):
        folder = Path(getattr(options, key))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"The folder {key}={folder} cannot be made: {error.strerror}; name another.") from None


def is_done(config: TrainingConfig, known: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a run has a record that says how it ended; one that failed is to be done again."""
    entry = known.get(store.identity(as_dict(config)))
    return entry is not None and entry["status"] in ("completed", "diverged")


def do(
    study: str,
    config: TrainingConfig,
    *,
    results: Path,
    work: Path,
    observe: Observe = lambda record: None,
    shared: Shared | None = None,
) -> dict[str, Any]:
    """Do one run and append its record; a run that was interrupted is continued, one that fails is recorded as such.

    Args:
        study: Whose file the record goes to.
        config: What to run.
        results: The folder of the records.
        work: The folder of runs that are going on; this one's own is removed when its record is written.
        observe: Sees each step and epoch of a run in this process.
        shared: What to load from; by default what this process has loaded before.

    Returns:
        The record.

    Raises:
        InterruptedRunError: Ctrl-C; the checkpoint is written.
        KeyboardInterrupt: Ctrl-C in a run that cannot be continued, or in one of several processes.
    """
    from filelock import FileLock

    values = as_dict(config)
    identity = store.identity(values)
    folder = work / identity
    work.mkdir(parents=True, exist_ok=True)
    # Studies share runs: another command may be at this very one.
    with FileLock(work / f".{identity}.lock"):
        known = store.read(results)
        if is_done(config, known):
            return known[identity]
        try:
            _finish(config, folder, observe, shared or _SHARED)
            entry = store.record(study, values, read_run(folder))
        except training.InterruptedRunError:
            raise
        except Exception as error:  # whatever a run raises, the rest of the grid goes on
            entry = store.failure(study, values, error)
        store.append(results / f"{study}.jsonl", entry)
        shutil.rmtree(folder, ignore_errors=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return entry


def _finish(config: TrainingConfig, folder: Path, observe: Observe, shared: Shared) -> None:
    """Bring a run to its end, from wherever an earlier command left it."""
    if folder.exists() and not training.has_checkpoint(folder):
        if read_summary(folder).get("status") in ("completed", "diverged"):
            return  # stopped between its end and its record
        shutil.rmtree(folder)  # what a killed run left, without a checkpoint
    if (config.processes or 1) == 1:
        go_on(config, folder, observe, shared)
    else:
        launch.run(config, folder)


def go_on(config: TrainingConfig, folder: Path, observe: Observe, shared: Shared) -> None:
    """Do a run in this process, or its share of one, from the checkpoint if there is one.

    Raises:
        InterruptedRunError: Ctrl-C; the checkpoint is written.
    """
    if training.has_checkpoint(folder):
        training.resume(folder, observe=observe, load=shared.load)
        return
    task, model, tokenizer = shared.load(config)
    training.train(config, task, model, tokenizer, folder, observe=observe)
