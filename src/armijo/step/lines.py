"""From gradients to lines: directions and slopes of each component, before anything is searched."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from armijo.checks import check_maximize, check_values
from armijo.components.partition import Component
from armijo.directions.base import Direction, ParameterState, Tensors, Workspace
from armijo.directions.kernel import Kernel, StoredKernel, StoredVectors, Term, dot
from armijo.errors import ConfigurationError
from armijo.evaluation.objective import Objective
from armijo.evaluation.reduction import align_gradient, count_shards, local_shard
from armijo.search.memory import Memory, copy_memory
from armijo.search.values import Derivatives, Line
from armijo.snapshot import Ray, Snapshot

if TYPE_CHECKING:
    from armijo.optimizer import LineSearch

__all__ = ["ComponentLine", "GroupLine", "Moves", "compute_lines", "fresh_state", "largest_number", "loss_sign"]

_TINY = sys.float_info.min
"""A slope below it counts as none, whatever the search's least one is."""

Moves = Mapping[int, tuple[float, Ray]]
"""How far and along what the parameters of each group move, by the group's index, as `Snapshot.move` takes it."""


@dataclass(frozen=True, slots=True)
class GroupLine:
    """One parameter group before the search. Nothing of it is the optimizer's state yet.

    All lists are over the parameters that have a gradient. Tensors are this rank's shards, so directions need not
    handle ranks.

    Args:
        group: the parameter group.
        lr: the multiplier of the step size.
        weight_decay: λ.
        kept: the state of each parameter, unsharded; it becomes the optimizer's in the commit.
        parameters: the parameters.
        grads: their gradients, negated where the optimizer maximizes.
        states: their states.
        kernel: computes the search directions, and takes the step.
        probes: the direction's probes.
        past: the direction's past gradients.
        shards: the number of shards of each parameter.
        new: whether the optimizer has no state yet of one of the parameters.
        idle: the states of parameters that have one but no gradient.
    """

    group: dict[str, Any]
    lr: float
    weight_decay: float
    kept: dict[torch.Tensor, ParameterState]
    parameters: Tensors
    grads: Tensors
    states: list[ParameterState]
    kernel: Kernel
    probes: Mapping[str, StoredVectors]
    past: tuple[Tensors, ...]
    shards: list[int]
    new: bool
    idle: list[ParameterState]

    def preview_updates(self, direction: Direction, places: Iterable[int] | None = None) -> Tensors:
        """The updates that the commit will apply, of all parameters or of some, computed from copies of the moments."""
        chosen = range(len(self.parameters)) if places is None else tuple(places)
        if not chosen:
            return []
        states = [{key: value.clone() for key, value in self.states[i].items()} for i in chosen]
        torch._foreach_add_([state["step"] for state in states], 1)
        grads = [self.grads[i] for i in chosen]
        before = [self.states[i] for i in chosen]
        scratch = [vector.clone() for vector in direction.search_direction(grads, before, self.group)]
        return direction.update(grads, states, scratch, self.group)

    def probe_terms(self, name: str) -> list[torch.Tensor]:
        """What adds up to ⟨g, v⟩ for the probe v of that name."""
        products = zip(self.grads, self.probes[name].vectors, self.shards, strict=True)
        return [dot(g, v) * shards if shards > 1 else dot(g, v) for g, v, shards in products]

    def ray(self, along: str | None = None) -> Ray:
        """The way along the search direction, or along the probe of that name."""
        return self.kernel if along is None else self.probes[along]

    def check_update(self, direction: Direction) -> None:
        """Try what the commit will call on copies of a few states: of each number of dimensions the smallest parameter.

        Raises:
            ConfigurationError: `direction.update` does not return one finite tensor of the parameter's shape.
        """
        smallest: dict[int, int] = {}
        for i, parameter in enumerate(self.parameters):
            kept = smallest.setdefault(parameter.ndim, i)
            if parameter.numel() < self.parameters[kept].numel():
                smallest[parameter.ndim] = i
        for i in smallest.values():
            state = {key: value.clone() for key, value in self.states[i].items()}
            updates = self.preview_updates(direction, [i])
            _check_shapes(direction, "update", updates, [self.parameters[i]])
            if not bool(updates[0].isfinite().all()):
                raise ConfigurationError(
                    f"{direction!r}.update returned numbers that are not finite, for a gradient that is. Look for a "
                    "division by zero or a root of a negative number."
                )
            direction.record_step([state], updates, 1.0)


