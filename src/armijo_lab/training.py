"""The training loop: what `armijo finetune` does, without its terminal.

torch and transformers are all that is needed. A run is decided by its `TrainingConfig`: on one machine, with one
number of threads, equal configurations give equal weights to the last bit, and so does a run that was interrupted and
resumed. (Not on a GPU: some of its kernels add in an order that differs from call to call.)

Example:
    config = TrainingConfig(task="sst2", data_dir="glue", limit=500)
    summary = run(config, Path("runs/first"))
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import logging
import math
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from armijo_lab import methods, models, ranks
from armijo_lab.errors import BadInputError
from armijo_lab.names import counted
from armijo_lab.results import records
from armijo_lab.results.tables import LOSS_FLOOR
from armijo_lab.tasks import Split, TaskData, beyond, metrics

__all__ = [
    "CheckpointError",
    "InterruptedRunError",
    "Observe",
    "TrainingConfig",
    "check_fit",
    "has_checkpoint",
    "lacks_its_report",
    "load_task",
    "resume",
    "run",
    "train",
]

logger = logging.getLogger("armijo")

Observe = Callable[[dict[str, Any]], None]
"""Called with each record as it is written to `metrics.jsonl` (its `kind` is `step` or `epoch`), and before the first
with `{"kind": "start", "step", "total_steps", "model", "task", "train_rows", "eval_rows", "components"}`."""

PRECISIONS = ("fp32", "bf16", "fp64")
EVALUATION_BATCH = 64
CLOCKS = ("training", "evaluation", "logging")
_CHECKPOINT = Path("checkpoint") / "state.pt"
_CHECKPOINTED = {"config", "command", "data", "progress", "model", "optimizer", "scheduler", "ranks"}


class InterruptedRunError(Exception):
    """Ctrl-C ended the run after a whole step, and its checkpoint is written.

    Attributes:
        folder: The run's folder.
        step: The steps done.
        total_steps: The steps of the whole run.
    """

    def __init__(self, folder: Path, step: int, total_steps: int) -> None:
        super().__init__(f"The run in {folder} was interrupted after {step} of {total_steps} steps.")
        self.folder = folder
        self.step = step
        self.total_steps = total_steps


class CheckpointError(Exception):
    """A checkpoint could not be written; the message is one full sentence for the user."""


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a run; each value is a JSON value.

    Attributes:
        optimizer: What `methods.parse` reads.
        model: A folder or a name on the hub; `None` for the embedded weights.
        task: A task of GLUE; with neither it nor `train`, the embedded set.
        data_dir: The folder of GLUE's files; `None` for the hub.
        train: A file with rows to train on.
        evaluation: A file with held-out rows; `None` holds out a fifth of `train`.
        text: The column of `train` with the text.
        text_pair: The column with a second text.
        label: The column with the label.
        limit: The most rows to train on, ≥ 1; the evaluation is not cut.
        evaluation_limit: The most rows to evaluate on, ≥ 1.
        evaluate_all: Whether to evaluate on all held-out rows too, once, after the last epoch.
        epochs: ≥ 1.
        batch_size: Rows a step, ≥ 1, or with `accumulate` a micro-batch; the last one of an epoch may be smaller.
        max_length: Tokens after which a text is cut, ≥ 3; `None` for 128, with `paper_protocol` for 256.
        seed: Of the new head, dropout and the order of the rows.
        precision: `fp32`; `bf16`: weights in float32, forward passes under bfloat16 autocast; `fp64`: everything in
            float64.
        device: `auto` (the first of cuda, mps, cpu that is there), or a name that torch knows.
        paper_protocol: The protocol of arXiv 2403.18506: no dropout, rows in their order, a linear head on [CLS].
        lora: The rank of LoRA adapters, ≥ 1, trained with the head in place of the whole model; `None` for none.
        lora_alpha: Their scale times their rank, > 0; `None` for twice the rank.
        lora_targets: Names of the layers that get one, between commas; `None` for every linear layer of the encoder.
        accumulate: Micro-batches a step, ≥ 1: the loss of a step is the mean over the rows of all; `None` for 1.
        processes: Ranks that share the rows of each step, ≥ 1, started by torchrun; `None` for 1. `batch_size` counts
            the rows of all.
        checkpoint_every: Steps between checkpoints, ≥ 1; `None` for none but at an interruption.
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
        """Look at every value that can be judged without reading data or a model.

        Raises:
            BadInputError: A value is out of its range, or two contradict each other.
        """
        method = methods.parse(self.optimizer)
        if self.checkpoint_every is not None and not method.resumable:
            raise BadInputError(
                f"--checkpoint-every cannot be kept with the optimizer {method.name}: its package keeps what it knows "
                "where no checkpoint reaches. Leave it out."
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
                f"The optimizer {method.name} decides by the loss of its own rows, so that {self.processes} processes "
                "would part; run it in one."
            )
        _device(self.device)
        self._check_lora()
        self._check_data()

    def _check_lora(self) -> None:
        for option, value in (("--lora-alpha", self.lora_alpha), ("--lora-targets", self.lora_targets)):
            if value is not None and self.lora is None:
                raise BadInputError(f"{option} describes LoRA adapters; say their rank with --lora, as in --lora 8.")
        if self.lora_alpha is not None and not (self.lora_alpha > 0 and math.isfinite(self.lora_alpha)):
            raise BadInputError(f"--lora-alpha is {self.lora_alpha:g}; it must be a number above 0.")
        if self.lora is not None and importlib.util.find_spec("peft") is None:
            raise BadInputError(
                "--lora needs peft, which is not installed; install it with: pip install 'armijo[peft]'."
            )

    def _check_data(self) -> None:
        if self.task is not None and self.train is not None:
            raise BadInputError("--task and --train both name what to train on; give one of them.")
        if self.data_dir is not None and self.task is None:
            raise BadInputError(
                "--data-dir holds the files of a GLUE task; say which one with --task, as in --task sst2."
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
                raise BadInputError(f"{given[0]} describes a file of your own; name that file with --train FILE.")
        elif self.text is None or self.label is None:
            from armijo_lab.tasks import tables

            missing = "--text" if self.text is None else "--label"
            columns = tables.columns(Path(self.train))
            raise BadInputError(
                f"{self.train} has columns{f' ({columns})' if columns else ''}: name those to use with --text and "
                f"--label; {missing} is missing."
            )
        elif self.label in (self.text, self.text_pair):
            raise BadInputError(
                f"--label and {'--text' if self.label == self.text else '--text-pair'} both name the column "
                f"{self.label!r}; a label is to be predicted from a text in another column."
            )

    @property
    def tokens(self) -> int:
        """`max_length`, with its default filled in."""
        if self.max_length is not None:
            return self.max_length
        return 256 if self.paper_protocol else 128

    @property
    def rows_a_step(self) -> int:
        """The rows whose mean loss a step is taken on, where an epoch has so many left."""
        return self.batch_size * (self.accumulate or 1)

    def adapt(self, model: nn.Module) -> None:
        """Give a model the LoRA adapters that are asked for, in place; nothing where none are.

        Raises:
            BadInputError: It has no such layers.
        """
        if self.lora is None:
            return
        targets = None if self.lora_targets is None else [name.strip() for name in self.lora_targets.split(",")]
        alpha = 2.0 * self.lora if self.lora_alpha is None else self.lora_alpha
        models.adapt(model, self.lora, alpha, targets, self.seed)


def load_task(config: TrainingConfig) -> TaskData:
    """The data that a configuration names, cut as it says.

    Raises:
        BadInputError: They cannot be read, or cannot be trained on.
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
        # Nothing comes of these that `armijo predict` could use.
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
            f"All {len(task.train)} rows of {task.name} to train on have one label; give others, or a larger --limit."
        )
    return task


