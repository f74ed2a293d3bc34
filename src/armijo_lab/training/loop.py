"""The training loop: steps, epochs, evaluations, checkpoints, until the run ends or a signal stops it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from armijo_lab import methods
from armijo_lab.results.run_folder import NullLog, RunLog
from armijo_lab.results.tables import LOSS_FLOOR
from armijo_lab.tasks import metrics
from armijo_lab.tasks.notices import notices
from armijo_lab.training.checkpoints import remove_checkpoint, save_model, write_checkpoint
from armijo_lab.training.evaluation import comparable_score, evaluate
from armijo_lab.training.signals import InterruptedRunError, StopSignal
from armijo_lab.training.state import RunState
from armijo_lab.training.summary import diverged_at, write_summary

__all__ = ["Observe", "row_order", "run_to_end", "take_step"]

Observe = Callable[[dict[str, Any]], None]
"""Called with each record as it is written to `metrics.jsonl` (its `kind` is `step` or `epoch`), and before the first
with `{"kind": "start", "step", "total_steps", "model", "task", "train_rows", "eval_rows", "components",
"notices"}`, the last being sentences on the rows."""


def run_to_end(
    run: RunState, folder: Path, log: RunLog | NullLog, stop: StopSignal, observe: Observe, command: str | None
) -> dict[str, Any]:
    """Do all steps and epochs that are left, and write the models and the summary.

    Args:
        run: The run, new or restored from a checkpoint.
        folder: The run's folder.
        log: Where steps and epochs are written.
        stop: The signals to obey.
        observe: Sees every record as it is written.
        command: The command line, for the summary.

    Returns:
        The content of `summary.json`.

    Raises:
        InterruptedRunError: A signal stopped the run; the checkpoint is written.
        KeyboardInterrupt: A signal stopped a run that cannot be resumed.
    """
    config, progress = run.config, run.progress

    def checkpoint() -> None:
        with progress.clock("logging"), stop.writing():
            write_checkpoint(run, folder, command)

    observe(_start_record(run))
    if not config.paper_protocol:
        run.model.train()
    # A run that is killed before its first step can then be resumed too.
    if config.checkpoint_every is not None and progress.step == 0:
        checkpoint()
    order: list[int] = []
    # All ranks ask in the same places, because a rank that stops alone would leave the others waiting.
    stopping = run.ranks.any(stop.requested)
    while len(progress.epochs) < config.epochs:
        epoch = len(progress.epochs)
        done = progress.step - epoch * run.steps_per_epoch
        if done < run.steps_per_epoch and not stopping:
            if not order:
                order = row_order(run, epoch)
            record = take_step(run, order[done * config.rows_per_step : (done + 1) * config.rows_per_step])
            with progress.clock("logging"):
                log.step(record)
                observe({"kind": "step", **record})
            done += 1
            stopping = run.ranks.any(stop.requested)
        if done == run.steps_per_epoch and not stopping:
            with run.stepper.evaluating():
                record = close_epoch(run, folder, stop)
            if record is not None:
                log.epoch(record)
                observe({"kind": "epoch", **record})
                order = []
            stopping = run.ranks.any(stop.requested)
        due = config.checkpoint_every is not None and progress.step % config.checkpoint_every == 0
        if stopping and not run.method.resumable:
            raise KeyboardInterrupt
        if stopping or due:
            checkpoint()
            stopping = run.ranks.any(stop.requested)
        if stopping:
            with stop.writing():
                write_summary(run, folder, "interrupted", command)
            raise InterruptedRunError(folder, progress.step, run.total_steps)
    with stop.writing():
        with run.stepper.evaluating():
            save_model(run, folder / "last")
        status = "completed" if diverged_at(run) is None else "diverged"
        summary = write_summary(run, folder, status, command)
        if run.ranks.first:
            remove_checkpoint(folder)
    return summary


def _start_record(run: RunState) -> dict[str, Any]:
    return {
        "kind": "start",
        "step": run.progress.step,
        "total_steps": run.total_steps,
        "model": run.model_facts["name"],
        "task": run.task.name,
        "train_rows": len(run.task.train),
        "eval_rows": len(run.task.evaluation),
        "components": len(run.stepper.components()),
        "notices": notices(run.task, run.tokenizer, run.config.tokens) if run.progress.step == 0 else [],
    }


def row_order(run: RunState, epoch: int) -> list[int]:
    """Return the order of the training rows in an epoch (from 0): fixed in the paper's protocol, else shuffled."""
    if run.config.paper_protocol:
        return list(range(len(run.train_rows)))
    # Seed and epoch alone decide the order, so every optimizer sees the same batches.
    generator = torch.Generator().manual_seed(run.config.seed * 100_003 + epoch)
    return torch.randperm(len(run.train_rows), generator=generator).tolist()


