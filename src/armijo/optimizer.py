"""LineSearch: torch's optimizer contract. What a step does is in `armijo.step`."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, ParamsT
from torch.utils.hooks import RemovableHandle

from armijo.checks import FORMAT, SHARED, check_group, check_moments, check_params, check_state
from armijo.components.merging import Merging, NeverMerge
from armijo.components.partition import ByLabel, Component, Partition, check_components
from armijo.components.selection import Jointly, Selection
from armijo.directions.adam import AdamDirection
from armijo.directions.base import Direction, Workspace
from armijo.errors import ClosureContractError, ConfigurationError, MissingClosureError
from armijo.evaluation.objective import Closure, Objective
from armijo.evaluation.reduction import ALONE
from armijo.families import check_part
from armijo.interrupts import Interrupts
from armijo.observers.health import HealthMonitor
from armijo.observers.report import Observer, StepReport
from armijo.search.backtracking import Backtracking
from armijo.search.base import Search
from armijo.search.memory import Memory, combine_memory, copy_memory
from armijo.snapshot import Copies
from armijo.step.guards import BetweenStepsWatch, parameters_of
from armijo.step.lines import fresh_state
from armijo.step.step import take_step
from armijo.step.warnings import warn_about_learning_rate

__all__ = ["LineSearch"]

_PARTS = ("direction", "search", "selection", "merging", "partition")

_OWN_MEMORY = {"failed_searches": 0}
"""What the optimizer itself remembers of each component: how many searches have failed since one that did not."""
_TAKEN = {"params", "component", "param_names", "differentiable", "initial_lr", *_OWN_MEMORY}
"""Keys of a group that mean something to torch's optimizers."""
_DRIVEN = {"min_lr", "max_lr", "swa_lr", "momentum", "base_momentum", "max_momentum"}
"""Keys that torch's schedulers write: a direction may have them driven, but nothing can be remembered there."""


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
        direction: where to go, for instance `AdamDirection()` or `GradientDirection()`.
        search: which step sizes to try, from which first one, and which suffice, for instance
            `Backtracking(Armijo(0.5), Growth(0.1))` or `FixedStep(1e-3)`.
        selection: which components are searched at a step: `Jointly()`, `Cycle()`, `EachAlone()` or `Every(3)`.
        merging: which components become one: `NeverMerge()`, `MergeSmallest()` or `MergeNeighbours()`.
        partition: which groups share a step size: `ByLabel()` or `Together()`.
        lr: a multiplier of the found step size, ≥ 0, that any scheduler may drive. It acts on the move and not on the
            trials, which would undo it.
        weight_decay: λ ≥ 0, decoupled: w ← (1 - lr·η·λ)·w, outside the trials like `lr`.
        maximize: increase the objective instead of decreasing it. A line search judges one loss, so all groups must
            agree.
        max_step_size: an upper bound of η, > 0. A component obeys the smallest bound among its groups. In a joint
            search no component lengthens its first step size once one is at its bound, because ratios are kept.
        process_group: the ranks over which the loss is a mean. By default it is that of the wrapped model
            (DistributedDataParallel, fully_shard), if it is one. Copies of the optimizer go back to the default.

    Raises:
        ConfigurationError: if an argument or a group cannot be used; no group is added then.

    Attributes:
        report: what the last step did, a `StepReport`; None before the first step.
        components: the components as they are now.
        param_groups: each group holds "step_size" (η as last used), "component" (its label), "failed_searches" (how
            many of its searches have failed since one that did not), and what the parts remember.

    Examples:
        >>> import torch, armijo
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = armijo.LineSearch(
        ...     [weight],
        ...     direction=armijo.GradientDirection(),
        ...     search=armijo.Backtracking(criterion=armijo.Armijo(c=0.5), guess=armijo.Growth(initial=1.0)),
        ... )
        >>> for _ in range(20):
        ...     loss = optimizer.step(lambda: (weight**2).sum())
        >>> bool(loss < 1e-6)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        direction: Direction = AdamDirection(),
        search: Search = Backtracking(),
        selection: Selection = Jointly(),
        merging: Merging = NeverMerge(),
        partition: Partition = ByLabel(),
        lr: float = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        max_step_size: float = math.inf,
        process_group: Any = None,
    ) -> None:
        check_params(params, type(self).__name__)
        self.process_group = process_group
        self.direction = direction
        self.search = search
        self.selection = selection
        self.merging = merging
        self.partition = partition
        for part in _PARTS:
            check_part(part, getattr(self, part), type(self).__name__)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "max_step_size": max_step_size,
            "step_size": search.initial_step_size(),
            **dict.fromkeys(SHARED, 0),
            "format": FORMAT,
        }
        memory = combine_memory(search, selection, merging)
        for names, reserved in ((direction.defaults(), _TAKEN), (memory, _TAKEN | _DRIVEN)):
            if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names):
                raise ConfigurationError(
                    f"{direction!r}.defaults() returned {names!r}. It must return a dict of hyperparameters by name."
                )
            taken = sorted(names.keys() & {*defaults, *reserved})
            if taken:
                raise ConfigurationError(
                    f"A part names {', '.join(taken)} in its defaults(), which means something else in a parameter "
                    "group. Choose another name."
                )
            defaults |= names
        super().__init__(params, defaults | _OWN_MEMORY)
        self._start_observing()
        # A scheduler hands on the lr from here, of which one warning is enough.
        self._warned_of_schedulers = warn_about_learning_rate(self.param_groups)

    @property
    def components(self) -> tuple[Component, ...]:
        """The components, in order of their places: the label and the indices into `param_groups` of each."""
        labels = [group["component"] for group in self.param_groups]
        return check_components(self.partition, self.partition.components(labels), len(labels))

    @property
    def memory_defaults(self) -> Memory:
        """What the optimizer and its parts remember in each parameter group, by key, with its first values."""
        return {**_OWN_MEMORY, **combine_memory(self.search, self.selection, self.merging)}

    @property
    def _alike(self) -> tuple[str, ...]:
        """What of the memory is one for the optimizer, alike in every group."""
        return (*self.selection.defaults(), *self.merging.defaults())

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, unless it is a part: groups and state are laid out for the parts."""
        if name in _PARTS and name in self.__dict__:
            raise ConfigurationError(
                f"The {name} of an optimizer cannot be exchanged. Build another optimizer with the new one"
                + (" and new moments." if name == "direction" else ", and load this one's state_dict() into it.")
            )
        super().__setattr__(name, value)

    # ------------------------------------------------------------------------------------------ what torch expects

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as `torch.optim.Optimizer.add_param_group` does.

        A group without "component" is a component of its own, if components are made of labels (`ByLabel`). One that
        joins a component takes over its step size and what the search remembers for it.

        Raises:
            ConfigurationError: if the group's values are out of range; nothing is added then.
        """
        shared = (*SHARED, *self._alike)
        before = index = len(self.param_groups)
        labels = {group["component"] for group in self.param_groups}
        param_group = {**param_group, **({key: self.param_groups[0][key] for key in shared} if before else {})}
        while "component" not in param_group:
            if f"group {index}" not in labels:
                param_group["component"] = f"group {index}"
            index += 1
        inherited = [name for name in ("step_size", *_OWN_MEMORY, *self.search.defaults()) if name not in param_group]
        try:
            super().add_param_group(param_group)
            added = self.param_groups[-1]
            check_group(added, self.param_groups[0], self.direction, self.memory_defaults)
            check_moments(self.direction, added["params"])
            for component in self.components:
                if before in component.groups[1:]:
                    first = self.param_groups[component.groups[0]]
                    added.update({name: first[name] for name in inherited})
            # No two groups hold the same list.
            added.update(copy_memory(added, self.memory_defaults))
        except BaseException:
            del self.param_groups[before:]
            raise

    def state_dict(self) -> dict[str, Any]:
        """The state as torch's optimizers write it: parameters by number, groups with their step sizes."""
        # Reading optimizer.state[parameter] leaves an empty state there, which in a file would be a damage.
        for parameter in [parameter for parameter, state in self.state.items() if not state]:
            del self.state[parameter]
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, as torch's optimizers do.

        What the parts of this optimizer remember and the state lacks, because it was saved with other parts, starts
        anew.

        Raises:
            ConfigurationError: if it is damaged, of another format, or the state of another kind of optimizer or of
                other parameters; nothing is loaded then.
        """

        def check(_: object, saved: Any) -> Any:
            memory = self.memory_defaults
            # torch adds "differentiable" to the defaults of an optimizer that has loaded once.
            needed = self.defaults.keys() - {"differentiable"} - memory.keys() | {"component"}
            check_state(saved, self.param_groups, needed, self.direction, memory, self._alike, type(self).__name__)
            groups = [{**copy_memory(memory), **group} for group in saved["param_groups"]]
            return {**saved, "param_groups": groups}

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
        return {**super().__getstate__(), **{part: getattr(self, part) for part in _PARTS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo `__getstate__`. Observers, like torch's hooks, are not carried by copies."""
        super().__setstate__(state)
        for moments in self.state.values():
            # A file may hold a plain number; in memory torch's foreach wants tensors.
            if moments and not isinstance(moments["step"], torch.Tensor):
                moments["step"] = torch.tensor(float(moments["step"]), dtype=torch.float32)
        # torch's load_state_dict calls this too, for an optimizer that keeps its observers.
        if "_observers" not in self.__dict__:
            self.process_group = None
            self._start_observing()

    # --------------------------------------------------------------------------------------------------- observing

    def _start_observing(self) -> None:
        self.report: StepReport | None = None
        self._warned = False
        self._warned_of_schedulers = False
        self._differentiates = False
        self._watch = BetweenStepsWatch()
        self._copies = Copies()
        self._workspace = Workspace()
        self._reduction = ALONE
        self._observers: OrderedDict[int, Observer] = OrderedDict()  # a plain dict takes no weak reference
        self.register_observer(HealthMonitor(maximize=self.param_groups[0]["maximize"]))

    def register_observer(self, observer: Observer) -> RemovableHandle:
        """Call `observer(report)` after each step. Copies of the optimizer have no observers.

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
        before the call; only the gradients may be gone. Ctrl-C interrupts the closure and the backward pass at once;
        anywhere else it waits until the step is finished or undone.

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
                modules), for sparse gradients where the direction keeps moments, or if a part answers with something
                that cannot be used.
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
            result = take_step(self, closure, interrupts, self._reduction)
            self.report, self._reduction = result.report, result.reduction
        for observer in tuple(self._observers.values()):
            observer(result.report)
        return result.loss.detach().reshape(())

    def _create_state(self) -> None:
        """Create empty state, as distributed checkpointing asks for it: with lr = 0 and zero gradients."""
        parameters = parameters_of(self.param_groups)
        if any(float(group["lr"]) != 0 for group in self.param_groups) or any(
            p.grad is not None and bool(p.grad.any()) for p in parameters
        ):
            raise MissingClosureError(
                f"{type(self).__name__}.step() needs a closure that evaluates the loss, because a line search tries "
                "several step sizes: optimizer.step(lambda: criterion(model(inputs), labels)). It runs zero_grad() and "
                "backward() itself. If your loop runs backward() itself, pass an armijo.Objective; for the Hugging "
                "Face Trainer there are ArmijoTrainer and attach(trainer) in armijo.integrations.transformers, for "
                "Lightning ArmijoMixin in armijo.integrations.lightning."
            )
        for parameter in parameters:
            if parameter.requires_grad and not self.state.get(parameter):
                self.state[parameter] = fresh_state(self.direction, parameter)