def check_fit(config: TrainingConfig, model: nn.Module, tokenizer: Any) -> None:
    """Look whether a model takes what a configuration wants of it, without training: its length and its optimizer.

    Raises:
        BadInputError: It does not.
    """
    _check_length(config, model, tokenizer)
    methods.parse(config.optimizer).build(model, 1)


def _check_length(config: TrainingConfig, model: nn.Module, tokenizer: Any) -> None:
    limit = models.max_length(model, tokenizer)
    if tokenizer is not None and limit is not None and config.tokens > limit:
        raise BadInputError(
            f"The model reads at most {limit} tokens, and texts are to be cut at {config.tokens}; "
            f"give --max-length {limit} or less."
        )


def run(
    config: TrainingConfig, folder: Path, *, observe: Observe = lambda record: None, command: str | None = None
) -> dict[str, Any]:
    """Do all that a configuration says: load, train, evaluate, write.

    Args:
        config: What to do.
        folder: Where to write; it may exist, but must not hold a run.
        observe: Sees every record as it is written.
        command: The command line, for the record.

    Returns:
        What `summary.json` holds.

    Raises:
        BadInputError: Something that the configuration names cannot be used; nothing is written.
        InterruptedRunError: Ctrl-C; the checkpoint is written.
    """
    records.refuse_used(folder)
    config.check()
    task, model, tokenizer = _load(config)
    return train(config, task, model, tokenizer, folder, observe=observe, command=command)


