"""The one class that mutates: a torch optimizer whose step size is found by a search (layer L3)."""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, ParamsT
from torch.utils.hooks import RemovableHandle

from armijo.checks import FORMAT, SHARED, check_group, check_params, check_state, check_values
from armijo.components.merging import Merge, Merging
from armijo.components.partition import ByLabel, Component, Partition
from armijo.components.turns import Turn
from armijo.directions.base import Direction, ParameterState, Tensors
from armijo.errors import ClosureContractError, ConfigurationError, MissingClosureError
from armijo.evaluation.objective import Closure, Objective
from armijo.evaluation.reduction import ALONE, Reduction, aligned, local, shards
from armijo.interrupts import Interrupts
from armijo.report import ComponentReport, Observer, StepReport, Watch
from armijo.search.backtracking import Search
from armijo.search.criteria import Criterion
from armijo.search.guesses import Guess
from armijo.search.records import Line, Outcome, Status
from armijo.snapshot import Snapshot

__all__ = ["LineSearch"]

logger = logging.getLogger("armijo")

_HALF = (torch.float16, torch.bfloat16)
_LEAST_FACTOR = 1e-2
"""A smaller `lr` is a learning rate that somebody brought along."""


@dataclass(slots=True)
class _GroupMove:
    """What the search found out about one parameter group, and what the commit needs: nothing of it is state yet."""

    group: dict[str, Any]
    lr: float
    weight_decay: float
    kept: dict[torch.Tensor, ParameterState]
    """The state of each parameter that has a gradient, to be the optimizer's."""
    parameters: Tensors
    """Those parameters, as all tensors from here on this rank's part of them; so no direction knows of ranks."""
    grads: Tensors
    states: list[ParameterState]
    directions: Tensors
    parts: list[int]
    """In how many parts each parameter lies on the ranks."""


@dataclass(slots=True)
class _ComponentMove:
    """One component on its way through a step."""

    component: Component
    groups: list[_GroupMove]
    line: Line
    cap: float
    """The smallest `max_step_size` among its groups."""
    before: float
    """η as the component brings it along."""
    step_size: float
    """η to keep after the step."""
    applied: float
    """η to move with: `step_size`, or 0 to stay."""
    outcome: Outcome


