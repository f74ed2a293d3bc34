"""The summary of a run: `summary.json`."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

from armijo_lab.results import run_folder
from armijo_lab.tasks import Split, TaskData
from armijo_lab.training.state import RunState

__all__ = ["diverged_at", "summarize", "write_summary"]


def diverged_at(run: RunState) -> int | None:
    """Return the step since which the loss is not finite, to the end; `None` if training did not diverge.

    A batch whose loss is not finite is no divergence where the line search skipped it: the weights are as before, and
    the evaluation shows it.
    """
    progress = run.progress
    since = progress.nonfinite_since
    if not math.isfinite(progress.epochs[-1]["loss"]):
        return since if since is not None else progress.step
    # The loss is finite on the held-out rows, but on no batch of the whole last epoch.
    return since if since is not None and progress.step - since + 1 >= run.steps_per_epoch else None


def write_summary(run: RunState, folder: Path, status: str, command: str | None) -> dict[str, Any]:
    """Write `summary.json` on the first rank, and return its content."""
    summary = summarize(run, status, command)
    if run.ranks.first:
        run_folder.write_json(folder / run_folder.SUMMARY, summary)
    return summary


def summarize(run: RunState, status: str, command: str | None) -> dict[str, Any]:
    """Return the content of `summary.json`."""
    progress, task, config = run.progress, run.task, run.config
    result: dict[str, Any] = {"best": None, "last": None, "per_class": progress.per_class, "majority": None}
    if progress.final is not None:
        result["final"] = progress.final
        if task.labels and task.final is not None:
            result["final_majority"] = _majority_share(task, task.final)
    if progress.best is not None:
        result |= {"best": progress.epochs[progress.best - 1], "last": progress.epochs[-1]}
    if task.labels:
        result["majority"] = _majority_share(task, task.evaluation)
    environment = run_folder.environment(run.device)
    return {
        "status": status,
        "armijo": environment["versions"].get("armijo"),
        "command": command,
        "config": {**dataclasses.asdict(config), "max_length": config.tokens},
        "model": run.model_facts,
        "task": {
            "name": task.name,
            "description": task.description,
            "labels": list(task.labels),
            "pairs": task.train.pairs is not None,
            "train_rows": len(task.train),
            "eval_rows": len(task.evaluation),
            "provenance": task.provenance,
            "metrics": list(task.metrics),
        },
        **environment,
        "seeds": [config.seed],
        "result": result,
        "forwards": progress.forwards,
        "backwards": progress.step,
        "trials": progress.trials,
        "ties": progress.ties,
        "steps": progress.step,
        "diverged_at": diverged_at(run) if status == "diverged" else None,
        "mean_log_loss": progress.log_loss_sum / progress.step if progress.step else None,
        "train_loss": progress.epochs[-1]["train_loss"] if progress.epochs else None,
        "seconds": dict(progress.seconds),
        "peak_memory": run_folder.peak_memory(run.device),
        "optimizer": {
            "name": run.method.name,
            "arguments": run.method.shown,
            "settings": run.method.settings,
            "components": run.stepper.components(),
            "merges": progress.merges,
            "failed_searches": progress.failed_searches,
        },
    }


def _majority_share(task: TaskData, split: Split) -> float:
    """Return the share of the most frequent class, in [0, 1]."""
    answers = task.answers(split)
    return Counter(answers).most_common(1)[0][1] / len(answers)