def _load(config: TrainingConfig) -> tuple[TaskData, nn.Module, Any]:
    """Task, model and tokenizer of a run.

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
    """Continue an interrupted run from its checkpoint to the end, as if nothing had happened.

    Args:
        folder: The run's.
        observe: Sees every record as it is written.
        command: The command line, for the record; by default that of the checkpoint.
        load: How the run had its task, model and tokenizer. A copy of a model is another one to the last bit, because
            weights as they lie in a file are aligned otherwise in memory, and matrix products hang on that.

    Returns:
        The run's configuration, and what `summary.json` holds.

    Raises:
        BadInputError: There is no run to continue in `folder`, or its data are not what they were.
        InterruptedRunError: Ctrl-C again.
    """
    checkpoint = _read_checkpoint(folder)
    config = TrainingConfig(**checkpoint["config"])
    config.check()
    task, model, tokenizer = load(config)
    if _fingerprint(task) != checkpoint["data"]:
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


def has_checkpoint(folder: Path) -> bool:
    """Whether a run in `folder` can be continued."""
    return (folder / _CHECKPOINT).is_file()


def lacks_its_report(folder: Path) -> bool:
    """Whether a run came to its end in `folder`, and was stopped before its card, the last thing written, was made."""
    if has_checkpoint(folder) or not folder.is_dir() or (folder / "README.md").is_file():
        return False
    try:
        return records.read_summary(folder).get("status") in ("completed", "diverged")
    except BadInputError:
        return False


@dataclass
class _Progress:
    """What a run knows of itself: everything in it is a JSON value and lies in the checkpoint."""

    step: int = 0
    forwards: int = 0
    log_loss_sum: float = 0.0
    epoch_loss_sum: float = 0.0
    failed_searches: int = 0
    trials: int = 0
    ties: int = 0
    merges: list[list[Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None
    final: dict[str, float] | None = None
    nonfinite_since: int | None = None
    """The first of the last steps, up to now, whose losses were all not finite."""
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLOCKS, 0.0))

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began


class _Rows:
    """Rows as tensors, handed out as batches on the device: tokenised and padded, or as the task encodes them."""

    def __init__(self, task: TaskData, split: Split, tokenizer: Any, tokens: int, device: torch.device) -> None:
        self._device = device
        if task.encode is not None:
            self._whole, self._targets = task.encode(split)
            self._lengths = [0] * len(split)
            return
        from transformers import DataCollatorWithPadding

        self._whole = None
        pairs = None if split.pairs is None else list(split.pairs)
        encoded = tokenizer(list(split.texts), pairs, truncation=True, max_length=tokens)
        self._rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
        self._lengths = [len(row["input_ids"]) for row in self._rows]
        self._targets = torch.tensor(split.targets, dtype=torch.long if task.labels else torch.float32)
        self._pad = DataCollatorWithPadding(tokenizer)

    def __len__(self) -> int:
        return len(self._lengths)

    def batch(self, places: Sequence[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The inputs, for texts each of shape (rows, longest of them), and the targets."""
        chosen = list(places)
        if self._whole is not None:
            inputs = {key: tensor[chosen] for key, tensor in self._whole.items()}
        else:
            inputs = self._pad([self._rows[place] for place in chosen])
        targets = self._targets[chosen].to(self._device)
        return {key: tensor.to(self._device) for key, tensor in inputs.items()}, targets

    def by_length(self) -> list[int]:
        """The places in the order of their rows' lengths, which wastes no padding."""
        return sorted(range(len(self)), key=lambda place: self._lengths[place])


