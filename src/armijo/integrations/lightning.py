"""Lightning, in automatic and in manual optimisation; needs lightning.

Lightning's closure runs `training_step`, `zero_grad` and `backward` in one. It runs once, for the gradients, and
each `training_step` in it is recorded; trials run the recorded ones again, forward only. They run through Lightning's
strategy, so that autocast and the wrapper of several ranks apply to each of them.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.nn import Module, Parameter
from torchmetrics import Metric, MetricCollection

from armijo.errors import ConfigurationError, MissingClosureError
from armijo.evaluation.buffers import Buffers
from armijo.evaluation.objective import Closure
from armijo.evaluation.rng import RandomState
from armijo.integrations.recording import Window, copy_batch
from armijo.observers.report import StepReport
from armijo.optimizer import LineSearch
from armijo.search.values import Status

__all__ = ["ArmijoMixin", "StepSizeLogger"]

logger = logging.getLogger("armijo")

if TYPE_CHECKING:
    _Base = LightningModule
else:
    _Base = object


class ArmijoMixin(_Base):
    """Line searches for a module: `class Mine(ArmijoMixin, LightningModule)`.

    `configure_optimizers` returns one of armijo's optimizers, with a scheduler or without; under any other optimizer
    the mixin does nothing.

    The loss of an update is that of all its batches (`accumulate_grad_batches`). A trial calls `training_step` again,
    without gradients, with the masks, the buffers and the batch of the first time. `self.log` is then mute, and what
    `training_step` has changed in attributes of the module (numbers, lists, dictionaries) or in torchmetrics is put
    back. Anything else that it does beside computing the loss belongs under `if torch.is_grad_enabled():`.

    A module that overrides one of the methods below calls `super()` in it.

    Raises:
        ConfigurationError: when the class is made, if the mixin stands behind LightningModule. From `fit`, under
            DeepSpeed or FSDP1, or with a `training_step` that takes the iterator of the data loader.

    Examples:
        >>> import torch, armijo
        >>> from lightning.pytorch import LightningModule
        >>> from armijo.integrations.lightning import ArmijoMixin
        >>> class Mine(ArmijoMixin, LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Linear(4, 2)
        ...     def training_step(self, batch, batch_idx):
        ...         inputs, labels = batch
        ...         return torch.nn.functional.cross_entropy(self.net(inputs), labels)
        ...     def configure_optimizers(self):
        ...         return armijo.AdamSLS(self.parameters())
    """

    _window: Window | None = None
    _handles: tuple[Any, ...] = ()
    _trying = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = [base.__name__ for base in cls.__mro__]
        if "LightningModule" in names and names.index("LightningModule") < cls.__mro__.index(ArmijoMixin):
            raise ConfigurationError(
                "ArmijoMixin stands behind LightningModule, whose methods would come first. Write "
                f"class {cls.__name__}(ArmijoMixin, LightningModule)."
            )

    def record_loss(self, closure: Closure) -> Tensor:
        """In manual optimisation: compute the loss, and have the next `optimizer.step()` search over it.

        Args:
            closure: returns the scalar loss and does nothing else.

        Returns:
            The loss, shape (), for `self.manual_backward`. Several before one step are added up, each with the factor
            with which it enters the backward pass.

        Raises:
            ConfigurationError: in automatic optimisation, which records `training_step` by itself.

        Examples:
            >>> def training_step(self, batch, batch_idx):
            ...     optimizer = self.optimizers()
            ...     optimizer.zero_grad()
            ...     loss = self.record_loss(lambda: self.loss(batch))
            ...     self.manual_backward(loss)
            ...     optimizer.step()
        """
        if self.automatic_optimization:
            raise ConfigurationError(
                "record_loss() is for manual optimisation; here training_step is recorded as a whole. Return the loss, "
                "or set self.automatic_optimization = False in the module's constructor."
            )
        if self._window is None or not torch.is_grad_enabled():
            return closure()
        return self._window.record(self._mute_in_trials(closure))

    # ------------------------------------------------------------------------------------------- Lightning's methods

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """The callbacks of the module. `fit` calls this method first, so it refuses what cannot be searched."""
        if self.trainer.state.fn == "fit":
            self._refuse()
        return super().configure_callbacks()

    def on_fit_start(self) -> None:
        """Have the optimizers search."""
        super().on_fit_start()
        self._begin()

    def on_train_start(self) -> None:
        """The same, if a callback trains before `fit` starts, as BatchSizeFinder does."""
        super().on_train_start()
        if self._window is None:
            self._begin()

    def _begin(self) -> None:
        self._release()
        optimizers = [optimizer for optimizer in self.trainer.optimizers if isinstance(optimizer, LineSearch)]
        if optimizers:
            self._connect(optimizers)

    def on_fit_end(self) -> None:
        """Leave optimizers and trainer as they were."""
        self._release()
        super().on_fit_end()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, unless `training_step` returned None for every batch of the update."""
        if self._window is None or optimizer_closure is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        loss = optimizer_closure()
        if self._window.recorded:
            super().optimizer_step(epoch, batch_idx, optimizer, lambda: loss)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log, unless this is a trial."""
        if not self._trying:
            super().log(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Copies of the module have recorded nothing."""
        return {name: value for name, value in super().__getstate__().items() if name not in ("_window", "_handles")}

    # ------------------------------------------------------------------------------------------------ private

    def _refuse(self) -> None:
        why = None
        # By name: the packages lightning and pytorch_lightning have classes of their own.
        kinds = {kind.__name__ for kind in type(self.trainer.strategy).__mro__}
        if "DeepSpeedStrategy" in kinds:
            why = 'DeepSpeed steps inside backward(), where no search can be put. Use strategy="ddp"'
        elif "FSDPStrategy" in kinds:
            why = "FSDPStrategy hides the parameters in flat shards. Use ModelParallelStrategy, which is FSDP2"
        elif "dataloader_iter" in inspect.signature(self.training_step).parameters:
            why = "a trial cannot draw the same batch from dataloader_iter again. Let training_step take the batch"
        elif any(callback.__class__.__name__ == "LearningRateFinder" for callback in self._callbacks()):
            why = "there is no learning rate for LearningRateFinder to find, the search finds the step sizes. Remove it"
        if why is not None:
            raise ConfigurationError(f"armijo cannot search here: {why}, or leave ArmijoMixin out.")

    def _callbacks(self) -> list[Callback]:
        return self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]

    def _connect(self, optimizers: list[LineSearch]) -> None:
        trainer = self.trainer
        strategy = trainer.strategy
        assert strategy.model is not None
        # The module as the strategy has wrapped it says which ranks there are, also where the wrapper's forward has
        # begun before the recorded one.
        self._window = Window([strategy.model], functools.partial(_parameters, optimizers))
        trainer.callbacks = [*trainer.callbacks, _ReleaseOnError()]  # pyright: ignore[reportAttributeAccessIssue]
        self._handles = tuple(optimizer.register_step_pre_hook(self._pass_objective) for optimizer in optimizers)
        if self.automatic_optimization:
            vars(strategy)["training_step"] = functools.partial(self._record_step, strategy, strategy.training_step)
        if trainer.gradient_clip_val:
            logger.warning(
                "gradient_clip_val is %g: gradients are clipped before the search, which then takes the slope for "
                "smaller than it is and accepts longer steps. Leave it out.",
                trainer.gradient_clip_val,
            )

    def _release(self) -> None:
        trainer: Any = self.trainer
        vars(trainer.strategy).pop("training_step", None)
        # A new list, because this may be called during an iteration over the old one.
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, _ReleaseOnError)]
        for handle in self._handles:
            handle.remove()
        self._handles, self._window = (), None

    def _record_step(self, strategy: Strategy, above: Callable[..., Any], *args: Any) -> Any:
        """The strategy's `training_step`, recorded."""
        assert self._window is not None
        kept = copy_batch(args)
        model = strategy.model
        assert model is not None
        outputs, after_forward = [], []
        ran = False

        def forward() -> Tensor:
            nonlocal ran
            if not ran:
                ran = True
                outputs.append(above(*args))
                if not isinstance(_loss_in(outputs[0]), Tensor):
                    buffers = Buffers()
                    buffers.add(model)
                    after_forward.append((buffers, RandomState.capture()))
                return _require_loss(outputs[0])
            return _require_loss(above(*copy_batch(kept)))

        with suppress(_NoLossError):
            self._window.record(self._mute_in_trials(forward))
        # What raises is undone, but a batch without a loss has been seen.
        for buffers, random in after_forward:
            buffers.restore()
            random.restore()
        return outputs.pop()

    def _mute_in_trials(self, closure: Closure) -> Closure:
        """The closure, whose calls after the first are trials."""
        ran = False

        def forward() -> Tensor:
            nonlocal ran
            if not ran:
                ran = True
                return closure()
            metrics = [module for module in self.modules() if isinstance(module, (Metric, MetricCollection))]
            with _preserve_attributes([self, *metrics]):
                self._trying = True
                return closure()

        return forward

    def _pass_objective(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before each step of an optimizer: in place of Lightning's closure, which it runs, it gets the objective."""
        window = self._window
        itself, *given = args
        closure = given[0] if given else kwargs.get("closure")
        assert window is not None
        if closure is not None and (self.automatic_optimization or window.recorded):
            # What is left of the backward pass, and the hooks between it and the step.
            closure()
        if window.recorded:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            objective = window.objective(1.0 if scaler is None else scaler.get_scale())
            window.forget()
            return (itself, objective), {}
        if closure is None and all(float(group["lr"]) == 0 for group in itself.param_groups):
            # A checkpoint asks for state with a bare step(); that must not become a search.
            return None
        if self.automatic_optimization:
            raise MissingClosureError(
                f"optimizer.step() was called in {type(self).__name__} without a loss. An optimizer_step() of your own "
                "must hand on the closure that Lightning gives it, optimizer.step(closure=optimizer_closure), also for "
                "batches of which training_step returns None."
            )
        if closure is None:
            return None
        if self.trainer.world_size > 1:
            raise ConfigurationError(
                "In manual optimisation on several ranks the gradients are averaged by manual_backward() alone. Write "
                "loss = self.record_loss(closure); self.manual_backward(loss); optimizer.step()."
            )
        return (itself, _require_tensor(self._mute_in_trials(closure))), {}


class _ReleaseOnError(Callback):
    """After a `fit` that was interrupted the optimizers step by themselves again."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, ArmijoMixin):
            pl_module._release()


class StepSizeLogger(Callback):
    """Log what the searches found, through Lightning's own loggers.

    There are `step_size` (or `step_size/COMPONENT`, where there are several), `forwards` (passes over a batch that an
    update took; without a search as many as it has batches) and `accepted` (the share of searches that were). The last
    two are over the last `log_every_n_steps` updates, so that none goes unseen. A component that was merged into
    another goes on with the step size of that. With several optimizers the names begin with `AdamSLS-0/` and so on.

    It works in automatic and manual optimisation, with `ArmijoMixin` or without.

    Args:
        prog_bar: whether to show the numbers in the progress bar too.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> from armijo.integrations.lightning import StepSizeLogger
        >>> # Trainer(callbacks=[StepSizeLogger()]).fit(module, loader)
    """

    def __init__(self, prog_bar: bool = False) -> None:
        self.prog_bar = prog_bar
        self._counters: list[_StepCounter] = []
        self._bar: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to observe the optimizers."""
        self._release()
        searching = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, LineSearch)]
        for index, optimizer in enumerate(searching):
            prefix = f"{type(optimizer).__name__}-{index}/" if len(searching) > 1 else ""
            last: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
            counter = _StepCounter(prefix, deque(maxlen=max(1, last)))
            counter.handle = optimizer.register_observer(counter)
            self._counters.append(counter)
        self._bar = trainer.progress_bar_callback if self.prog_bar else None
        if self._bar is not None:
            vars(self._bar)["get_metrics"] = functools.partial(_readable_metrics, self._bar.get_metrics)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the optimizers have done of late."""
        for counter in self._counters:
            if counter.reports:
                pl_module.log_dict(counter.numbers(), prog_bar=self.prog_bar, on_step=True, on_epoch=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the observation."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the observation."""
        self._release()

    def _release(self) -> None:
        for counter in self._counters:
            counter.handle.remove()
        if self._bar is not None:
            vars(self._bar).pop("get_metrics", None)
        self._counters, self._bar = [], None