class LineSearch(Optimizer):
    r"""A torch optimizer that finds its step sizes by searching.

    Each step evaluates the loss once with gradients, f_k(w_k), searches along the direction for a step size that the
    criterion accepts (each trial one forward without gradients), and only then moves everything together:

        w ← (1 - lr·η·λ)·w - lr·η·u        for each component, with its own η

    `SGDSLS`, `AdamSLS` and `PLASLS` are this class with chosen parts; use it directly to choose others.

    Args:
        params: parameters, parameter groups, or named parameters, as torch's optimizers take them. A group may hold
            "component", the label of the step size that it shares, and "step_size", the first η to try; every
            number below may be set per group.
        direction: where to go, for instance `Gradient()` or `Adam()`.
        criterion: which trials suffice, for instance `Armijo()`.
        search: which step sizes to try, for instance `Backtracking()` or `FixedStep(1e-3)`.
        guess: where each search starts, for instance `Growth()`.
        turn: which components are searched at a step: `Jointly()`, `Cycle()` or `EachInTurn()`.
        merging: which components become one, for instance `NeverMerge()`.
        partition: which groups share a step size: `ByLabel()` or `Together()`.
        lr: a multiplier of the found step size, ≥ 0, that any scheduler may drive. It acts on the move and not on the
            trials, which would undo it.
        weight_decay: λ ≥ 0, decoupled: w ← (1 - lr·η·λ)·w, outside the trials like `lr`.
        maximize: climb instead of descend. A line search judges one loss, so all groups must agree.
        max_step_size: an upper bound of η, > 0. A component obeys the smallest bound among its groups.
        process_group: the ranks over which the loss is a mean. By default it is that of the wrapped model
            (DistributedDataParallel, fully_shard), if it is one. Copies of the optimizer go back to the default.

    Raises:
        ConfigurationError: if an argument or a group cannot be used; no group is added then.

    Attributes:
        report: what the last step did, a `StepReport`; None before the first step.
        param_groups: each group holds "step_size" (η as last used) and "component" (its label).

    Examples:
        >>> import torch, armijo
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = armijo.LineSearch(
        ...     [weight], direction=armijo.Gradient(), criterion=armijo.Armijo(c=0.5), search=armijo.Backtracking(),
        ...     guess=armijo.Growth(initial=1.0), turn=armijo.Jointly(), merging=armijo.NeverMerge())
        >>> for _ in range(20):
        ...     loss = optimizer.step(lambda: (weight**2).sum())
        >>> bool(loss < 1e-6)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        direction: Direction,
        criterion: Criterion,
        search: Search,
        guess: Guess,
        turn: Turn,
        merging: Merging,
        partition: Partition = ByLabel(),  # noqa: B008 (frozen)
        lr: float = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        max_step_size: float = math.inf,
        process_group: Any = None,
    ) -> None:
        check_params(params, type(self).__name__)
        self.process_group = process_group
        self.direction = direction
        self.criterion = criterion
        self.search = search
        self.guess = guess
        self.turn = turn
        self.merging = merging
        self.partition = partition
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "max_step_size": max_step_size,
            "step_size": guess.initial,
            **direction.defaults(),
            **dict.fromkeys(SHARED, 0),
            "format": FORMAT,
        }
        super().__init__(params, defaults)
        self._start_watching()
        _warn_of_a_learning_rate(self.param_groups)

    # ------------------------------------------------------------------------------------------ what torch expects

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as `torch.optim.Optimizer.add_param_group` does.

        A group without "component" is a component of its own (where the partition goes by labels). One that joins a
        component takes its step size over.

        Raises:
            ConfigurationError: if the group's values are out of range; nothing is added then.
        """
        shared = {key: self.param_groups[0][key] for key in SHARED} if self.param_groups else {}
        param_group = {**param_group, **shared}
        before = index = len(self.param_groups)
        labels = {group["component"] for group in self.param_groups}
        while "component" not in param_group:
            if f"group {index}" not in labels:
                param_group["component"] = f"group {index}"
            index += 1
        given = "step_size" in param_group
        try:
            super().add_param_group(param_group)
            check_group(self.param_groups[-1], self.param_groups[0], self.direction)
            for component in self.partition.components([group["component"] for group in self.param_groups]):
                if before in component.groups[1:] and not given:
                    self.param_groups[before]["step_size"] = self.param_groups[component.groups[0]]["step_size"]
        except BaseException:
            del self.param_groups[before:]
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, as torch's optimizers do.

        Raises:
            ConfigurationError: if it is damaged, of a later version of armijo, or the state of another kind of
                optimizer or of other parameters; nothing is loaded then.
        """

        def check(_: object, saved: object) -> None:
            # torch adds "differentiable" to the defaults of an optimizer that has loaded once.
            needed = self.defaults.keys() - {"differentiable"} | {"component"}
            check_state(saved, self.param_groups, needed, self.direction, type(self).__name__)

        if not isinstance(state_dict, Mapping):
            check(self, state_dict)
        # Registered last, it sees what hooks registered before made of the state, as torch will.
        handle = self.register_load_state_dict_pre_hook(check)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        """Groups and state as torch keeps them, and the frozen parts."""
        parts = ("direction", "criterion", "search", "guess", "turn", "merging", "partition")
        return {**super().__getstate__(), **{part: getattr(self, part) for part in parts}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo `__getstate__`. Observers, like torch's hooks, are not carried by copies."""
        super().__setstate__(state)
        for moments in self.state.values():
            # A plain number is as good a count in a file; in memory torch's foreach wants tensors.
            if not isinstance(moments["step"], torch.Tensor):
                moments["step"] = torch.tensor(float(moments["step"]), dtype=torch.float32)
        # torch's load_state_dict comes by here too; who observes this very optimizer goes on observing.
        if "_observers" not in self.__dict__:
            self.process_group = None
            self._start_watching()

    # --------------------------------------------------------------------------------------------------- observing

    def _start_watching(self) -> None:
        self.report: StepReport | None = None
        self._looked_at_first_step = False
        self._reduction = ALONE
        self._observers: OrderedDict[int, Observer] = OrderedDict()  # a plain dict takes no weak reference
        self.register_observer(Watch(maximize=self.param_groups[0]["maximize"]))

    def register_observer(self, observer: Observer) -> RemovableHandle:
        """Call `observer(report)` after each step.

        Returns:
            A handle; `handle.remove()` ends the observation.

        Examples:
            >>> import torch, armijo
            >>> optimizer = armijo.AdamSLS([torch.nn.Parameter(torch.ones(1))])
            >>> handle = optimizer.register_observer(lambda report: print(report.step, report.forwards))
            >>> handle.remove()
        """
        handle = RemovableHandle(self._observers)
        self._observers[handle.id] = observer
        return handle

    # ---------------------------------------------------------------------------------------------------- stepping

    def step(self, closure: Closure | Objective | None = None) -> torch.Tensor | None:  # type: ignore[override]
        """Search for step sizes at the current parameters, then move.

        Whatever an evaluation raises, parameters, moments, generators, buffers and step sizes are afterwards as
        before the call; only the gradients may be gone. Ctrl-C reaches the closure and the backward pass at once, and
        waits anywhere else until the step is whole or undone.

        Args:
            closure: returns the scalar loss at the current parameters and does nothing else: no `zero_grad`, no
                `backward`. It runs once with gradients and once without for each trial. Or an `Objective`: then the
                gradients are already there, and the loss at the current parameters is not evaluated again.

        Returns:
            The loss f_k(w_k) at the *start* of the step, detached, shape (). None for `step(None)`.

        Raises:
            MissingClosureError: without a closure. (Only where every `lr` is 0 and every gradient None or zero is it
                allowed: it creates the state that distributed checkpointing wants to fill, and changes no number.)
            ClosureContractError: if the closure breaks its contract. Parameters that it changed in its first call are
                put back if this is the optimizer's first step; of later steps, of other parameters than those under
                search, and of an `Objective` there is no copy.
            ConfigurationError: if a value in a group is out of its range, if parameters have no shape yet (lazy
                modules), or for sparse gradients where the direction keeps moments.
        """
        if closure is None:
            self._create_state()
            return None
        if not callable(closure) and not isinstance(closure, Objective):
            raise ClosureContractError(
                f"step() was given a {type(closure).__name__} instead of a function that computes the loss. A search "
                "evaluates it several times: optimizer.step(lambda: criterion(model(inputs), labels))."
            )
        with Interrupts() as interrupts:
            loss = self._step(closure, interrupts)
        assert self.report is not None
        for observer in tuple(self._observers.values()):
            observer(self.report)
        return loss.detach().reshape(())

    def _step(self, closure: Closure | Objective, interrupts: Interrupts) -> torch.Tensor:
        if isinstance(closure, Objective):
            objective = closure
            # The forwards happened before this call, and that is where a failure leads back to.
            undo = objective.settle
            loss = objective.loss()
            if not any(p.grad is not None for p in self._parameters()):
                raise ClosureContractError(
                    "No parameter has a gradient. Call backward() on what objective.baseline(closure) returned before "
                    "optimizer.step(objective)."
                )
        else:
            objective = Objective(process_group=self.process_group)
            if self.process_group is None:
                # Should the closure fail before it comes to the model, the others must hear of it all the same.
                objective.reduction = self._reduction
            undo = objective.rewind
            loss = self._backward(objective, closure, interrupts)
        self._reduction = objective.reduction
        if not self._looked_at_first_step:
            self._looked_at_first_step = True
            _warn_of_half_precision(self.param_groups, loss)
            _warn_of_other_ranks(objective.reduction)
        with torch.no_grad():
            try:
                moves = self._search(objective, interrupts)
                turn, merge = self._decide(moves)
            except BaseException:
                undo()
                raise
            if moves[0].outcome.status is Status.NONFINITE:
                # The generators go on, or the same masks would meet the next batch; what the forward wrote into buffers
                # may be as broken as its loss.
                objective.rewind(generators=False)
                merges = ()
            else:
                objective.settle()
                merges = self._commit(moves, turn, merge)
            objective.close()
            self._share(forwards=self.param_groups[0]["forwards"] + objective.evaluations)
            # Under one outer autocast region the next forward would find the low-precision weights of this step.
            torch.clear_autocast_cache()
        self.report = self._describe(objective, moves, merges)
        return loss

    def _backward(self, objective: Objective, closure: Closure, interrupts: Interrupts) -> torch.Tensor:
        parameters = self._parameters()
        if any(is_lazy(parameter) for parameter in parameters):
            raise ConfigurationError(
                "The model has lazy modules, whose parameters have no shape yet. Run one forward before the first "
                "step: model(inputs)."
            )
        # A closure that changes parameters does so from the first step on; only then is a copy of them all worth it.
        start = [p.detach().clone() for p in parameters] if self.param_groups[0]["steps"] == 0 else None
        self.zero_grad(set_to_none=True)
        versions = self._versions()

        def forward() -> torch.Tensor:
            loss = objective.baseline(interrupts.let_through(closure))
            if any(p.grad is not None for p in parameters):
                raise ClosureContractError(
                    "The closure ran backward(), the habit that LBFGS asks for; here step() does that itself. Let the "
                    "closure return the loss only: optimizer.step(lambda: criterion(model(inputs), labels))."
                )
            self._check_unchanged(versions)
            return loss

        try:
            loss = objective.agreed(forward)
            with torch.enable_grad():
                interrupts.let_through(loss.backward)()
        except BaseException:
            objective.rewind()
            self.zero_grad(set_to_none=True)
            if start is not None and versions != self._versions():
                with torch.no_grad():
                    torch._foreach_copy_(parameters, start)
            raise
        return objective.loss()

    def _search(self, objective: Objective, interrupts: Interrupts) -> list[_ComponentMove]:
        """The search phase: everything is computed, nothing of the optimizer's is written."""
        groups: list[_GroupMove] = []

        def prepare() -> list[float]:
            for group in self.param_groups:
                check_values(group, self.direction)
            groups.extend(self._prepare(group) for group in self.param_groups)
            return _slopes(groups)

        slopes = objective.together(prepare, len(self.param_groups))
        components = self.partition.components([group["component"] for group in self.param_groups])
        value, resolution = objective.value(), objective.resolution()
        sign = -1.0 if self.param_groups[0]["maximize"] else 1.0
        moves: list[_ComponentMove] = []
        for component in components:
            own = [groups[index] for index in component.groups]
            line = Line(sign * value, _sum(slopes[index] for index in component.groups), resolution)
            before = float(own[0].group["step_size"])
            cap = min(float(group.group["max_step_size"]) for group in own)
            guess = min(self.guess.next(before, line), cap)
            moves.append(
                _ComponentMove(component, own, line, cap, before, guess, guess, Outcome(guess, Status.UNSEARCHED))
            )
        if not all(math.isfinite(number) for number in (value, *slopes)):
            for move in moves:
                move.step_size, move.outcome = move.before, Outcome(0.0, Status.NONFINITE)
            return moves
        shared = self.param_groups[0]
        # A user may have relabelled groups since the last step, so that fewer components are left.
        for block in self.turn.blocks(len(moves), shared["turn"] % len(moves), shared["steps"]):
            self._search_block(moves, block, objective, interrupts, sign)
        return moves

    def _search_block(
        self,
        moves: Sequence[_ComponentMove],
        places: Sequence[int],
        objective: Objective,
        interrupts: Interrupts,
        sign: float,
    ) -> None:
        """One search: the components of a block move with one scalar over given ratios, the others stay at w_k."""
        block = [moves[place] for place in places]
        first = max(move.step_size for move in block)
        ratios = [move.step_size / first for move in block]
        slope = _sum(ratio * move.line.slope for ratio, move in zip(ratios, block, strict=True))
        line = replace(block[0].line, slope=slope)
        tensors = {
            place: (
                [parameter for group in move.groups for parameter in group.parameters],
                [direction for group in move.groups for direction in group.directions],
            )
            for place, move in enumerate(block)
        }

        def own(step_size: float) -> list[float]:
            # The ratios respect the caps already, up to a rounding error.
            return [min(ratio * step_size, move.cap) for ratio, move in zip(ratios, block, strict=True)]

        with Snapshot(tensors) as snapshot:
            reach = snapshot.reach

            def evaluate(step_size: float) -> float:
                if step_size > reach:
                    return math.inf

                def move_and_look() -> list[float]:
                    snapshot.move(dict(enumerate(own(step_size))))
                    versions = self._versions()
                    loss = objective.own_trial(interrupts.let_through)
                    self._check_unchanged(versions)
                    return [loss]

                (loss,) = objective.together(move_and_look)
                return sign * loss if math.isfinite(loss) else math.inf

            outcome = self.search.search(line, first, evaluate, self.criterion)
        for move, step_size in zip(block, own(outcome.step_size), strict=True):
            move.outcome = outcome
            found = outcome.step_size > 0
            move.applied, move.step_size = (step_size, step_size) if found else (0.0, move.before)

    def _prepare(self, group: dict[str, Any]) -> _GroupMove:
        having = [p for p in group["params"] if p.grad is not None]
        grads = [local(self._gradient(p)) for p in having]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads)) if grads else grads
        kept = {p: self.state[p] if p in self.state else self._new_state(p) for p in having}
        states = [{key: local(tensor) for key, tensor in state.items()} for state in kept.values()]
        directions = self.direction.searched(grads, states, group) if having else []
        lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
        parameters, parts = [local(p) for p in having], [shards(p) for p in having]
        return _GroupMove(group, lr, weight_decay, kept, parameters, grads, states, directions, parts)

    def _gradient(self, parameter: torch.Tensor) -> torch.Tensor:
        grad = parameter.grad
        assert grad is not None
        if not grad.is_sparse:
            return aligned(grad.detach(), parameter)
        if self.direction.moments(parameter):
            raise ConfigurationError(
                f"{type(self).__name__} keeps moments and cannot use sparse gradients. Build the embedding with "
                "sparse=False, or use SGDSLS, which has none."
            )
        return grad.detach().coalesce().to_dense()

    def _new_state(self, parameter: torch.Tensor) -> ParameterState:
        return {"step": torch.tensor(0.0, dtype=torch.float32, device="cpu"), **self.direction.moments(parameter)}

    def _decide(self, moves: Sequence[_ComponentMove]) -> tuple[int, Merge | None]:
        """Whose turn is next and what merges: asked before anything is written, because a part may raise."""
        for move in moves:
            for found in move.groups:
                largest = min((torch.finfo(p.dtype).max for p in found.parameters), default=math.inf)
                if found.lr * move.applied > largest:
                    raise ConfigurationError(
                        f"The step size {found.lr * move.applied:.3g} of component {move.component.label!r} is more "
                        "than its parameters' number format can hold. Cap it with max_step_size."
                    )
        shared = self.param_groups[0]
        turn = self.turn.advance(len(moves), shared["turn"] % len(moves), shared["steps"])
        return turn, self.merging.propose([move.step_size for move in moves])

    def _commit(self, moves: Sequence[_ComponentMove], turn: int, merge: Merge | None) -> tuple[tuple[str, str], ...]:
        """The commit phase: nothing is evaluated or decided, nothing of the parameters' size is allocated."""
        for move in moves:
            for found in move.groups:
                found.group["step_size"] = move.step_size
                if not found.parameters:
                    continue
                self.state.update(found.kept)
                torch._foreach_add_([state["step"] for state in found.states], 1)
                applied = self.direction.commit(found.grads, found.states, found.directions, found.group)
                distance = found.lr * move.applied
                if distance == 0:
                    continue
                if found.weight_decay != 0:
                    torch._foreach_mul_(found.parameters, 1 - distance * found.weight_decay)
                torch._foreach_add_(found.parameters, applied, alpha=-distance)
        merges: tuple[tuple[str, str], ...] = ()
        if merge is not None:
            kept, absorbed = moves[merge.kept], moves[merge.absorbed]
            for found in (*kept.groups, *absorbed.groups):
                found.group["component"] = kept.component.label
                found.group["step_size"] = merge.step_size
            merges = ((kept.component.label, absorbed.component.label),)
            turn %= len(moves) - 1
        self._share(steps=self.param_groups[0]["steps"] + 1, turn=turn)
        return merges

    def _share(self, **numbers: int) -> None:
        for group in self.param_groups:
            group.update(numbers)

    def _describe(
        self, objective: Objective, moves: Sequence[_ComponentMove], merges: tuple[tuple[str, str], ...]
    ) -> StepReport:
        shared = self.param_groups[0]
        nonfinite = moves[0].outcome.status is Status.NONFINITE
        return StepReport(
            step=shared["steps"] + (1 if nonfinite else 0),
            loss=objective.value(),
            components=tuple(
                ComponentReport(
                    label=move.component.label,
                    status=move.outcome.status,
                    step_size=move.step_size,
                    slope=move.line.slope,
                    trials=move.outcome.trials,
                    trial_loss=move.outcome.loss,
                )
                for move in moves
            ),
            merges=merges,
            forwards=objective.evaluations,
            total_forwards=shared["forwards"],
        )

    def _create_state(self) -> None:
        """What `step(None)` may do: distributed checkpointing asks for state so, with lr = 0 and zero gradients."""
        parameters = self._parameters()
        if any(float(group["lr"]) != 0 for group in self.param_groups) or any(
            p.grad is not None and bool(p.grad.any()) for p in parameters
        ):
            raise MissingClosureError(
                f"{type(self).__name__}.step() needs a closure that evaluates the loss, because a line search tries "
                "several step sizes: optimizer.step(lambda: criterion(model(inputs), labels)). It runs zero_grad() and "
                "backward() itself. If something else owns the backward pass, pass an armijo.Objective; for the "
                "Hugging Face Trainer there are ArmijoTrainer and attach(trainer) in armijo.integrations.transformers, "
                "for Lightning ArmijoMixin in armijo.integrations.lightning."
            )
        for parameter in parameters:
            if parameter.requires_grad and parameter not in self.state:
                self.state[parameter] = self._new_state(parameter)

    def _parameters(self) -> Tensors:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _versions(self) -> list[tuple[int, int | None]]:
        """Torch's counters of in-place writes, to the parameters and to their gradients."""
        return [(p._version, None if p.grad is None else p.grad._version) for p in self._parameters()]

    def _check_unchanged(self, versions: list[tuple[int, int | None]]) -> None:
        now = self._versions()
        if [of_parameter for of_parameter, _ in versions] != [of_parameter for of_parameter, _ in now]:
            raise ClosureContractError(
                "The closure changed the parameters. It must only evaluate the loss at the parameters as they are: "
                "move updates and weight clipping behind optimizer.step(), and build embeddings without max_norm."
            )
        if versions != now:
            raise ClosureContractError(
                "The closure changed the gradients, from which the step is to be taken: leave out zero_grad() and "
                "backward(), step() runs both. optimizer.step(lambda: criterion(model(inputs), labels))."
            )


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # Half precision would lose the sum; float32 and float64 add up well enough in their own.
    if a.dtype in (torch.float16, torch.bfloat16):
        a, b = a.float(), b.float()
    return torch.dot(a.reshape(-1), b.reshape(-1).to(a.dtype))