def take_step(run: RunState, indices: Sequence[int]) -> dict[str, Any]:
    """Take one step on the training rows at `indices`, and return its record."""
    progress, size = run.progress, run.config.batch_size
    with progress.clock("training"):
        starts = range(0, len(indices), size)
        step = run.stepper.step(*(_micro_batch(run, indices[i : i + size], len(indices)) for i in starts))
    loss = run.ranks.mean(step.loss)
    epoch = progress.step // run.steps_per_epoch + 1
    progress.step += 1
    progress.forwards += step.forwards
    progress.trials += step.forwards - 1
    progress.ties += step.ties
    progress.log_loss_sum += loss if math.isnan(loss) else math.log(max(loss, LOSS_FLOOR))
    progress.epoch_loss_sum += loss
    if math.isfinite(loss):
        progress.nonfinite_since = None
    elif progress.nonfinite_since is None:
        progress.nonfinite_since = progress.step
    progress.failed_searches += any(component["status"] in methods.FAILURES for component in step.components)
    progress.merges += [[progress.step, kept, absorbed] for kept, absorbed in step.merges]
    return {
        "step": progress.step,
        "epoch": epoch,
        "loss": loss,
        "forwards": step.forwards,
        "total_forwards": progress.forwards,
        "lr": step.rate,
        "ties": step.ties,
        "components": step.components,
        "searches": step.searches,
        "merges": step.merges,
    }


def _micro_batch(run: RunState, indices: Sequence[int], step_rows: int) -> Callable[[], torch.Tensor]:
    """Return the function that computes a micro-batch's share of the mean loss over all `step_rows` rows of a step.

    With several ranks each computes a part of it, such that the mean over the ranks is that share.
    """
    rank_indices = run.ranks.share(indices)
    weight = len(rank_indices) * run.ranks.size / step_rows
    # A rank without a row runs one all the same, with weight 0.
    inputs, targets = run.train_rows.batch(rank_indices or indices[:1])
    return lambda: run.loss(inputs, targets) * weight


def close_epoch(run: RunState, folder: Path, stop: StopSignal) -> dict[str, Any] | None:
    """Evaluate after the last step of an epoch, save the model if it is the best one, and return the epoch's record.

    `None` if a signal interrupted the evaluation.
    """
    progress, task = run.progress, run.task
    epoch = len(progress.epochs) + 1
    final = None
    with progress.clock("evaluation"):
        result = evaluate(run, run.evaluation_rows, task.evaluation, stop)
        if result is None:
            return None
        if run.final_rows is not None and epoch == run.config.epochs:
            assert task.final is not None
            final = evaluate(run, run.final_rows, task.final, stop)
            if final is None:
                return None
    evaluation, predictions = result
    progress.final = final[0] if final is not None else None
    train_loss = progress.epoch_loss_sum / run.steps_per_epoch
    progress.epoch_loss_sum = 0.0
    progress.epochs.append({"epoch": epoch, **evaluation, "train_loss": train_loss})
    scores = [comparable_score(values[task.metrics[0]], values["loss"]) for values in progress.epochs]
    if scores.index(max(scores)) + 1 == epoch:
        progress.best = epoch
        if task.labels:
            targets: Any = task.answers(task.evaluation)
            classes: Any = predictions
            progress.per_class = metrics.per_class(task.labels, classes, targets)
        with progress.clock("logging"):
            save_model(run, folder / "best")
    return {
        "epoch": epoch,
        "step": progress.step,
        "train_loss": train_loss,
        "evaluation": evaluation,
        "seconds": dict(progress.seconds),
    }