class _Training:
    """One run, from its first or its resumed step to its last."""

    def __init__(
        self,
        config: TrainingConfig,
        task: TaskData,
        model: nn.Module,
        tokenizer: Any,
        checkpoint: dict[str, Any] | None,
        among: ranks.Ranks = ranks.ALONE,
    ) -> None:
        _check_length(config, model, tokenizer)
        self.config = config
        self.ranks = among
        self.task = task
        self.tokenizer = tokenizer
        self.device = among.device(_device(config.device))
        self.described = models.describe(config.model, model)
        config.adapt(model)
        if config.lora is not None:
            self.described["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.model = model.to(self.device, torch.float64 if config.precision == "fp64" else torch.float32)
        self.method = methods.parse(config.optimizer)
        self.rows = _Rows(task, task.train, tokenizer, config.tokens, self.device)
        self.held_out = _Rows(task, task.evaluation, tokenizer, config.tokens, self.device)
        self.final = None
        if task.final is not None:
            self.final = _Rows(task, task.final, tokenizer, config.tokens, self.device)
        self.steps_per_epoch = math.ceil(len(self.rows) / config.rows_a_step)
        self.total_steps = config.epochs * self.steps_per_epoch
        self._try_a_forward()
        self.called = among.wrap(self.model, self.device, unused=among.size > 1 and self._leaves_some_out())
        self.stepper = self.method.build(self.model, self.total_steps)
        self.progress = _Progress()
        if checkpoint is None:
            # Ranks that drew the same masks for different rows would be one dropout, and not several.
            _seed((config.seed + 1_000_003 * among.rank) % 2**32)
        else:
            self._restore(checkpoint)

    @torch.no_grad()
    def _try_a_forward(self) -> None:
        """The longest row of each side, so that a model that cannot take them is refused before anything is written."""
        was_training = self.model.training
        self.model.eval()
        try:
            for rows in (self.rows, self.held_out):
                inputs, targets = rows.batch([rows.by_length()[-1]])
                self._criterion(self._logits(self.model, inputs), targets, "mean")
        except Exception as error:
            said = " ".join((str(error).strip() or type(error).__name__).split())[:200].rstrip(".")
            raise BadInputError(
                f"The model cannot take these texts ({type(error).__name__}: {said}); try a smaller --max-length, or "
                "another --model."
            ) from error
        finally:
            self.model.train(was_training)

    def _leaves_some_out(self) -> bool:
        """Whether a backward pass leaves trained parameters without a gradient, as it does an unused pooler's."""
        was_training = self.model.training
        self.model.eval()
        inputs, targets = self.rows.batch([0])
        self._criterion(self._logits(self.model, inputs), targets, "mean").backward()
        found = any(parameter.requires_grad and parameter.grad is None for parameter in self.model.parameters())
        self.model.zero_grad(set_to_none=True)
        self.model.train(was_training)
        return found

    # ---------------------------------------------------------------------------------------------------- the steps

    def loss(self, inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        return self._criterion(self._logits(self.called, inputs), targets, "mean")

    def _logits(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.config.precision == "fp64":
            inputs = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in inputs.items()}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = model(**inputs).logits
        return logits if self.config.precision == "fp64" else logits.float()

    def _criterion(self, logits: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        if self.task.labels:
            # One class a row, or one a place of it.
            return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)
        return functional.mse_loss(logits.squeeze(-1), targets.to(logits.dtype), reduction=reduction)

    def order(self, epoch: int) -> list[int]:
        """The rows' places in the order of an epoch (from 0): as they are in the paper's protocol, else shuffled."""
        if self.config.paper_protocol:
            return list(range(len(self.rows)))
        # Decided by the seed and the epoch alone, so that every optimizer sees the same batches.
        generator = torch.Generator().manual_seed(self.config.seed * 100_003 + epoch)
        return torch.randperm(len(self.rows), generator=generator).tolist()

    def step(self, places: Sequence[int]) -> dict[str, Any]:
        """Take one step; its record."""
        progress = self.progress
        with progress.clock("training"):
            size = self.config.batch_size
            taken = self.stepper.step(
                *(self._part(places[first : first + size], len(places)) for first in range(0, len(places), size))
            )
        loss = self.ranks.mean(taken.loss)
        epoch = progress.step // self.steps_per_epoch + 1
        progress.step += 1
        progress.forwards += taken.forwards
        progress.trials += taken.forwards - 1
        progress.ties += taken.ties
        progress.log_loss_sum += loss if math.isnan(loss) else math.log(max(loss, LOSS_FLOOR))
        progress.epoch_loss_sum += loss
        if math.isfinite(loss):
            progress.nonfinite_since = None
        elif progress.nonfinite_since is None:
            progress.nonfinite_since = progress.step
        progress.failed_searches += any(component["status"] in methods.FAILURES for component in taken.components)
        progress.merges += [[progress.step, kept, absorbed] for kept, absorbed in taken.merges]
        return {
            "step": progress.step,
            "epoch": epoch,
            "loss": loss,
            "forwards": taken.forwards,
            "total_forwards": progress.forwards,
            "lr": taken.rate,
            "ties": taken.ties,
            **({} if taken.moved_loss is None else {"moved_loss": taken.moved_loss}),
            "components": taken.components,
            "merges": taken.merges,
        }

    def _part(self, places: Sequence[int], rows: int) -> Callable[[], torch.Tensor]:
        """What computes the share that some rows have in the mean loss over all rows of a step.

        Of several ranks each takes its part of the rows, such that the mean over the ranks is that share.
        """
        own = self.ranks.share(places)
        share = len(own) * self.ranks.size / rows
        # A rank that is left without a row runs one all the same, and counts it zero times.
        inputs, targets = self.rows.batch(own or places[:1])
        return lambda: self.loss(inputs, targets) * share

    # ------------------------------------------------------------------------------------------------- the evaluation

    @torch.no_grad()
    def evaluate(self, rows: _Rows, split: Split, stop: _Stop) -> tuple[dict[str, float], list[int | float]] | None:
        """The metrics and the loss on rows, and the predictions; `None` if it was interrupted."""
        was_training = self.model.training
        self.model.eval()
        self.ranks.agree(self.model)
        places = self.ranks.share(rows.by_length())
        found: list[torch.Tensor] = []
        total = torch.zeros((), device=self.device)
        for first in range(0, len(places), EVALUATION_BATCH):
            if stop.requested:
                break
            inputs, targets = rows.batch(places[first : first + EVALUATION_BATCH])
            logits = self._logits(self.model, inputs)
            total += self._criterion(logits, targets, "sum")
            found.append(logits.argmax(-1) if self.task.labels else logits.squeeze(-1))
        self.model.train(was_training)
        judged = self.ranks.gather((places, [part.cpu() for part in found], total.item(), stop.requested))
        if any(stopped for *_, stopped in judged):
            return None
        by_place = torch.cat([part for _, parts, *_ in judged for part in parts])
        where = torch.tensor([place for places, *_ in judged for place in places])
        predictions: Any = torch.empty_like(by_place).index_copy_(0, where, by_place).flatten().tolist()
        values = metrics.compute(self.task.metrics, predictions, self.task.answers(split))
        return {**values, "loss": sum(part for _, _, part, _ in judged) / len(predictions)}, predictions

    def close_epoch(self, folder: Path, stop: _Stop) -> dict[str, Any] | None:
        """Evaluate after an epoch's last step and keep the best model; the epoch's record, `None` if interrupted."""
        with self.stepper.evaluating():
            return self._judge(folder, stop)

    def _judge(self, folder: Path, stop: _Stop) -> dict[str, Any] | None:
        progress = self.progress
        final = None
        with progress.clock("evaluation"):
            judged = self.evaluate(self.held_out, self.task.evaluation, stop)
            if judged is not None and self.final is not None and len(progress.epochs) + 1 == self.config.epochs:
                assert self.task.final is not None
                final = self.evaluate(self.final, self.task.final, stop)
                if final is None:
                    return None
        if judged is None:
            return None
        evaluation, predictions = judged
        progress.final = final[0] if final is not None else None
        train_loss = progress.epoch_loss_sum / self.steps_per_epoch
        progress.epoch_loss_sum = 0.0
        epoch = len(progress.epochs) + 1
        progress.epochs.append({"epoch": epoch, **evaluation, "train_loss": train_loss})
        scores = [_comparable(result[self.task.metrics[0]], result["loss"]) for result in progress.epochs]
        if scores.index(max(scores)) + 1 == epoch:
            progress.best = epoch
            if self.task.labels:
                targets: Any = self.task.answers(self.task.evaluation)
                chosen: Any = predictions
                progress.per_class = metrics.per_class(self.task.labels, chosen, targets)
            with progress.clock("logging"):
                self.save_model(folder / "best")
        return {
            "epoch": epoch,
            "step": progress.step,
            "train_loss": train_loss,
            "evaluation": evaluation,
            "seconds": dict(progress.seconds),
        }

    def save_model(self, folder: Path) -> None:
        """Write the model and the tokenizer into `folder`, whole or not at all."""
        if not (self.config.save_models and self.ranks.first):
            return
        aside = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        models.save(self.model, self.tokenizer, aside, self.task)
        records.sync(aside)
        # Between the two renames the old model still lies beside the new one, under its other name.
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        records.sync(folder.parent, files=False)
        shutil.rmtree(old, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------ the checkpoint

    def write_checkpoint(self, folder: Path, command: str | None) -> None:
        """Write all that the rest of the run hangs on; the file holds the old checkpoint or the new one, whole.

        Every rank must call it, and the first one writes.
        """
        generators = self.ranks.gather(_generators(self.device))
        if not self.ranks.first:
            return
        state = {
            "config": dataclasses.asdict(self.config),
            "command": command,
            "data": _fingerprint(self.task),
            "progress": dataclasses.asdict(self.progress),
            "model": self.model.state_dict(),
            **self.stepper.state_dict(),
            "ranks": generators,
        }
        path = folder / _CHECKPOINT
        aside = path.with_name(".state.partial")
        try:
            path.parent.mkdir(exist_ok=True)
            with aside.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            records.sync(path.parent, files=False)
        except (OSError, RuntimeError) as error:  # torch's own writer turns a full disk into a RuntimeError
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            before = "the one before it is intact: make room and continue"
            kept = before if path.is_file() else "there is none before it: make room and start again"
            raise CheckpointError(
                f"The checkpoint of step {self.progress.step} could not be written ({reason}); {kept}."
            ) from error

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_state_dict(checkpoint["model"])
        self.stepper.load_state_dict(checkpoint)
        self.progress = _Progress(**checkpoint["progress"])
        _set_generators(checkpoint["ranks"][self.ranks.rank], self.device)

    # --------------------------------------------------------------------------------------------------- the summary

    def diverged_at(self) -> int | None:
        """The step since which the loss is not finite, to the end; `None` if training did not diverge.

        A batch whose loss is not finite is no divergence where the line search skipped it: the weights are as before,
        and the evaluation shows it.
        """
        progress = self.progress
        since = progress.nonfinite_since
        if not math.isfinite(progress.epochs[-1]["loss"]):
            return since if since is not None else progress.step
        # Finite on the held-out rows, and on no batch of the whole last epoch.
        return since if since is not None and progress.step - since + 1 >= self.steps_per_epoch else None

    def write_summary(self, folder: Path, status: str, command: str | None) -> dict[str, Any]:
        """Write `summary.json`; what it holds."""
        summary = self.summary(status, command)
        if self.ranks.first:
            records.write_json(folder / records.SUMMARY, summary)
        return summary

    def summary(self, status: str, command: str | None) -> dict[str, Any]:
        """What `summary.json` holds."""
        progress, task = self.progress, self.task
        result: dict[str, Any] = {"best": None, "last": None, "per_class": progress.per_class, "majority": None}
        if progress.final is not None:
            result["final"] = progress.final
            if task.labels and task.final is not None:
                answers = task.answers(task.final)
                result["final_majority"] = Counter(answers).most_common(1)[0][1] / len(answers)
        if progress.best is not None:
            result |= {"best": progress.epochs[progress.best - 1], "last": progress.epochs[-1]}
        if task.labels:
            answers = task.answers(task.evaluation)
            result["majority"] = Counter(answers).most_common(1)[0][1] / len(answers)
        surroundings = records.environment(self.device)
        return {
            "status": status,
            "armijo": surroundings["versions"].get("armijo"),
            "command": command,
            "config": {**dataclasses.asdict(self.config), "max_length": self.config.tokens},
            "model": self.described,
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
            **surroundings,
            "seeds": [self.config.seed],
            "result": result,
            "forwards": progress.forwards,
            "backwards": progress.step,
            "trials": progress.trials,
            "ties": progress.ties,
            "steps": progress.step,
            "diverged_at": self.diverged_at() if status == "diverged" else None,
            "mean_log_loss": progress.log_loss_sum / progress.step if progress.step else None,
            "train_loss": progress.epochs[-1]["train_loss"] if progress.epochs else None,
            "seconds": dict(progress.seconds),
            "peak_memory": records.peak_memory(self.device),
            "optimizer": {
                "name": self.method.name,
                "arguments": self.method.shown,
                "settings": self.method.settings,
                "components": self.stepper.components(),
                "merges": progress.merges,
                "failed_searches": progress.failed_searches,
            },
        }


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
    """Fine-tune a model that is loaded on a task that is read, and write the run's folder.

    torch's, NumPy's and Python's generators are seeded with `config.seed` (or set back to the checkpoint's state).

    Args:
        config: The run's configuration.
        task: The data.
        model: As `models.load` returns it; it is trained, and with `config.lora` adapted, in place.
        tokenizer: The model's.
        folder: Where to write.
        observe: Sees every record as it is written.
        command: The command line, for the record.
        checkpoint: Where to go on; `resume` reads it.

    Returns:
        What `summary.json` holds.

    Raises:
        BadInputError: The folder holds a run, or model, method and configuration do not fit; nothing is written.
        InterruptedRunError: Ctrl-C; the checkpoint is written.
    """
    wanted, there = config.processes or 1, ranks.started().size
    if there != wanted:
        raise BadInputError(
            f"This run is for {counted(wanted, 'rank')}, and has {there}; start it with torchrun --nproc-per-node "
            f"{wanted} -m armijo_lab finetune, or as a study with processes={wanted}."
        )
    with ranks.joined(_device(config.device)) as among:
        training = _Training(config, task, model, tokenizer, checkpoint, among)
        progress = training.progress
        records.reset_peak_memory(training.device)
        with _Stop(training.method.resumable, several=among.size > 1) as stop:
            if not among.first:
                return _run_to_its_end(training, folder, records.NoLog(), stop, lambda record: None, command)
            if checkpoint is None:
                log = records.RunLog.create(folder)
            else:
                log = records.RunLog.resume(folder, progress.step, len(progress.epochs))
            with log:
                return _run_to_its_end(training, folder, log, stop, observe, command)


def _run_to_its_end(
    training: _Training,
    folder: Path,
    log: records.RunLog | records.NoLog,
    stop: _Stop,
    observe: Observe,
    command: str | None,
) -> dict[str, Any]:
    config, task, progress = training.config, training.task, training.progress

    def checkpoint() -> None:
        with progress.clock("logging"), stop.waiting():
            training.write_checkpoint(folder, command)

    observe(
        {
            "kind": "start",
            "step": progress.step,
            "total_steps": training.total_steps,
            "model": training.described["name"],
            "task": task.name,
            "train_rows": len(task.train),
            "eval_rows": len(task.evaluation),
            "components": len(training.stepper.components()),
        }
    )
    if not config.paper_protocol:
        training.model.train()
    # So that a run that is killed before its first step can be resumed like any other.
    if config.checkpoint_every is not None and progress.step == 0:
        checkpoint()
    order: list[int] = []
    # Looked at in the same places by all ranks, since one that stops alone would leave the others waiting.
    stopping = training.ranks.any(stop.requested)
    while len(progress.epochs) < config.epochs:
        epoch = len(progress.epochs)
        done = progress.step - epoch * training.steps_per_epoch
        if done < training.steps_per_epoch and not stopping:
            if not order:
                order = training.order(epoch)
            places = order[done * config.rows_a_step : (done + 1) * config.rows_a_step]
            record = training.step(places)
            with progress.clock("logging"):
                log.step(record)
                observe({"kind": "step", **record})
            done += 1
            stopping = training.ranks.any(stop.requested)
        if done == training.steps_per_epoch and not stopping:
            record = training.close_epoch(folder, stop)
            if record is not None:
                log.epoch(record)
                observe({"kind": "epoch", **record})
                order = []
            stopping = training.ranks.any(stop.requested)
        due = config.checkpoint_every is not None and progress.step % config.checkpoint_every == 0
        if stopping and not training.method.resumable:
            raise KeyboardInterrupt
        if stopping or due:
            checkpoint()
            stopping = training.ranks.any(stop.requested)
        if stopping:
            with stop.waiting():
                training.write_summary(folder, "interrupted", command)
            raise InterruptedRunError(folder, progress.step, training.total_steps)
    with stop.waiting():
        with training.stepper.evaluating():
            training.save_model(folder / "last")
        status = "completed" if training.diverged_at() is None else "diverged"
        summary = training.write_summary(folder, status, command)
        if training.ranks.first:
            shutil.rmtree(folder / _CHECKPOINT.parent, ignore_errors=True)
    return summary


class _Stop:
    """Ctrl-C, or SIGTERM, asks for a stop after the step that is going on; a second one stops at once.

    While a checkpoint is written no further one is heard: it would lose what the first one asked to keep.

    Args:
        resumable: Whether there will be a checkpoint; without, the log says so.
        several: Whether the process is one of several: then one stop comes as several signals, from the terminal and
            from torchrun, and whoever wants it at once ends torchrun.
    """

    def __init__(self, resumable: bool = True, several: bool = False) -> None:
        self.requested = False
        self._resumable = resumable
        self._several = several
        self._writing = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may set handlers; elsewhere signals are that thread's affair.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        # Asked for while the last files were written: the run is whole, and whoever started it is to stop.
        if self.requested and kind is None:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While something is written that must be whole."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False

    def _ask(self, number: int, frame: Any) -> None:
        if self.requested and not (self._writing or self._several):
            raise KeyboardInterrupt
        if not self.requested:
            self.requested = True
            if self._several:
                kept = "with a checkpoint" if self._resumable else "without a checkpoint"
                logger.warning("Stopping after this step, %s.", kept)
            elif self._resumable:
                logger.warning("Stopping after this step, with a checkpoint; a second Ctrl-C stops at once, without.")
            else:
                logger.warning("Stopping after this step; this optimizer cannot be resumed, so there is no checkpoint.")


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInputError(f"There is no device {name!r}; choose auto, cpu, cuda, cuda:0 and so on, or mps.") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise BadInputError(
            f"The device {name} is not available here; there is {', '.join(kind for kind in there if there[kind])}."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInputError(f"There is no device {name}; there are {torch.cuda.device_count()} CUDA devices.")
    return device


def _comparable(score: float, loss: float) -> tuple[float, float]:
    """What a larger tuple of is better: the score, and among equal scores, frequent on few rows, the lower loss."""
    # Some class is always the most probable one, even where every logit is NaN: that score is none.
    return (score, -loss) if math.isfinite(loss) and not math.isnan(score) else (-math.inf, -math.inf)


def _fingerprint(task: TaskData) -> str:
    rows = [task.labels, *((split.texts, split.pairs, split.targets) for split in (task.train, task.evaluation))]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _seed(seed: int) -> None:
    import numpy

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def _generators(device: torch.device) -> dict[str, Any]:
    """The state of every generator that a model may draw from, in types that `weights_only` loads."""
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


def _read_checkpoint(folder: Path) -> dict[str, Any]:
    path = folder / _CHECKPOINT
    again = "start the run again with another --output"
    if path.is_file():
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            TrainingConfig(**checkpoint["config"])
            _Progress(**checkpoint["progress"])
            if not checkpoint.keys() >= _CHECKPOINTED:
                raise KeyError(*_CHECKPOINTED - checkpoint.keys())
        except Exception as error:
            raise BadInputError(
                f"The checkpoint {path} cannot be read: the file is damaged, or no run wrote it; {again}."
            ) from error
        return checkpoint
    if not folder.is_dir():
        raise BadInputError(f"There is no folder {folder} to resume.")
    try:
        status = records.read_summary(folder).get("status")
    except (BadInputError, OSError) as error:
        raise BadInputError(
            f"The run in {folder} cannot be resumed: it has no checkpoint, and its {records.SUMMARY} cannot be read; "
            f"{again}."
        ) from error
    if status in ("completed", "diverged"):
        raise BadInputError(f"The run in {folder} is complete; there is nothing to resume.")
    if status is not None or (folder / records.METRICS).is_file():
        raise BadInputError(
            f"The run in {folder} ended without a checkpoint, so it cannot be resumed; {again}, and with "
            "--checkpoint-every so that the next one can."
        )
    raise BadInputError(f"There is no run in {folder} to resume.")
