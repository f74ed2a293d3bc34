"""Everything that one run works with: rows, model, optimizer, progress."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from armijo_lab import methods, models
from armijo_lab.errors import BadInputError
from armijo_lab.ranks import ALONE, Ranks
from armijo_lab.tasks import TaskData
from armijo_lab.training.config import TrainingConfig, check_length
from armijo_lab.training.devices import choose_device
from armijo_lab.training.progress import Progress
from armijo_lab.training.rows import EncodedRows

__all__ = ["RunState"]


class RunState:
    """The parts of one run on one rank, from its first step, or the step it is resumed at, to its last.

    Args:
        config: The run's configuration.
        task: The data.
        model: The model, which gets LoRA adapters if the configuration has them, and moves to the device.
        tokenizer: The model's.
        ranks: This process among those of the run.

    Raises:
        BadInputError: Model, data and configuration do not fit.
    """

    def __init__(
        self, config: TrainingConfig, task: TaskData, model: nn.Module, tokenizer: Any, ranks: Ranks = ALONE
    ) -> None:
        check_length(config, model, tokenizer)
        self.config = config
        self.ranks = ranks
        self.task = task
        self.tokenizer = tokenizer
        self.device = ranks.device(choose_device(config.device))
        self.model_facts = models.describe(config.model, model)
        config.adapt(model)
        if config.lora is not None:
            self.model_facts["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.model = model.to(self.device, torch.float64 if config.precision == "fp64" else torch.float32)
        self.method = methods.parse(config.optimizer)
        self.train_rows = EncodedRows(task, task.train, tokenizer, config.tokens, self.device)
        self.evaluation_rows = EncodedRows(task, task.evaluation, tokenizer, config.tokens, self.device)
        self.final_rows = None
        if task.final is not None:
            self.final_rows = EncodedRows(task, task.final, tokenizer, config.tokens, self.device)
        self.steps_per_epoch = math.ceil(len(self.train_rows) / config.rows_per_step)
        self.total_steps = config.epochs * self.steps_per_epoch
        self._check_forward()
        self.wrapped_model = ranks.wrap(
            self.model, self.device, unused=ranks.size > 1 and self._has_unused_parameters()
        )
        self.stepper = self.method.build(self.model, self.total_steps)
        self.progress = Progress()

    def loss(self, inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """Compute the mean loss of a batch, of shape ()."""
        return self.criterion(self.logits(self.wrapped_model, inputs), targets, "mean")

    def logits(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the logits in the run's precision, and return them as float32 or float64."""
        if self.config.precision == "fp64":
            inputs = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in inputs.items()}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = model(**inputs).logits
        return logits if self.config.precision == "fp64" else logits.float()

    def criterion(self, logits: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        """Compute the cross-entropy, or for a task without labels the squared error."""
        if self.task.labels:
            # Flattened: a row has one class, or one class for each of its positions.
            return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)
        return functional.mse_loss(logits.squeeze(-1), targets.to(logits.dtype), reduction=reduction)

    @torch.no_grad()
    def _check_forward(self) -> None:
        """Try the longest row of each side, so that a model that cannot take them is refused before any write."""
        was_training = self.model.training
        self.model.eval()
        try:
            for rows in (self.train_rows, self.evaluation_rows):
                inputs, targets = rows.batch([rows.by_length()[-1]])
                self.criterion(self.logits(self.model, inputs), targets, "mean")
        except Exception as error:
            reason = " ".join((str(error).strip() or type(error).__name__).split())[:200].rstrip(".")
            raise BadInputError(
                f"The model cannot take these texts ({type(error).__name__}: {reason}); try a smaller --max-length, or "
                "another --model."
            ) from error
        finally:
            self.model.train(was_training)

    def _has_unused_parameters(self) -> bool:
        """Whether a backward pass leaves trained parameters without a gradient, such as those of an unused pooler."""
        was_training = self.model.training
        self.model.eval()
        inputs, targets = self.train_rows.batch([0])
        self.criterion(self.logits(self.model, inputs), targets, "mean").backward()
        unused = any(parameter.requires_grad and parameter.grad is None for parameter in self.model.parameters())
        self.model.zero_grad(set_to_none=True)
        self.model.train(was_training)
        return unused