@dataclass
class _StepCounter:
    """What one optimizer has done of late."""

    prefix: str
    reports: deque[StepReport]
    absorbed: dict[str, str] = field(default_factory=dict)
    """The component into which one was merged."""
    handle: Any = None

    def __call__(self, report: StepReport) -> None:
        self.reports.append(report)
        self.absorbed |= {absorbed: kept for kept, absorbed in report.merges}

    def numbers(self) -> dict[str, float]:
        sizes = {component.label: component.step_size for component in self.reports[-1].components}
        for absorbed, kept in reversed(self.absorbed.items()):
            sizes.setdefault(absorbed, sizes[kept])
        names = {label: f"step_size/{label}" if len(sizes) > 1 else "step_size" for label in sizes}
        numbers = {names[label]: size for label, size in sizes.items()}
        numbers["forwards"] = sum(report.forwards for report in self.reports) / len(self.reports)
        searched = [component for report in self.reports for component in report.components if component.trials]
        if searched:
            accepted = sum(component.status is Status.ACCEPTED for component in searched)
            numbers["accepted"] = accepted / len(searched)
        return {self.prefix + name: number for name, number in numbers.items()}


def _readable_metrics(get_metrics: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """What a progress bar shows, with step sizes in powers of ten: bars show 0.0000975 as 0.000."""
    metrics = get_metrics(*args, **kwargs)
    sizes = {name: value for name, value in metrics.items() if "step_size" in name and isinstance(value, float)}
    return {**metrics, **{name: f"{value:.2e}" for name, value in sizes.items()}}


def _parameters(optimizers: Sequence[LineSearch]) -> Iterator[Parameter]:
    return (parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"])


class _NoLossError(Exception):
    """`training_step` returned None, or something that Lightning will refuse."""


def _require_tensor(closure: Closure) -> Closure:
    def forward() -> Tensor:
        loss = closure()
        if loss is None:
            raise ConfigurationError(
                "optimizer.step() has no loss to search over. In manual optimisation compute it with "
                "loss = self.record_loss(lambda: ...) before self.manual_backward(loss), once for each step."
            )
        return loss

    return forward


def _loss_in(output: Any) -> Any:
    return output.get("loss") if isinstance(output, Mapping) else output


def _require_loss(output: Any) -> Tensor:
    loss = _loss_in(output)
    if not isinstance(loss, Tensor):
        raise _NoLossError
    return loss


_MODULE = frozenset(vars(Module()))
"""What torch keeps in a module; parameters and buffers are looked after elsewhere."""


@contextmanager
def _preserve_attributes(modules: Sequence[Module]) -> Iterator[None]:
    """Restores attributes of modules; meanwhile containers and a metric's states are copies."""
    kept = [(module, {n: v for n, v in vars(module).items() if n not in _MODULE}) for module in modules]
    try:
        for module, attributes in kept:
            tensors = isinstance(module, Metric)
            vars(module).update({name: _copy_containers(value, tensors) for name, value in attributes.items()})
        yield
    finally:
        for module, attributes in kept:
            for name in vars(module).keys() - attributes.keys() - _MODULE:
                del vars(module)[name]
            vars(module).update(attributes)


def _copy_containers(value: Any, tensors: bool) -> Any:
    if isinstance(value, dict):
        copied = copy.copy(value)
        for key, inner in value.items():
            copied[key] = _copy_containers(inner, tensors)
        return copied
    if isinstance(value, (list, set, deque)):
        return copy.copy(value)
    return value.clone() if tensors and isinstance(value, Tensor) else value
