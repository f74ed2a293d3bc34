"""The loss at the current parameters, as a float, any number of times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch.nn import Module, Parameter
from torch.nn.parallel import DistributedDataParallel

from armijo.errors import ClosureContractError
from armijo.evaluation.buffers import Buffers
from armijo.evaluation.reduction import ALONE, Reduction
from armijo.evaluation.rng import RandomState

__all__ = ["Closure", "Objective", "RecordedForward"]

Closure = Callable[[], torch.Tensor]
"""Returns the scalar loss at the current parameters, and does nothing else."""


@dataclass(frozen=True, slots=True)
class RecordedForward:
    """A forward pass that ran, with all that is needed to repeat it.

    Args:
        closure: repeats the forward; returns its scalar loss.
        loss: the loss that it returned, a scalar tensor.
        random: the generators' state just before it.
        buffers: the buffers of its modules just before it.
        weight: the factor of this loss in the objective.
        returned: a weak reference to the tensor that the closure returned. A closure that returns it again evaluates
            nothing.
        versions: the parameters of its modules, each with torch's count of in-place writes just after it.
    """

    closure: Closure
    loss: torch.Tensor
    random: RandomState
    buffers: Buffers = field(default_factory=Buffers)
    weight: float = 1.0
    returned: Callable[[], torch.Tensor | None] = lambda: None
    versions: tuple[tuple[torch.Tensor, int], ...] = ()


class Objective:
    """The loss that a step searches over, f = Σ weight·loss of the recorded forward passes (usually one).

    Where the model is distributed (DistributedDataParallel, fully_shard), f is the mean over the ranks: each calls
    `step`, and so every method that evaluates, equally often.

    One Objective serves one step. An optimizer builds one from a closure. If your loop runs the backward pass itself,
    for gradient accumulation, a `GradScaler`, clipping or Accelerate, build it and call `optimizer.step(objective)`.

    Args:
        modules: the modules whose buffers a forward may change. By default they are found: those whose forward runs.
        process_group: the ranks over which the loss is a mean. By default that of the wrapped model, if it is wrapped.

    Examples:
        >>> import armijo
        >>> weight = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = armijo.AdamSLS([weight])
        >>> objective = armijo.Objective()
        >>> for target in (1.0, 2.0):                        # two micro-batches
        ...     loss = objective.baseline(lambda target=target: ((weight - target) ** 2).sum() / 2)
        ...     loss.backward()
        >>> optimizer.step(objective).item()
        2.5
        >>> optimizer.zero_grad()
    """

    def __init__(self, modules: Iterable[Module] | None = None, *, process_group: Any = None) -> None:
        self._modules = None if modules is None else tuple(modules)
        self._groups = None if process_group is None else (process_group,)
        self.reduction = ALONE if self._groups is None else Reduction(self._groups)
        """Over which ranks the loss is a mean."""
        self._forwards: list[RecordedForward] = []
        self._after: tuple[RandomState, list[Buffers]] | None = None
        self._value: float | None = None
        self._closed = False
        self.evaluations = 0
        """Forward passes so far, those of the baseline included."""
        self.differentiates = False
        """Whether the closures differentiate inside, so that trials run with gradients enabled."""

    @classmethod
    def from_forwards(cls, forwards: Sequence[RecordedForward], *, process_group: Any = None) -> Objective:
        """The objective of forward passes that ran before, with gradients, and were recorded."""
        objective = cls(process_group=process_group)
        objective._forwards.extend(forwards)
        objective.evaluations = len(objective._forwards)
        for forward in forwards:
            objective._find_ranks(forward.buffers)
        return objective

    @property
    def recorded_forwards(self) -> tuple[RecordedForward, ...]:
        """The forwards recorded so far, for instance to give them other weights: `Objective.from_forwards`."""
        return tuple(self._forwards)

    def baseline(self, closure: Closure, weight: float = 1.0) -> torch.Tensor:
        """Run one forward with gradients, record it, and return the closure's own tensor.

        Args:
            closure: returns the scalar loss of this part of the objective.
            weight: its factor in the objective, finite.

        Returns:
            The closure's own tensor, shape (), attached to its graph, not yet weighted.

        Raises:
            ClosureContractError: if the closure returns anything but a scalar tensor with a graph, or if this
                Objective has served a step already. Generators and buffers are then as before the call, as they are
                when the closure raises.
        """
        self._check_open()
        random, buffers = RandomState.capture(), Buffers()
        try:
            with buffers.watching(self._modules), torch.enable_grad(), _one_kernel():
                loss = closure()
            _check_loss(loss, graph=True)
            self._find_ranks(buffers)
        except BaseException:
            buffers.restore()
            random.restore()
            raise
        # A copy: a compiled or hand-written forward may use one tensor for all its results.
        self._forwards.append(
            RecordedForward(closure, loss.detach().clone(), random, buffers, weight, ref(loss), _versions(buffers))
        )
        self._value = None
        self.evaluations += 1
        return loss

    def loss(self) -> torch.Tensor:
        """The objective at the start of the step, Σ weight·loss: detached, shape (), of the closures' dtype."""
        self._check_open()
        if not self._forwards:
            raise ClosureContractError(
                "This Objective has recorded no forward pass, so there is no loss to search from; call "
                "objective.baseline(closure) at least once before optimizer.step(objective)."
            )
        first, *others = (forward.loss.detach() * forward.weight for forward in self._forwards)
        return sum(others, first)

    def value(self) -> float:
        """The objective at the start of the step as a float, added up as `trial` adds. Fetched once.

        Raises:
            RankError: another rank has failed.
        """
        if self._value is None:
            (self._value,) = self.mean_over_ranks(lambda: [self._recorded_value()])
        return self._value

    def value_with(self, compute: Callable[[], Sequence[Sequence[torch.Tensor]]], size: int) -> list[float]:
        """Fetch `value` and other sums together, with one wait for each device.

        Args:
            compute: returns lists of scalar tensors of this rank, to be added up.
            size: how many lists, alike on all ranks.

        Returns:
            The sum of each list, the mean over the ranks.

        Raises:
            RankError: another rank has failed.
        """
        known = self._value is not None

        def numbers() -> list[float]:
            losses = [] if known else [forward.loss.detach().reshape(()) for forward in self._forwards]
            lists = compute()
            fetched = iter(_fetch([*losses, *(scalar for scalars in lists for scalar in scalars)]))
            value = sum(forward.weight * next(fetched) for forward in self._forwards) if not known else 0.0
            # math.fsum raises where infinities of both signs meet; here that is a NaN like any other.
            return [value, *(sum((next(fetched) for _ in scalars), 0.0) for scalars in lists)]

        value, *sums = self.mean_over_ranks(numbers, 1 + size)
        if not known:
            self._value = value
        return sums

    def mean_over_ranks(self, compute: Callable[[], Sequence[float]], size: int = 1) -> list[float]:
        """The mean over the ranks of the numbers that each computes; a failure on one rank raises on all.

        Args:
            compute: computes them on this rank.
            size: how many they are, alike on all ranks.

        Raises:
            RankError: another rank has failed.
        """
        numbers: Sequence[float] = [0.0] * size
        error: BaseException | None = None
        try:
            numbers = compute()
        except BaseException as raised:
            error = raised
        return self.reduction.mean(numbers, error)

    def forward_on_all_ranks(self, forward: Closure) -> torch.Tensor:
        """Run a forward and return its loss once every rank has done so; the backward pass would wait for a failed one.

        Raises:
            RankError: another rank has failed.
        """
        losses: list[torch.Tensor] = []

        def compute() -> list[float]:
            losses.append(forward())
            # Alone there is nothing to tell, and to fetch the loss now would be a wait before the backward pass.
            return [self._recorded_value()] if self.reduction.groups else [math.nan]

        (value,) = self.mean_over_ranks(compute)
        self._value = value if self.reduction.groups else None
        return losses[0]

    def _recorded_value(self) -> float:
        return sum(forward.weight * float(forward.loss) for forward in self._forwards)

    def _find_ranks(self, buffers: Buffers) -> None:
        found = Reduction.of_modules(buffers.modules, self._groups)
        if found.groups:
            self.reduction = found

    def resolution(self) -> float:
        """u·|f|: the least difference that the coarsest of the losses' number formats can show near the objective."""
        roundoff = max(torch.finfo(forward.loss.dtype).eps / 2 for forward in self._forwards)
        return roundoff * abs(self.value())

    def trial(self, through: Callable[[Closure], Closure] = lambda closure: closure) -> float:
        """The objective at the current parameters: the recorded forwards again, from the same masks and buffers.

        Args:
            through: wraps each recorded closure before it is called, for instance so that Ctrl-C can interrupt it.

        Returns:
            Σ weight·loss, the mean over the ranks, or `inf` where that is not finite.

        Raises:
            ClosureContractError: if a closure no longer returns a scalar tensor, or one that was computed before.
            RankError: another rank has failed.
        """
        (total,) = self.mean_over_ranks(lambda: [self.local_trial(through)])
        return total if math.isfinite(total) else math.inf

    @torch.no_grad()
    def local_trial(self, through: Callable[[Closure], Closure] = lambda closure: closure) -> float:
        """This rank's own trial loss; it may not be finite."""
        if self._after is None:
            self._after = (RandomState.capture(), [forward.buffers.current() for forward in self._forwards])
        total = 0.0
        try:
            for forward in self._forwards:
                forward.buffers.restore()
                forward.random.restore()
                # Autocast keeps its low-precision copy of each weight until the outermost region ends; a trial inside
                # such a region would be judged with the weights from before the move. Likewise a sharded model's
                # gathered parameters.
                torch.clear_autocast_cache()
                self.reduction.reshard()
                loss = self._repeat(forward, through)
                _check_loss(loss, graph=False)
                if loss is forward.returned() and loss.grad_fn is not None:
                    raise ClosureContractError(
                        "The closure returned a loss that was computed before, outside of it, and stays the same "
                        "wherever the parameters are. Compute it in the closure: optimizer.step(lambda: "
                        "criterion(model(inputs), labels))."
                    )
                total += forward.weight * float(loss)
        finally:
            # The copies made here know no graph; the next training forward must not find them.
            torch.clear_autocast_cache()
            self.reduction.reshard()
        return total

    def _repeat(self, forward: RecordedForward, through: Callable[[Closure], Closure]) -> torch.Tensor:
        self.evaluations += 1
        if self.differentiates:
            return _repeat_with_gradients(forward, through)
        try:
            with _one_kernel():
                return through(forward.closure)()
        except RuntimeError as error:
            # A gradient penalty, say: the baseline had a graph to differentiate, and this trial has none.
            if "does not require grad" not in str(error):
                raise
        self.differentiates = True
        forward.buffers.restore()
        forward.random.restore()
        return self._repeat(forward, through)

    def close(self) -> None:
        """End the step: the recorded losses belong to parameters that have changed."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ClosureContractError(
                "This Objective has served a step already, and what it recorded belongs to the parameters from before "
                "that step. Build a new armijo.Objective() for each step."
            )

    def restore_after_baseline(self) -> None:
        """Put generators and buffers where the baseline left them."""
        if self._after is not None:
            random, buffers = self._after
            for copies in buffers:
                copies.restore()
            random.restore()
            self._after = None

    def restore_before_baseline(self, *, generators: bool = True) -> None:
        """Put buffers, and generators if wanted, back to where they were before the first forward."""
        self.restore_after_baseline()
        for forward in reversed(self._forwards):
            forward.buffers.restore()
        if generators and self._forwards:
            self._forwards[0].random.restore()


def _fetch(scalars: Sequence[torch.Tensor]) -> list[float]:
    """The scalars as floats, with one wait for each device."""
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, scalar in enumerate(scalars):
        places.setdefault((scalar.device, scalar.dtype), []).append(place)
    found = [0.0] * len(scalars)
    devices: dict[torch.device, list[tuple[list[int], torch.Tensor]]] = {}
    for (device, _), chosen in places.items():
        wide = torch.float32 if device.type == "mps" else torch.float64
        stacked = torch.stack([scalars[place] for place in chosen]).to(wide)
        devices.setdefault(device, []).append((chosen, stacked))
    for parts in devices.values():
        numbers = torch.cat([stacked for _, stacked in parts]).tolist()
        for place, number in zip((place for chosen, _ in parts for place in chosen), numbers, strict=True):
            found[place] = number
    return found


def _versions(buffers: Buffers) -> tuple[tuple[torch.Tensor, int], ...]:
    # Sharded parameters are gathered into other tensors, and have counts of their own.
    parameters = (p for module in buffers.modules for p in module._parameters.values() if type(p) is Parameter)
    return tuple((parameter, parameter._version) for parameter in parameters)


def _repeat_with_gradients(forward: RecordedForward, through: Callable[[Closure], Closure]) -> torch.Tensor:
    with ExitStack() as stack:
        for module in forward.buffers.modules:
            if isinstance(module, DistributedDataParallel):
                # It would wait for the backward pass of this forward.
                stack.enter_context(module.no_sync())
        stack.enter_context(_one_kernel())
        stack.enter_context(torch.enable_grad())
        loss = through(forward.closure)()
        return loss.detach() if isinstance(loss, torch.Tensor) and loss is not forward.returned() else loss


@contextmanager
def _one_kernel() -> Iterator[None]:
    """Keep torch.nn's attention from taking another kernel where no gradients are computed: its results differ."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _check_loss(loss: object, *, graph: bool) -> None:
    remedy = (
        "Let the closure (a Trainer's compute_loss, a LightningModule's training_step) return the loss as computed: "
        "optimizer.step(lambda: criterion(model(inputs), labels))."
    )
    if not isinstance(loss, torch.Tensor):
        raise ClosureContractError(
            f"The closure returned {'nothing' if loss is None else f'a {type(loss).__name__}'} instead of a scalar "
            f"tensor. {remedy}"
        )
    if loss.numel() != 1:
        raise ClosureContractError(
            f"The closure returned a tensor of shape {tuple(loss.shape)}; a line search compares single numbers. "
            f"Reduce it, for instance with .mean(). {remedy}"
        )
    if not loss.is_floating_point():
        raise ClosureContractError(f"The closure returned a loss of {loss.dtype}; a line search compares real numbers.")
    if graph and not loss.requires_grad:
        raise ClosureContractError(
            "The loss that the closure returned has no graph to differentiate: it was detached, computed under "
            f"torch.no_grad(), or depends on no trainable parameter. {remedy} Under Lightning the module derives from "
            "ArmijoMixin (armijo.integrations.lightning) as well."
        )