@dataclass(frozen=True, slots=True)
class ComponentLine:
    """One component before the search.

    Args:
        component: its label and groups.
        groups: its groups' directions.
        line: the loss at w_k and the component's own slope, which is NaN where none was needed.
        finite: whether loss, gradients and slope are.
        cap: the smallest `max_step_size` of its groups.
        reach: the largest step size that its parameters' number formats can hold.
        previous: η as the component last used it.
        first: η to try first, at most `cap`.
        memory: a copy of what the search remembers for this component; written to the groups in the commit.
        failed_searches: how many of its searches have failed since one that did not.
    """

    component: Component
    groups: tuple[GroupLine, ...]
    line: Line
    finite: bool
    cap: float
    reach: float
    previous: float
    first: float
    memory: Memory
    failed_searches: int

    @property
    def parameters(self) -> dict[int, Tensors]:
        """Its parameters that have a gradient, by group."""
        return {index: group.parameters for index, group in self._indexed()}

    def moves(self, step_size: float, along: str | None = None) -> Moves:
        """A move by η along the search direction, or along the probe of that name."""
        if along is not None and any(along not in group.probes for group in self.groups):
            names = sorted({name for group in self.groups for name in group.probes})
            raise ConfigurationError(
                f"The search evaluates along {along!r}, which the direction does not provide (its probes: "
                f"{', '.join(names) or 'none'}). Use direction=KeepLastStep(...) for 'last_step'."
            )
        return {index: (step_size, group.ray(along)) for index, group in self._indexed()}

    def preview_moves(self, step_size: float, direction: Direction) -> Moves:
        """The move by lr·η·u, as the commit will make it, computed from copies of the moments."""
        return {
            index: (step_size, StoredVectors([u * group.lr for u in group.preview_updates(direction)]))
            for index, group in self._indexed()
        }

    def _indexed(self) -> Iterator[tuple[int, GroupLine]]:
        return zip(self.component.groups, self.groups, strict=True)