def _slopes(groups: list[_GroupMove]) -> list[float]:
    """⟨g, d⟩ of each group, fetched with one wait for each device."""
    places: dict[torch.device, list[tuple[int, torch.Tensor]]] = {}
    for index, group in enumerate(groups):
        for grad, direction, parts in zip(group.grads, group.directions, group.parts, strict=True):
            # Where each rank has its part of the sum: what the ranks have is averaged.
            product = _dot(grad, direction) * parts if parts > 1 else _dot(grad, direction)
            places.setdefault(product.device, []).append((index, product))
    terms: list[list[float]] = [[] for _ in groups]
    for products in places.values():
        for (index, _), number in zip(products, _fetch([product for _, product in products]), strict=True):
            terms[index].append(number)
    return [_sum(numbers) for numbers in terms]


def _fetch(scalars: list[torch.Tensor]) -> list[float]:
    wide = torch.float32 if scalars[0].device.type == "mps" else torch.float64
    return torch.stack([scalar.to(wide) for scalar in scalars]).tolist()


def _sum(numbers: Iterable[float]) -> float:
    # math.fsum raises where infinities of both signs meet; here that is a NaN like any other.
    return sum(numbers, 0.0)


def _warn_of_a_learning_rate(groups: Sequence[dict[str, Any]]) -> None:
    factors = [factor for group in groups if 0 < (factor := float(group["lr"])) < _LEAST_FACTOR]
    if factors:
        logger.warning(
            "lr is %g. It is no learning rate here, but multiplies each step size that the search finds, so that the "
            "model hardly moves. Leave it out; what bounds the step sizes is max_step_size.",
            min(factors),
        )


