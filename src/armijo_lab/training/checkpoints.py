"""Checkpoints and models of a run: written complete or not at all, read without running code."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from armijo_lab import models
from armijo_lab.errors import BadInputError
from armijo_lab.results import run_folder
from armijo_lab.tasks import TaskData
from armijo_lab.training.config import TrainingConfig
from armijo_lab.training.progress import Progress
from armijo_lab.training.state import RunState

__all__ = [
    "CheckpointError",
    "fingerprint",
    "has_checkpoint",
    "read_checkpoint",
    "remove_checkpoint",
    "restore",
    "save_model",
    "seed_generators",
    "write_checkpoint",
]

_PATH = Path("checkpoint") / "state.pt"
_KEYS = {"config", "command", "data", "progress", "model", "optimizer", "scheduler", "ranks"}


class CheckpointError(Exception):
    """A checkpoint or a model could not be written; the message is one full sentence for the user."""


def has_checkpoint(folder: Path) -> bool:
    """Whether the run in `folder` can be resumed."""
    return (folder / _PATH).is_file()


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a run that has ended."""
    shutil.rmtree(folder / _PATH.parent, ignore_errors=True)


def write_checkpoint(run: RunState, folder: Path, command: str | None) -> None:
    """Write everything that the rest of the run depends on; the file holds the old checkpoint or the new one, complete.

    Every rank must call it; the first rank writes.

    Raises:
        CheckpointError: The file could not be written.
    """
    generators = run.ranks.gather(_generator_states(run.device))
    if not run.ranks.first:
        return
    state = {
        "config": dataclasses.asdict(run.config),
        "command": command,
        "data": fingerprint(run.task),
        "progress": dataclasses.asdict(run.progress),
        "model": run.model.state_dict(),
        **run.stepper.state_dict(),
        "ranks": generators,
    }
    path = folder / _PATH
    partial = path.with_name(".state.partial")
    try:
        path.parent.mkdir(exist_ok=True)
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        run_folder.sync(path.parent, files=False)
    except (OSError, RuntimeError) as error:  # torch's own writer turns a full disk into a RuntimeError
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        intact = "the one before it is intact: make room and continue"
        remedy = intact if path.is_file() else "there is none before it: make room and start again"
        raise CheckpointError(
            f"The checkpoint of step {run.progress.step} could not be written ({reason}); {remedy}."
        ) from error


def restore(run: RunState, checkpoint: dict[str, Any]) -> None:
    """Set model, optimizer, progress and generators to a checkpoint."""
    run.model.load_state_dict(checkpoint["model"])
    run.stepper.load_state_dict(checkpoint)
    run.progress = Progress(**checkpoint["progress"])
    _set_generators(checkpoint["ranks"][run.ranks.rank], run.device)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a run.

    Raises:
        BadInputError: There is none, or it cannot be read.
    """
    path = folder / _PATH
    remedy = "start the run again with another --output"
    if path.is_file():
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            TrainingConfig(**checkpoint["config"])
            Progress(**checkpoint["progress"])
            if not checkpoint.keys() >= _KEYS:
                raise KeyError(*_KEYS - checkpoint.keys())
        except Exception as error:
            raise BadInputError(
                f"The checkpoint {path} cannot be read: the file is damaged, or no run wrote it; {remedy}."
            ) from error
        return checkpoint
    if not folder.is_dir():
        raise BadInputError(f"There is no folder {folder} to resume.")
    try:
        status = run_folder.read_summary(folder).get("status")
    except (BadInputError, OSError) as error:
        raise BadInputError(
            f"The run in {folder} cannot be resumed: it has no checkpoint, and its {run_folder.SUMMARY} cannot be "
            f"read; {remedy}."
        ) from error
    if status in ("completed", "diverged"):
        raise BadInputError(f"The run in {folder} is complete; there is nothing to resume.")
    if status is not None or (folder / run_folder.METRICS).is_file():
        raise BadInputError(
            f"The run in {folder} ended without a checkpoint, so it cannot be resumed; {remedy}, and with "
            "--checkpoint-every so that the next one can."
        )
    raise BadInputError(f"There is no run in {folder} to resume.")


def save_model(run: RunState, folder: Path) -> None:
    """Write the model and the tokenizer into `folder`, complete or not at all.

    Raises:
        CheckpointError: They could not be written.
    """
    if not (run.config.save_models and run.ranks.first):
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        models.save(run.model, run.tokenizer, partial, run.task, run.config.tokens)
        run_folder.sync(partial)
    except Exception as error:  # safetensors, tokenizers and torch each have one of their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"The model could not be written to {folder} after step {run.progress.step} ({reason.rstrip('.')}); make "
            "room, and continue from the last checkpoint or else start again."
        ) from error
    # Between the two renames the old model still exists beside the new one, under its other name.
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    run_folder.sync(folder.parent, files=False)
    shutil.rmtree(old, ignore_errors=True)


def fingerprint(task: TaskData) -> str:
    """Return a hash of the rows and labels, by which a resumed run recognizes its data."""
    rows = [task.labels, *((split.texts, split.pairs, split.targets) for split in (task.train, task.evaluation))]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def seed_generators(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    import numpy

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def _generator_states(device: torch.device) -> dict[str, Any]:
    """Return the state of every generator that a model may draw from, in types that `weights_only` loads."""
    import numpy

    kind, keys, *rest = numpy.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.tensor(keys.astype("int64")), *(value for value in rest)),  # pyright: ignore
        "torch": torch.get_rng_state(),
        "device": _accelerator(device).get_rng_state() if device.type != "cpu" else None,
    }


def _set_generators(states: dict[str, Any], device: torch.device) -> None:
    import numpy

    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(states["torch"])
    if device.type != "cpu" and states["device"] is not None:
        _accelerator(device).set_rng_state(states["device"])


def _accelerator(device: torch.device) -> Any:
    return torch.cuda if device.type == "cuda" else torch.mps