def compute_lines(
    optimizer: LineSearch,
    objective: Objective,
    snapshot: Snapshot,
    slopes_needed: bool,
    exact: bool,
    block: tuple[int, ...],
) -> list[ComponentLine]:
    """The line of each component, by place. The means are over all ranks.

    One host synchronisation, and a second where the estimate of a slope is doubtful.

    Where the first trial of `block` is known before its slope, its parameters are there afterwards.

    Args:
        optimizer: the optimizer, whose gradients are in place.
        objective: the loss, at its baseline.
        snapshot: moves the parameters.
        slopes_needed: whether there is to be a search, or the search wants every step; otherwise slopes may be missing
            (NaN).
        exact: whether slopes may not be estimates: whether there is to be a search.
        block: the places that are expected to be searched first, if any.

    Raises:
        ConfigurationError: a value in a group is out of its range, a gradient is sparse and the direction has
            moments, or a part answers with something that cannot be used.
    """
    groups: list[GroupLine] = []
    components = optimizer.components
    direction, first = optimizer.direction, optimizer.param_groups[0]
    probe_names = tuple(direction.probes([], first) or ())
    past_names = tuple(direction.past_gradients([], first) or ())

    def prepare() -> list[list[torch.Tensor]]:
        memory = optimizer.memory_defaults
        for group in optimizer.param_groups:
            check_values(group, optimizer.direction, memory)
            check_maximize(group, optimizer.param_groups[0])
        groups.extend(_prepare(optimizer, group, probe_names, past_names) for group in optimizer.param_groups)
        ahead = _expected_moves(optimizer, groups, [components[place] for place in block]) if _apart(groups) else {}
        terms: list[list[list[torch.Tensor]]] = []
        flags: list[list[torch.Tensor]] = []
        for index, group in enumerate(groups):
            estimates = group.kernel.estimates(group.past) if may_estimate else None
            flags.append([torch.tensor(1.0)] if estimates is not None else [])
            if estimates is not None:
                terms.append(_over_shards(group, estimates))
            else:
                terms.append(_slope_terms(index, group, snapshot, slopes_needed, ahead.get(index)))
        along = [each[i] for i in range(1 + len(past_names)) for each in terms]
        along += [group.probe_terms(name) for name in probe_names for group in groups]
        return along + flags if may_estimate else along

    may_estimate = slopes_needed and not exact
    n_groups = len(optimizer.param_groups)
    numbers = objective.value_with(
        prepare, n_groups * (1 + len(past_names) + len(probe_names) + (1 if may_estimate else 0))
    )
    slopes, *derivatives = (numbers[start : start + n_groups] for start in range(0, len(numbers), n_groups))
    value, resolution = loss_sign(optimizer) * objective.value(), objective.resolution()
    least = float(getattr(optimizer.search, "least_slope", 0.0))
    if may_estimate:
        estimated = derivatives.pop()
        # A sparse gradient may have been missed. All ranks see these numbers, and look again or do not.
        doubtful = [index for index in range(n_groups) if estimated[index] and slopes[index] < max(least, _TINY)]
        if doubtful and math.isfinite(value):
            _look_again(objective, groups, doubtful, [slopes, *derivatives[: len(past_names)]])
    names = optimizer.search.defaults()
    lines: list[ComponentLine] = []
    for component in components:
        members = tuple(groups[index] for index in component.groups)
        cap = min(float(member.group["max_step_size"]) for member in members)
        reach = min(largest_number(member.parameters) for member in members)
        line = Line(
            loss=value,
            slope=sum((slopes[index] for index in component.groups), 0.0),
            resolution=resolution,
            longest=min(cap, reach),
            derivatives=Derivatives(
                {
                    name: sum((along[index] for index in component.groups), 0.0)
                    for name, along in zip(past_names + probe_names, derivatives, strict=True)
                }
            ),
        )
        finite = line.finite
        if not slopes_needed and any(member.kernel.sums_gradients for member in members):
            slope, finite = _without_slope(objective, line, members)
            line = replace(line, slope=slope)
        previous = float(members[0].group["step_size"])
        memory = copy_memory(members[0].group, names)
        failed = members[0].group["failed_searches"]
        lines.append(ComponentLine(component, members, line, finite, cap, reach, previous, previous, memory, failed))
    if not slopes_needed or not all(each.finite for each in lines):
        return [replace(each, first=min(each.previous, each.cap)) for each in lines]
    lines = _among_others(lines, least)
    return [replace(each, first=min(_first_step_size(optimizer, each), each.cap)) for each in lines]


def _slope_terms(
    index: int, group: GroupLine, snapshot: Snapshot, slopes_needed: bool, ahead: float | None
) -> list[list[torch.Tensor]]:
    """What adds up to ⟨g, d⟩ of a group, and to ⟨h, d⟩ of its past gradients.

    Where no slope is needed and that is enough, what adds up to the sum of its gradients.
    """
    kernel = group.kernel
    if not slopes_needed and kernel.sums_gradients:
        return [kernel.sums(), *([] for _ in group.past)]
    past = group.past
    terms = kernel.slopes(past) if ahead is None else snapshot.move_ahead(index, group.parameters, ahead, kernel, past)
    return _over_shards(group, terms)


def _over_shards(group: GroupLine, terms: list[list[Term]]) -> list[list[torch.Tensor]]:
    # Each rank has a shard of the sum, and what the ranks have is averaged.
    return [[term * group.shards[i] if group.shards[i] > 1 else term for i, term in each] for each in terms]


def _look_again(
    objective: Objective, groups: Sequence[GroupLine], chosen: Sequence[int], numbers: Sequence[list[float]]
) -> None:
    """Write the exact slopes of some groups, and along their past gradients, over their estimates in `numbers`."""

    def terms() -> list[list[torch.Tensor]]:
        exact = [_over_shards(groups[index], groups[index].kernel.slopes(groups[index].past)) for index in chosen]
        return [each[i] for i in range(len(numbers)) for each in exact]

    found = iter(objective.value_with(terms, len(numbers) * len(chosen)))
    for row in numbers:
        for index in chosen:
            row[index] = next(found)


