"""One run of a study, from its configuration to its record; it needs torch and transformers alone.

Runs in one process share tasks and models that were loaded before; each run gets a copy of the weights as they were
read. A run in a process that did others before equals one in a fresh process.
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
from armijo_lab.results.run_folder import read_run, read_summary
from armijo_lab.studies import launch
from armijo_lab.studies.plan import Options, as_dict
from armijo_lab.tasks import glue
from armijo_lab.training import Observe, TrainingConfig

__all__ = ["Cache", "check_sources", "do", "is_done", "train_or_resume"]


class Cache:
    """The tasks and models that runs in one process have loaded.

    Args:
        capacity: How many of each to keep, ≥ 1; the least recently used one is dropped first.
    """

    def __init__(self, capacity: int = 4) -> None:
        self._capacity = capacity
        self._tasks: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._models: OrderedDict[tuple[Any, ...], tuple[Any, Any]] = OrderedDict()

    def load(self, config: TrainingConfig) -> tuple[Any, Any, Any]:
        """Return task, model and tokenizer for a run, as `load_task` and `models.load` do."""
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


_CACHE = Cache()
"""The cache of this process."""


def check_sources(todo: Iterable[TrainingConfig], options: Options) -> None:
    """Check once that the data and models of all runs exist, so that a grid does not fail run by run.

    The folders of the records and of unfinished runs are made.

    Raises:
        BadInputError: A folder or file of GLUE, or a model's folder, is missing, or a folder cannot be made.
    """
    configs = list(todo)
    for task, folder in dict.fromkeys((config.task, config.data_dir) for config in configs):
        if task in glue.TASKS and folder is not None:
            glue.find(task, Path(folder))
    for model in dict.fromkeys(config.model for config in configs):
        models.check_source(model)
    for key in ("results", "work"):
        folder = Path(getattr(options, key))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(
                f"The folder {key}={folder} cannot be made: {error.strerror}; choose another."
            ) from None


def is_done(config: TrainingConfig, known: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a run has a record and did not fail; a failed run is done again."""
    entry = known.get(store.identity(as_dict(config)))
    return entry is not None and entry["status"] in ("completed", "diverged")


def do(
    study: str,
    config: TrainingConfig,
    *,
    results: Path,
    work: Path,
    observe: Observe = lambda record: None,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """Do one run and append its record; an interrupted run is continued, a failed one recorded as failed.

    Args:
        study: The study in whose file the record goes.
        config: What to run.
        results: The folder of the records.
        work: The folder of unfinished runs; this run's folder in it is removed when its record is written.
        observe: Sees each step and epoch of a run in this process.
        cache: Where to load from; by default the cache of this process.

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
    # Studies share runs: another command may be doing this one.
    with FileLock(work / f".{identity}.lock"):
        known = store.read(results)
        if is_done(config, known):
            return known[identity]
        try:
            _finish(config, folder, observe, cache or _CACHE)
            entry = store.record(study, values, read_run(folder))
        except training.InterruptedRunError:
            raise
        except Exception as error:  # whatever a run raises, the other runs continue
            entry = store.failure(study, values, error)
        store.append(results / f"{study}.jsonl", entry)
        shutil.rmtree(folder, ignore_errors=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return entry


def _finish(config: TrainingConfig, folder: Path, observe: Observe, cache: Cache) -> None:
    """Do a run, or what an earlier command left to do of it."""
    if folder.exists() and not training.has_checkpoint(folder):
        if read_summary(folder).get("status") in ("completed", "diverged"):
            return  # the earlier command was stopped before it wrote the record
        shutil.rmtree(folder)  # the rest of a killed run without a checkpoint
    if (config.processes or 1) == 1:
        train_or_resume(config, folder, observe, cache)
    else:
        launch.run(config, folder)


def train_or_resume(config: TrainingConfig, folder: Path, observe: Observe, cache: Cache) -> None:
    """Do a run, or this rank's share of it, in this process, from the checkpoint if there is one.

    Raises:
        InterruptedRunError: Ctrl-C; the checkpoint is written.
    """
    if training.has_checkpoint(folder):
        training.resume(folder, observe=observe, load=cache.load)
        return
    task, model, tokenizer = cache.load(config)
    training.train(config, task, model, tokenizer, folder, observe=observe)
