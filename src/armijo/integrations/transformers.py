"""The Hugging Face Trainer, and every trainer that derives from it; needs transformers.

The Trainer calls `optimizer.step()` bare. Here each update's forwards are recorded as they happen, and the recorded
objective is handed to the bare `step()`: no forward is repeated, and gradient accumulation, mixed precision, label
smoothing, a custom `compute_loss` and checkpoints are the Trainer's own.
"""

from __future__ import annotations

import copy
import functools
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn import Module, ModuleDict
from transformers import Trainer

from armijo import paper
from armijo.averaging import polynomial_average
from armijo.components.splitting import split
from armijo.errors import ConfigurationError, MissingClosureError
from armijo.evaluation.buffers import Buffers
from armijo.evaluation.rng import RandomState
from armijo.integrations.averaging import Average, WeightAverage
from armijo.integrations.recording import Window, copy_batch
from armijo.observers.report import StepReport
from armijo.optimizer import LineSearch
from armijo.recipes import PLASLS, AdamSLS
from armijo.search.values import Status

__all__ = ["ArmijoMixin", "ArmijoTrainer", "attach", "line_search"]

logger = logging.getLogger("armijo")

_WEIGHTS = "weights_in_training.pt"
"""In a checkpoint whose model is the average, the weights from which training goes on."""

_Trainer = TypeVar("_Trainer", bound=Trainer)

By = str | Mapping[str, Any] | Callable[[str, torch.nn.Parameter], str]