def _among_others(lines: Sequence[ComponentLine], least: float) -> list[ComponentLine]:
    """The lines, with the number of components that move together and the mean of their step sizes."""
    moving = [each for each in lines if each.line.slope >= max(least, _TINY)]
    free = [math.log(each.previous) for each in moving if each.previous < each.cap and not each.failed_searches]
    mean = math.exp(sum(free) / len(free)) if len(free) > 1 else None
    n = max(len(moving), 1)
    return [replace(each, line=replace(each.line, components=n, mean_step_size=mean)) for each in lines]


def _apart(groups: Sequence[GroupLine]) -> bool:
    """Whether no two parameters lie in one piece of memory: then one may be moved before another is copied."""
    places = [p.untyped_storage().data_ptr() for group in groups for p in group.parameters if p.numel()]
    return len(places) == len(set(places))


def _expected_moves(optimizer: LineSearch, groups: Sequence[GroupLine], block: Sequence[Component]) -> dict[int, float]:
    """The step size of each group at the first trial of a block, if they are known before the lines."""
    sizes, caps = [], []
    for component in block:
        members = [groups[index] for index in component.groups]
        memory = copy_memory(members[0].group, optimizer.search.defaults())
        expected = optimizer.search.expected_step_size(float(members[0].group["step_size"]), memory)
        if not (isinstance(expected, Real) and 0 < expected < math.inf):
            return {}
        caps.append(min(float(member.group["max_step_size"]) for member in members))
        sizes.append(min(float(expected), caps[-1]))
        if any(sizes[-1] > largest_number(member.parameters) for member in members):
            return {}
    first = max(sizes, default=0.0)
    # As a block computes them, to the last bit.
    moves = [min(size / first * first, cap) for size, cap in zip(sizes, caps, strict=True)]
    return {index: move for component, move in zip(block, moves, strict=True) for index in component.groups}


def _without_slope(objective: Objective, line: Line, members: Sequence[GroupLine]) -> tuple[float, bool]:
    """The slope where sums of gradients stand for it, and whether all is finite: 0 for gradients of zero, else NaN."""
    if line.finite and line.slope != 0:
        return math.nan, True
    if not math.isfinite(line.loss) or not all(map(math.isfinite, line.derivatives.values())):
        return math.nan, False
    # A sum of exactly 0, or one that has overflowed, is rare: only then it is worth another look, on all ranks alike.
    grads = [grad for member in members for grad in member.grads]
    moving, broken = objective.mean_over_ranks(
        lambda: [
            float(any(bool(grad.any()) for grad in grads)),
            float(not all(bool(grad.isfinite().all()) for grad in grads)),
        ],
        2,
    )
    return math.nan if moving else 0.0, not broken


def loss_sign(optimizer: LineSearch) -> float:
    """-1 where the optimizer maximizes: searches see the negated loss."""
    return -1.0 if optimizer.param_groups[0]["maximize"] else 1.0


def largest_number(parameters: Tensors) -> float:
    """The largest number that the formats of all parameters can hold."""
    return min((torch.finfo(dtype).max for dtype in {p.dtype for p in parameters}), default=math.inf)


def _first_step_size(optimizer: LineSearch, each: ComponentLine) -> float:
    first = optimizer.search.first_step_size(each.previous, each.line, each.memory)
    if not (isinstance(first, Real | torch.Tensor) and 0 < float(first) < math.inf):
        raise ConfigurationError(
            f"{optimizer.search!r} starts at the step size {first}, after {each.previous}. A first step size must be a "
            "positive number, and finite."
        )
    return float(first)


def fresh_state(direction: Direction, parameter: torch.Tensor) -> ParameterState:
    """The state of a parameter that has made no step: `step`, and the direction's moments."""
    return {"step": torch.tensor(0.0, dtype=torch.float32, device="cpu"), **direction.moments(parameter)}