def _warn_of_half_precision(groups: Sequence[dict[str, Any]], loss: torch.Tensor) -> None:
    dtypes = Counter(parameter.dtype for group in groups for parameter in group["params"])
    half = [dtype for dtype in dtypes if dtype in _HALF]
    if half:
        logger.warning(
            "%d of %d parameters are %s. A line search compares losses at weights that differ by little, and so few "
            "digits show neither the move nor the decrease. Keep the weights in float32 (model.float()) and run the "
            "forward under torch.autocast, with the loss computed in float32.",
            sum(dtypes[dtype] for dtype in half),
            sum(dtypes.values()),
            " and ".join(_name(dtype) for dtype in half),
        )
    if loss.dtype in _HALF and math.isfinite(value := abs(float(loss))):
        logger.warning(
            "The loss is %s: near %.3g it moves in steps of %.1g, and a line search cannot see a smaller decrease. "
            "Compute it in float32: criterion(logits.float(), labels).",
            _name(loss.dtype),
            value,
            torch.finfo(loss.dtype).eps * 2.0 ** (math.frexp(value)[1] - 1),
        )


def _warn_of_other_ranks(reduction: Reduction) -> None:
    from torch import distributed

    if reduction.groups or not (distributed.is_available() and distributed.is_initialized()):
        return
    ranks = distributed.get_world_size()
    if ranks > 1:
        logger.warning(
            "torch.distributed runs on %d ranks, and the model is wrapped neither in DistributedDataParallel nor by "
            "fully_shard: this rank searches on its own loss. If the ranks train one model, pass "
            "process_group=torch.distributed.group.WORLD to the optimizer, or they will drift apart.",
            ranks,
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
