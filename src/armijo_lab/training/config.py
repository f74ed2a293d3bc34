"""The configuration of a run, the checks of its values, and the data that it names."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from armijo_lab import methods, models
from armijo_lab.errors import BadInputError
from armijo_lab.tasks import TaskData, beyond
from armijo_lab.training.devices import choose_device

__all__ = ["PRECISIONS", "TrainingConfig", "check_fit", "check_length", "load_task"]

PRECISIONS = ("fp32", "bf16", "fp64")


@dataclass(frozen=True)
class TrainingConfig:
    """Every setting of a run; each value is a JSON value.

    The defaults of the fields are part of the identity of runs (`studies.plan`), so a new field needs the default with
    which runs without it were done, and a change of a default is entered in `studies.plan.CHANGED_DEFAULTS`.

    Attributes:
        optimizer: A text for `methods.parse`.
        model: A folder or a name on the hub; `None` for the embedded weights.
        task: A task of GLUE; without `task` and `train`, the embedded set.
        data_dir: The folder of GLUE's files; `None` for the hub.
        train: A file with rows to train on.
        evaluation: A file with held-out rows; `None` holds out a fifth of `train`.
        text: The column of `train` with the text.
        text_pair: The column with a second text.
        label: The column with the label.
        limit: The most rows to train on, ≥ 1; it does not limit the evaluation.
        evaluation_limit: The most rows to evaluate on, ≥ 1.
        evaluate_all: Whether to evaluate on all held-out rows too, once, after the last epoch.
        epochs: ≥ 1.
        batch_size: Rows per step, ≥ 1, or with `accumulate` per micro-batch; the last batch of an epoch may be smaller.
        max_length: Tokens after which a text is cut, ≥ 3; `None` for 128, with `paper_protocol` for 256.
        seed: Seed of the new head, dropout and the order of the rows.
        precision: `fp32`; `bf16`: weights in float32, forward passes under bfloat16 autocast; `fp64`: everything in
            float64.
        device: `auto` (the first of cuda, mps, cpu that is available), or a device name of torch.
        paper_protocol: The protocol of arXiv 2403.18506: no dropout, rows in fixed order, a linear head on [CLS].
        lora: The rank of LoRA adapters, ≥ 1, trained with the head instead of the whole model; `None` for none.
        lora_alpha: The scale of the adapters times their rank, > 0; `None` for twice the rank.
        lora_targets: Names of the layers with an adapter, separated by commas; `None` for every linear layer of the
            encoder.
        accumulate: Micro-batches per step, ≥ 1: the loss of a step is the mean over all their rows; `None` for 1.
        processes: Ranks that share the rows of each step, ≥ 1, started by torchrun; `None` for 1. `batch_size` counts
            the rows of all ranks together.
        checkpoint_every: Steps between checkpoints, ≥ 1; with `None` a checkpoint is written only on interruption.
        save_models: Whether to write `best` and `last`.
    """

    optimizer: str = methods.DEFAULT
    model: str | None = None
    task: str | None = None
    data_dir: str | None = None
    train: str | None = None
    evaluation: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    limit: int | None = None
    evaluation_limit: int | None = None
    evaluate_all: bool = False
    epochs: int = 5
    batch_size: int = 32
    max_length: int | None = None
    seed: int = 0
    precision: str = "fp32"
    device: str = "auto"
    paper_protocol: bool = False
    lora: int | None = None
    lora_alpha: float | None = None
    lora_targets: str | None = None
    accumulate: int | None = None
    processes: int | None = None
    checkpoint_every: int | None = None
    save_models: bool = True

    def check(self) -> None:
        """Check every value that needs neither the data nor the model.

        Raises:
            BadInputError: A value is out of range, or two values contradict each other.
        """
        method = methods.parse(self.optimizer)
        if self.checkpoint_every is not None and not method.resumable:
            raise BadInputError(
                f"--checkpoint-every does not work with the optimizer {method.name}: its package keeps state that a "
                "checkpoint does not include. Leave the option out."
            )
        for option, value, low in (
            ("--epochs", self.epochs, 1),
            ("--batch-size", self.batch_size, 1),
            ("--lora", self.lora, 1),
            ("--accumulate", self.accumulate, 1),
            ("processes", self.processes, 1),
            ("--max-length", self.max_length, 3),
            ("--limit", self.limit, 1),
            ("--eval-limit", self.evaluation_limit, 1),
            ("--checkpoint-every", self.checkpoint_every, 1),
        ):
            if value is not None and value < low:
                raise BadInputError(f"{option} is {value}; it must be at least {low}.")
        if not 0 <= self.seed < 2**32:
            raise BadInputError(f"The seed is {self.seed}; it must lie between 0 and 4294967295.")
        if self.precision not in PRECISIONS:
            raise BadInputError(f"There is no precision {self.precision!r}; choose {' or '.join(PRECISIONS)}.")
        if (self.processes or 1) > 1 and not method.distributed:
            raise BadInputError(
                f"The optimizer {method.name} uses only the loss of its own rank's rows, so {self.processes} processes "
                "would diverge; run it in one process."
            )
        choose_device(self.device)
        self._check_lora()
        self._check_data()

    def _check_lora(self) -> None:
        for option, value in (("--lora-alpha", self.lora_alpha), ("--lora-targets", self.lora_targets)):
            if value is not None and self.lora is None:
                raise BadInputError(f"{option} describes LoRA adapters; set their rank with --lora, as in --lora 8.")
        if self.lora_alpha is not None and not (self.lora_alpha > 0 and math.isfinite(self.lora_alpha)):
            raise BadInputError(f"--lora-alpha is {self.lora_alpha:g}; it must be a number above 0.")
        if self.lora is not None and importlib.util.find_spec("peft") is None:
            raise BadInputError(
                "--lora needs peft, which is not installed; install it with: pip install 'armijo[peft]'."
            )

    def _check_data(self) -> None:
        if self.task is not None and self.train is not None:
            raise BadInputError("--task and --train both name the training data; give one of them.")
        if self.data_dir is not None and self.task is None:
            raise BadInputError(
                "--data-dir holds the files of a GLUE task; name the task with --task, as in --task sst2."
            )
        if self.train is None:
            columns = {
                "--eval": self.evaluation,
                "--text": self.text,
                "--text-pair": self.text_pair,
                "--label": self.label,
            }
            given = [option for option, value in columns.items() if value is not None]
            if given:
                raise BadInputError(f"{given[0]} describes a data file; name that file with --train FILE.")
        elif self.text is None or self.label is None:
            from armijo_lab.tasks import tables

            missing = "--text" if self.text is None else "--label"
            columns = tables.columns(Path(self.train))
            raise BadInputError(
                f"{self.train} has columns{f' ({columns})' if columns else ''}: name those to use with --text "
                f"and --label; {missing} is missing."
            )
        elif self.label in (self.text, self.text_pair):
            raise BadInputError(
                f"--label and {'--text' if self.label == self.text else '--text-pair'} both name the column "
                f"{self.label!r}; the label and the text must be in different columns."
            )

    @property
    def tokens(self) -> int:
        """The maximum length in tokens: `max_length`, or its default."""
        if self.max_length is not None:
            return self.max_length
        return 256 if self.paper_protocol else 128

    @property
    def rows_per_step(self) -> int:
        """The number of rows in a step; the last step of an epoch may have fewer."""
        return self.batch_size * (self.accumulate or 1)

    def adapt(self, model: nn.Module) -> None:
        """Add the LoRA adapters to a model in place; without `lora` do nothing.

        Raises:
            BadInputError: The model has no such layers.
        """
        if self.lora is None:
            return
        targets = None if self.lora_targets is None else [name.strip() for name in self.lora_targets.split(",")]
        alpha = 2.0 * self.lora if self.lora_alpha is None else self.lora_alpha
        models.adapt(model, self.lora, alpha, targets, self.seed)


def load_task(config: TrainingConfig) -> TaskData:
    """Load the data of a configuration, limited to its number of rows.

    Raises:
        BadInputError: The data cannot be read, or have no rows or only one label.
    """
    if config.train is not None:
        from armijo_lab.tasks import tables

        assert config.text is not None
        assert config.label is not None
        evaluation = None if config.evaluation is None else Path(config.evaluation)
        task = tables.load(
            Path(config.train), evaluation, text=config.text, text_pair=config.text_pair, label=config.label
        )
    elif config.task in beyond.TASKS and not config.save_models:
        # `armijo predict` cannot use models of these tasks, so none is saved.
        task = beyond.load(config.task)
    elif config.task is not None:
        from armijo_lab.tasks import glue

        task = glue.load(config.task, None if config.data_dir is None else Path(config.data_dir))
    else:
        from armijo_lab.tasks import embedded

        task = embedded.load()
    final = task.evaluation if config.evaluate_all else None
    task = dataclasses.replace(task.limited(config.limit, config.evaluation_limit), final=final)
    for side, split in (("train", task.train), ("evaluate", task.evaluation)):
        if not len(split):
            raise BadInputError(f"The task {task.name} has no rows to {side} on.")
    if len(set(task.answers(task.train))) < 2:
        raise BadInputError(
            f"All {len(task.train)} training rows of {task.name} have one label; use other rows or a larger --limit."
        )
    return task


def check_fit(config: TrainingConfig, model: nn.Module, tokenizer: Any) -> None:
    """Check that the maximum length and the optimizer fit the model, without training.

    Raises:
        BadInputError: One of them does not.
    """
    check_length(config, model, tokenizer)
    methods.parse(config.optimizer).build(model, 1)


def check_length(config: TrainingConfig, model: nn.Module, tokenizer: Any) -> None:
    """Check that the model reads as many tokens as the configuration allows.

    Raises:
        BadInputError: The model reads fewer.
    """
    limit = models.max_length(model, tokenizer)
    if tokenizer is not None and limit is not None and config.tokens > limit:
        raise BadInputError(
            f"The model reads at most {limit} tokens, but texts are cut at {config.tokens}; "
            f"use --max-length {limit} or less."
        )