def _prepare(
    optimizer: LineSearch, group: dict[str, Any], probe_names: tuple[str, ...], past_names: tuple[str, ...]
) -> GroupLine:
    direction = optimizer.direction
    parameters = [p for p in group["params"] if p.grad is not None]
    grads = [local_shard(_gradient(optimizer, p)) for p in parameters]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads)) if grads else grads
    # Reading optimizer.state[p] leaves an empty state there.
    kept = {p: optimizer.state.get(p) or fresh_state(direction, p) for p in parameters}
    for parameter, state in kept.items():
        _check_format(direction, parameter, state)
    states = [{key: local_shard(tensor) for key, tensor in state.items()} for state in kept.values()]
    local = [local_shard(p) for p in parameters]
    probes, past = direction.probes(states, group), direction.past_gradients(states, group)
    for method, found, names in (("probes", probes, probe_names), ("past_gradients", past, past_names)):
        if not isinstance(found, Mapping) or tuple(found) != names:
            raise ConfigurationError(
                f"{direction!r}.{method} names {', '.join(map(str, found or ())) or 'none'} for a parameter group, and "
                f"{', '.join(names) or 'none'} for no parameters. The names must be the same each time."
            )
        for vectors in found.values():
            _check_shapes(direction, method, vectors, grads)
    idle = [state for p in group["params"] if p.grad is None and (state := optimizer.state.get(p))]
    return GroupLine(
        group=group,
        lr=float(group["lr"]),
        weight_decay=float(group["weight_decay"]),
        kept=kept,
        parameters=local,
        grads=grads,
        states=states,
        kernel=_kernel(direction, local, grads, states, group, optimizer._workspace),
        probes={name: StoredVectors(vectors) for name, vectors in probes.items()},
        past=tuple(past.values()),
        shards=[count_shards(p) for p in parameters],
        new=any(not optimizer.state.get(p) for p in parameters),
        idle=[{key: local_shard(tensor) for key, tensor in state.items()} for state in idle],
    )


def _kernel(
    direction: Direction,
    parameters: Tensors,
    grads: Tensors,
    states: list[ParameterState],
    group: dict[str, Any],
    workspace: Workspace,
) -> Kernel:
    if kernel := direction.kernel(parameters, grads, states, group, workspace) if parameters else None:
        return kernel
    directions = direction.search_direction(grads, states, group) if parameters else []
    _check_shapes(direction, "search_direction", directions, grads)
    return StoredKernel(direction, grads, states, group, directions)


def _check_format(direction: Direction, parameter: torch.Tensor, state: ParameterState) -> None:
    """Refuse moments of a parameter whose number format has changed: the commit would fail half-way."""
    if all(moment.dtype == parameter.dtype for name, moment in state.items() if name != "step"):
        return
    # A direction may keep its moments in another format than the parameter's.
    for name, fresh in direction.moments(parameter.new_empty([0] * parameter.ndim)).items():
        if state[name].dtype != fresh.dtype:
            raise ConfigurationError(
                f"A parameter is {parameter.dtype} now, and its {name} {state[name].dtype}: the model was converted "
                "after a step. Convert the optimizer too: optimizer.load_state_dict(optimizer.state_dict())."
            )


def _check_shapes(direction: Direction, method: str, answer: Any, like: Tensors) -> None:
    # A tensor is a sequence too, of its rows.
    listed = isinstance(answer, list | tuple) and all(isinstance(tensor, torch.Tensor) for tensor in answer)
    if not listed or [tensor.shape for tensor in answer] != [tensor.shape for tensor in like]:
        shapes = [tuple(tensor.shape) for tensor in answer] if listed else type(answer).__name__
        raise ConfigurationError(
            f"{direction!r}.{method} returned {shapes} for gradients of the shapes "
            f"{[tuple(tensor.shape) for tensor in like]}. It must return a list with one tensor of the same shape for "
            "each gradient."
        )


def _gradient(optimizer: LineSearch, parameter: torch.Tensor) -> torch.Tensor:
    grad = parameter.grad
    assert grad is not None
    if not grad.is_sparse:
        return align_gradient(grad.detach(), parameter)
    if optimizer.direction.moments(parameter.new_empty([0] * parameter.ndim)):
        raise ConfigurationError(
            f"{optimizer.direction!r} keeps moments and cannot use sparse gradients. Build the embedding with "
            "sparse=False, or use armijo.SGDSLS, whose direction keeps none."
        )
    return grad.detach().coalesce().to_dense()