def line_search(
    optimizer: type[LineSearch] = AdamSLS, *, by: By | None = None, n_layer_groups: int | None = None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """What a trainer takes as `optimizer_cls_and_kwargs`: a factory that builds the optimizer over the trainer's model.

    Args:
        optimizer: `armijo.AdamSLS`, `armijo.PLASLS`, `armijo.SGDSLS`, one of `armijo.paper`, or a class of your own.
        by: how to split the model into components, as `armijo.split` takes it. By default one component, for PLASLS
            `"layer"`.
        n_layer_groups: how many groups of layers, for `by="layer"`.
        options: further arguments of the optimizer, for instance `c=0.3`. Without `weight_decay` it is the
            trainer's, which spares biases and norms.

    Returns:
        A pair, to be passed on as it is.

    Examples:
        >>> import armijo
        >>> from armijo.integrations.transformers import line_search
        >>> choice = line_search(armijo.PLASLS, by="layer", n_layer_groups=4)
        >>> # trainer = ArmijoTrainer(model, args, train_dataset=rows, optimizer_cls_and_kwargs=choice)
    """
    return _Factory, {"optimizer": optimizer, "by": by, "n_layer_groups": n_layer_groups, "options": options}


class _Factory:
    """What the Trainer calls a factory: an object that is called with the model."""

    def __call__(
        self,
        model: Module,
        *,
        optimizer: type[LineSearch],
        by: By | None,
        n_layer_groups: int | None,
        options: Mapping[str, Any],
        undecayed: frozenset[str] = frozenset(),
    ) -> LineSearch:
        if by is None and issubclass(optimizer, (PLASLS, paper.PLASLS)):
            by = "layer"
        if by is None:
            groups = [{"params": [p for p in model.parameters() if p.requires_grad], "component": "all"}]
        else:
            groups = split(model, by=by, n_layer_groups=n_layer_groups)
        if undecayed:
            spared = {id(p) for name, p in model.named_parameters() if name in undecayed}
            groups = [part for group in groups for part in _split_decay(group, spared)]
        return optimizer(groups, **options)


def _split_decay(group: dict[str, Any], spared: set[int]) -> list[dict[str, Any]]:
    """A group, as one with weight decay and one without; both have the same step size."""
    decayed = {**group, "params": [p for p in group["params"] if id(p) not in spared]}
    plain = {**group, "params": [p for p in group["params"] if id(p) in spared], "weight_decay": 0.0}
    return [part for part in (decayed, plain) if part["params"]]


@dataclass
class _StepCounter:
    """What steps have done since the last log."""

    last: StepReport | None = None
    steps: int = 0
    forwards: int = 0
    searches: int = 0
    accepted: int = 0
    factors: dict[str, float] = field(default_factory=dict)
    """lr of each component."""

    def add(self, report: StepReport) -> None:
        self.last = report
        self.steps += 1
        self.forwards += report.forwards
        searched = [component for component in report.components if component.trials]
        self.searches += len(searched)
        self.accepted += sum(component.status is Status.ACCEPTED for component in searched)


if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class ArmijoMixin(_Base):
    """Line searches for a trainer: `class MyTrainer(ArmijoMixin, SFTTrainer): pass`.

    The optimizer is AdamSLS, unless `optimizer_cls_and_kwargs` (see `line_search`) or `optimizers` names another one of
    armijo's. The trainer's `learning_rate` is not used. Two defaults of the training arguments that were made for
    optimizers with a learning rate are replaced (see `replaced`), on a copy of them; other values are kept.

    In the logs `learning_rate` is the step size that was found (the median, with several components), and there are
    `step_size/COMPONENT`, `forwards` (passes an update; 1 without a search) and `accepted` (the share of searches that
    were).

    Attributes:
        replaced: for a training argument its default and what takes its place. Clipping would shorten the gradient
            before the slope is computed from it, and a schedule to zero belongs to a rate that was chosen beforehand.
            Set it to `{}` to keep the defaults.
        bookkeeping: attributes in which a trainer counts in `compute_loss`; a trial leaves them alone.
        averaging: how to average the weights of all updates, for instance `armijo.polynomial_average()`; None for
            none. The average is what is evaluated and saved, and what the model holds after `train`. A checkpoint holds
            it as its model, and beside it the weights from which training goes on.

    Raises:
        ConfigurationError: from `train`, if the optimizer is not one of armijo's, or with DeepSpeed, FSDP1, context or
            sequence parallelism, or `torch.nn.DataParallel`; with `averaging`, under FSDP2 too.
    """

    replaced: Mapping[str, tuple[Any, Any]] = {"lr_scheduler_type": ("linear", "constant"), "max_grad_norm": (1.0, 0.0)}
    bookkeeping: tuple[str, ...] = ("_metrics", "_total_train_tokens", "accum_loss_components")
    averaging: Average | None = None

    _average: WeightAverage | None = None
    _is_loading_best = False
    _window: Window | None = None
    _counter: _StepCounter | None = None
    _searcher: LineSearch | None = None
    _detected_loss_scaling = False
    _is_muted = False
    _handles: tuple[Any, ...] = ()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as the trainer does."""
        self._refuse()
        self.args = copy.copy(self.args)
        for name, (default, instead) in self.replaced.items():
            if getattr(self.args, name) == default:
                if instead == "constant" and self.args.get_warmup_steps(10**6):
                    instead = "constant_with_warmup"
                setattr(self.args, name, type(getattr(self.args, name))(instead))
                logger.info("%s=%s, which is the default, becomes %s for a line search.", name, default, instead)
        if self.args.max_grad_norm > 0:
            logger.warning(
                "max_grad_norm is %g: gradients are clipped before the search, which then takes the slope for smaller "
                "than it is and accepts longer steps. Leave it at 0.",
                self.args.max_grad_norm,
            )
        self._average = None
        try:
            with self._recording():
                output = super().train(*args, **kwargs)
            if self._average is not None:
                self._average.leave_in_place()
            return output
        finally:
            self._average = None
            # An interrupted trainer must not hand what it recorded to the next one that has this optimizer.
            self._release()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Build the optimizer if there is none, and have it search over the updates of this trainer."""
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            self.optimizer_cls_and_kwargs = line_search()
        if self.optimizer is None and self.optimizer_cls_and_kwargs[0] is _Factory:
            given = args[0] if args else kwargs.get("model")
            model: Any = self.model if given is None else given
            root = self._trained_module(model)
            choice = dict(self.optimizer_cls_and_kwargs[1])
            if self.args.weight_decay and "weight_decay" not in choice["options"]:
                choice["options"] = {**choice["options"], "weight_decay": self.args.weight_decay}
                decayed = set(self.get_decay_parameter_names(root))
                choice["undecayed"] = frozenset(name for name, _ in root.named_parameters() if name not in decayed)
            self.optimizer = _Factory()(root, **choice)
        super().create_optimizer(*args, **kwargs)
        self._connect(self.optimizer)
        return self.optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with what the searches did since the last time; nothing while a trial runs."""
        if self._is_muted:
            return
        counter = self._counter
        if "loss" in logs and counter is not None and counter.last is not None:
            sizes = {component.label: component.step_size for component in counter.last.components}
            moved = [size * counter.factors.get(label, 1.0) for label, size in sizes.items()]
            logs["learning_rate"] = statistics.median(moved)
            if len(sizes) > 1:
                logs |= {f"step_size/{label}": size for label, size in sizes.items()}
            logs["forwards"] = counter.forwards / counter.steps
            if counter.searches:
                logs["accepted"] = counter.accepted / counter.searches
            self._counter = _StepCounter()
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, during training the average if there is one."""
        with self._averaged():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict, during training with the average if there is one."""
        with self._averaged():
            return super().predict(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, during training the average if there is one."""
        with self._averaged():
            super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None and self.args.should_save:
            path = Path(output_dir) / _WEIGHTS
            if self._average is not None and not self.args.save_only_model:
                torch.save(self._average.weights(), path)
            else:
                # Of an earlier run that wrote into this folder.
                path.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------ private

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self._average is None else self._average.in_place()

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # Trainers of other libraries have other arguments here; the folder is always the first.
        super()._load_from_checkpoint(*args, **kwargs)
        folder, *others = (*args, *kwargs.values())
        path = Path(folder) / _WEIGHTS
        if path.exists() and not self._is_loading_best:
            held: Any = next((each for each in others if isinstance(each, Module)), self.model)
            # Without averaging from here on, training still goes on from the weights, not from their average.
            average = WeightAverage(self._trained_module(held), self.averaging or polynomial_average())
            average.resume(torch.load(path, map_location="cpu", weights_only=True))
            self._average = average if self.averaging is not None else None

    def _load_best_model(self) -> None:
        if self._average is not None:
            # Where the best one cannot be loaded, the Trainer goes on with what is there.
            self._average.leave_in_place()
            self._average = None
        self._is_loading_best = True
        try:
            super()._load_best_model()
        finally:
            self._is_loading_best = False

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Record the losses of updates, whichever class defines `compute_loss` and `training_step`."""
        own = vars(self).get("compute_loss")
        self.compute_loss = self._recorded(self.compute_loss)
        try:
            yield
        finally:
            del self.compute_loss
            if own is not None:
                self.compute_loss = own

    def _recorded(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(compute_loss)
        def recorded(model: Module, inputs: Any, return_outputs: bool = False, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return compute_loss(model, inputs, return_outputs, *args, **kwargs)
            if not self._detected_loss_scaling:
                self._detected_loss_scaling = True
                self._detect_loss_scaling(functools.partial(compute_loss, model), inputs, *args, **kwargs)
            outputs: list[Any] = []

            def forward() -> Any:
                # The trainer takes labels out of its inputs.
                if not outputs:
                    answer = compute_loss(model, copy_batch(inputs), return_outputs, *args, **kwargs)
                    loss, found = answer if return_outputs else (answer, None)
                    outputs.append(found)
                    return loss
                with self._muted(), self.compute_loss_context_manager():
                    return compute_loss(model, copy_batch(inputs), *args, **kwargs)

            if self._window is None:
                self._window = Window(parameters=model.parameters)
            loss = self._window.record(forward)
            found, outputs[0] = outputs[0], None  # their graph must not outlive the backward pass
            return (loss, found) if return_outputs else loss

        return recorded

    def _refuse(self) -> None:
        why = None
        parallel = getattr(self.accelerator, "parallelism_config", None)
        split_rows = any(getattr(parallel, name, False) for name in ("cp_enabled", "sp_enabled"))
        if self.is_deepspeed_enabled:
            why = "DeepSpeed steps inside backward(), where no search can be put. Use DDP or FSDP2 (fsdp_version: 2)"
        elif getattr(getattr(self.accelerator.state, "fsdp_plugin", None), "fsdp_version", 2) == 1:
            why = "FSDP1 hides the parameters in flat shards. Use FSDP2 (fsdp_version: 2)"
        elif split_rows:
            why = "context and sequence parallelism split each row over ranks in a way that a trial cannot repeat yet"
        elif self.args.n_gpu > 1:
            why = "torch.nn.DataParallel has a loss for each device. Launch a process for each GPU with torchrun"
        elif self.averaging is not None and self.is_fsdp_enabled:
            why = "averaging holds whole weights, and FSDP2 shards them. Set averaging = None"
        if why is not None:
            raise ConfigurationError(f"armijo cannot search here: {why}.")

    def _detect_loss_scaling(
        self,
        compute_loss: Callable[..., Any],
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> None:
        """Find out whether the model's loss is divided by the number of items of the update, as the Trainer believes.

        The heads of encoders take the number and ignore it: their losses are means of a micro-batch, which the Trainer
        then adds up where it should average (transformers issue 47688).
        """
        several = self.args.gradient_accumulation_steps > 1 or self.accelerator.num_processes > 1
        believed = self.model_accepts_loss_kwargs and self.compute_loss_func is None
        if num_items_in_batch is None or not (several and believed):
            return
        buffers, random = Buffers(), RandomState.capture()
        with torch.no_grad(), buffers.watching(), self._muted():
            losses = []
            for count in (num_items_in_batch, 2 * num_items_in_batch):
                losses.append(compute_loss(copy_batch(inputs), num_items_in_batch=count).detach().float())
                random.restore()
                buffers.restore()
        # All ranks take one way: a loss that is not finite, or happens to be zero, says nothing.
        told = torch.stack([torch.isfinite(losses[0]) & (losses[0] != 0), losses[0] != losses[1]]).float()
        summed: Any = self.accelerator.reduce(told, "sum")
        says, matters = summed.tolist()
        if says and not matters:
            self.model_accepts_loss_kwargs = False

    def _trained_module(self, model: Module) -> Module:
        """The model, or the losses of sentence-transformers that hold it and may have parameters of their own."""
        losses = getattr(self, "loss", None)
        if isinstance(losses, Mapping) and losses and all(isinstance(loss, Module) for loss in losses.values()):
            losses = ModuleDict({str(index): loss for index, loss in enumerate(losses.values())})
        if isinstance(losses, Module):
            inside = {id(parameter) for parameter in losses.parameters()}
            if all(id(parameter) in inside for parameter in model.parameters()):
                return losses
        return model

    def _connect(self, optimizer: Any) -> None:
        raw = optimizer
        while not isinstance(raw, LineSearch) and hasattr(raw, "optimizer"):
            raw = raw.optimizer
        if not isinstance(raw, LineSearch):
            raise ConfigurationError(
                f"The trainer's optimizer is {type(raw).__name__}, which searches for no step size. Leave `optimizers` "
                "and `optimizer_cls_and_kwargs` out to get AdamSLS, or pass "
                "optimizer_cls_and_kwargs=armijo.integrations.transformers.line_search(armijo.PLASLS)."
            )
        if raw is self._searcher:
            return
        self._release()
        self._searcher, self._counter = raw, _StepCounter()
        self._handles = (raw.register_step_pre_hook(self._pass_objective), raw.register_observer(self._count_step))

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._window, self._searcher = (), None, None

    def _pass_objective(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        window, self._window = self._window, None
        itself, *given = args
        if any(value is not None for value in (*given, *kwargs.values())):
            return None
        if window is None or not window.recorded:
            # A checkpoint asks for state with a bare step() too, with every lr at 0.
            if any(float(group["lr"]) != 0 for group in optimizer.param_groups):
                raise MissingClosureError(
                    f"{type(self).__name__} has an update without a loss that could be searched: no loss from "
                    "self.compute_loss(model, inputs) has entered a backward pass. A training_step of your own must "
                    "get its loss from self.compute_loss, where trials evaluate it, and call "
                    "self.accelerator.backward(loss)."
                )
            return None
        scaler = getattr(self.accelerator, "scaler", None)
        objective = window.objective(1.0 if scaler is None else scaler.get_scale())
        return (itself, objective), {}

    def _count_step(self, report: StepReport) -> None:
        assert self._counter is not None
        assert self._searcher is not None
        self._counter.add(report)
        self._counter.factors = {group["component"]: group["lr"] for group in self._searcher.param_groups}
        if self.averaging is not None and report.components[0].status is not Status.NONFINITE:
            if self._average is None:
                model: Any = self.model
                self._average = WeightAverage(self._trained_module(model), self.averaging)
            self._average.update()

    def _preserve_bookkeeping(self) -> _PreserveAttributes:
        return _PreserveAttributes(self, self.bookkeeping)

    @contextmanager
    def _muted(self) -> Iterator[None]:
        """What a trainer does besides computing a loss happens once: in trials it neither logs nor counts."""
        self._is_muted = True
        try:
            with self._preserve_bookkeeping():
                yield
        finally:
            self._is_muted = False


class ArmijoTrainer(ArmijoMixin, Trainer):
    """The Trainer, with a line search in place of a learning rate. See `ArmijoMixin`.

    Examples:
        >>> from armijo.integrations.transformers import ArmijoTrainer
        >>> # ArmijoTrainer(model, TrainingArguments("run", num_train_epochs=5), train_dataset=rows).train()
    """


def attach(trainer: _Trainer, optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None) -> _Trainer:
    """Give a trainer that somebody else built what `ArmijoMixin` adds.

    Args:
        trainer: a Trainer, before `train()`; its class becomes one that derives from `ArmijoMixin` and its own.
        optimizer_cls_and_kwargs: which optimizer, as `line_search` returns it.

    Returns:
        The same trainer.

    Raises:
        ConfigurationError: it is no Trainer, or has an optimizer already: one that is none of armijo's, or any if
            another is asked for.
    """
    if not isinstance(trainer, Trainer):
        inner = [name for name, value in getattr(trainer, "__dict__", {}).items() if isinstance(value, Trainer)]
        hint = f" It holds one: attach(trainer.{inner[0]})." if inner else ""
        raise ConfigurationError(f"attach() takes a transformers.Trainer, not a {type(trainer).__name__}.{hint}")
    held = trainer.optimizer
    while held is not None and not isinstance(held, LineSearch):
        held = getattr(held, "optimizer", None)
    if trainer.optimizer is not None and (held is None or optimizer_cls_and_kwargs is not None):
        raise ConfigurationError(
            f"The trainer has an optimizer already, {type(trainer.optimizer).__name__}. Attach before train() and "
            "before create_optimizer(), or set trainer.optimizer = None first."
        )
    if not isinstance(trainer, ArmijoMixin):
        kind = type(trainer)
        trainer.__class__ = type(f"Armijo{kind.__name__}", (ArmijoMixin, kind), {"__module__": kind.__module__})
    if optimizer_cls_and_kwargs is not None:
        trainer.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
    return trainer


class _PreserveAttributes:
    """Restores what a trainer counts in `compute_loss`."""

    def __init__(self, owner: object, names: tuple[str, ...]) -> None:
        self._owner, self._names = owner, names

    def __enter__(self) -> None:
        held = vars(self._owner)
        self._kept = {name: copy.deepcopy(held[name]) for name in self._names if name in held}

    def __exit__(self, *_: object) -> None:
        vars(self._owner).update(self._kept)
