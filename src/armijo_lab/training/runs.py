"""Start and resume runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from armijo_lab import models, ranks
from armijo_lab.errors import BadInputError
from armijo_lab.names import counted
from armijo_lab.results import run_folder
from armijo_lab.tasks import TaskData
from armijo_lab.training.checkpoints import fingerprint, has_checkpoint, read_checkpoint, restore, seed_generators
from armijo_lab.training.config import TrainingConfig, load_task
from armijo_lab.training.devices import choose_device
from armijo_lab.training.loop import Observe, run_to_end
from armijo_lab.training.signals import StopSignal
from armijo_lab.training.state import RunState

__all__ = ["needs_report", "resume", "run", "train"]


def run(
    config: TrainingConfig, folder: Path, *, observe: Observe = lambda record: None, command: str | None = None
) -> dict[str, Any]:
    """Load the data and the model of a configuration, train, evaluate, and write the run's folder.

    Args:
        config: The run's configuration.
        folder: Where to write; it may exist, but must not hold a run.
        observe: Sees every record as it is written.
        command: The command line, for the summary.

    Returns:
        The content of `summary.json`.

    Raises:
        BadInputError: Something that the configuration names cannot be used; nothing is written.
        InterruptedRunError: Ctrl-C; the checkpoint is written.
    """
    run_folder.refuse_used(folder)
    config.check()
    task, model, tokenizer = _load(config)
    return train(config, task, model, tokenizer, folder, observe=observe, command=command)


def _load(config: TrainingConfig) -> tuple[TaskData, nn.Module, Any]:
    """Load task, model and tokenizer of a run.

    Raises:
        BadInputError: They cannot be read.
    """
    task = load_task(config)
    model, tokenizer = models.load(config.model, task, paper_protocol=config.paper_protocol, seed=config.seed)
    return task, model, tokenizer


def resume(
    folder: Path,
    *,
    observe: Observe = lambda record: None,
    command: str | None = None,
    load: Callable[[TrainingConfig], tuple[TaskData, nn.Module, Any]] = _load,
) -> tuple[TrainingConfig, dict[str, Any]]:
    """Continue an interrupted run from its checkpoint; the result equals that of an uninterrupted run.

    Args:
        folder: The run's folder.
        observe: Sees every record as it is written.
        command: The command line, for the summary; by default that of the checkpoint.
        load: Loads task, model and tokenizer as they were loaded before. A model read from a file and a copy of it
            differ in memory alignment, on which the last bits of matrix products depend.

    Returns:
        The run's configuration, and the content of `summary.json`.

    Raises:
        BadInputError: There is no run to continue in `folder`, or its data have changed.
        InterruptedRunError: Ctrl-C again.
    """
    checkpoint = read_checkpoint(folder)
    config = TrainingConfig(**checkpoint["config"])
    config.check()
    task, model, tokenizer = load(config)
    if fingerprint(task) != checkpoint["data"]:
        raise BadInputError(
            f"The data of the run in {folder} have changed since its checkpoint was written; a run cannot be continued "
            "on other rows. Start a new one."
        )
    summary = train(
        config,
        task,
        model,
        tokenizer,
        folder,
        observe=observe,
        command=command or checkpoint["command"],
        checkpoint=checkpoint,
    )
    return config, summary


def train(
    config: TrainingConfig,
    task: TaskData,
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    *,
    observe: Observe = lambda record: None,
    command: str | None = None,
    checkpoint: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune a loaded model on a loaded task, and write the run's folder.

    The generators of torch, NumPy and Python are seeded with `config.seed`, or set to the checkpoint's state.

    Args:
        config: The run's configuration.
        task: The data.
        model: As `models.load` returns it; it is trained, and with `config.lora` adapted, in place.
        tokenizer: The model's.
        folder: Where to write.
        observe: Sees every record as it is written.
        command: The command line, for the summary.
        checkpoint: The checkpoint to continue from, which `resume` reads.

    Returns:
        The content of `summary.json`.

    Raises:
        BadInputError: The folder holds a run, or model, method and configuration do not fit; nothing is written.
        InterruptedRunError: Ctrl-C; the checkpoint is written.
    """
    expected, actual = config.processes or 1, ranks.current_ranks().size
    if actual != expected:
        raise BadInputError(
            f"This run is for {counted(expected, 'rank')}, but was started with {actual}; start it with torchrun "
            f"--nproc-per-node {expected} -m armijo_lab finetune, or as a study with processes={expected}."
        )
    with ranks.process_group(choose_device(config.device)) as group:
        state = RunState(config, task, model, tokenizer, group)
        if checkpoint is None:
            # Each rank has its own seed: with equal dropout masks the ranks' rows would not be independent.
            seed_generators((config.seed + 1_000_003 * group.rank) % 2**32)
        else:
            restore(state, checkpoint)
        progress = state.progress
        run_folder.reset_peak_memory(state.device)
        with StopSignal(state.method.resumable, several_ranks=group.size > 1) as stop:
            if not group.first:
                return run_to_end(state, folder, run_folder.NullLog(), stop, lambda record: None, command)
            if checkpoint is None:
                log = run_folder.RunLog.create(folder)
            else:
                log = run_folder.RunLog.resume(folder, progress.step, len(progress.epochs))
            with log:
                return run_to_end(state, folder, log, stop, observe, command)


def needs_report(folder: Path) -> bool:
    """Whether the run in `folder` has ended but its model card, which is written last, is missing."""
    if has_checkpoint(folder) or not folder.is_dir() or (folder / "README.md").is_file():
        return False
    try:
        return run_folder.read_summary(folder).get("status") in ("completed", "diverged")
    except BadInputError:
        return False
