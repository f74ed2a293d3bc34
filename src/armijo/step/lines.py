"""From gradients to lines: directions and slopes of each component, before anything is searched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from armijo.checks import check_maximize, check_values
from armijo.components.partition import Component
from armijo.directions.base import Direction, ParameterState, Tensors
from armijo.errors import ConfigurationError
from armijo.evaluation.objective import Objective
from armijo.evaluation.reduction import align_gradient, count_shards, local_shard
from armijo.search.memory import Memory, copy_memory
from armijo.search.values import Derivatives, Line

if TYPE_CHECKING:
    from armijo.optimizer import LineSearch

__all__ = ["ComponentLine", "GroupLine", "compute_lines", "fresh_state", "largest_number", "loss_sign"]


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
        directions: the directions to search along.
        probes: the direction's probes.
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
    directions: Tensors
    probes: Mapping[str, Tensors]
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
        scratch = [self.directions[i].clone() for i in chosen]
        return direction.update([self.grads[i] for i in chosen], states, scratch, self.group)

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
        line: the loss at w_k and the component's own slope.
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
    cap: float
    reach: float
    previous: float
    first: float
    memory: Memory
    failed_searches: int

    @property
    def parameters(self) -> Tensors:
        """All parameters that have a gradient."""
        return [parameter for group in self.groups for parameter in group.parameters]

    def vectors(self, along: str | None = None) -> Tensors:
        """For each parameter its search direction, or the probe of that name."""
        if along is None:
            return [direction for group in self.groups for direction in group.directions]
        if any(along not in group.probes for group in self.groups):
            names = sorted({name for group in self.groups for name in group.probes})
            raise ConfigurationError(
                f"The search evaluates along {along!r}, which the direction does not provide (its probes: "
                f"{', '.join(names) or 'none'}). Use direction=KeepLastStep(...) for 'last_step'."
            )
        return [vector for group in self.groups for vector in group.probes[along]]

    def preview_updates(self, direction: Direction) -> Tensors:
        """lr·u for each parameter, as the commit will apply it, computed from copies of the moments."""
        return [u * group.lr for group in self.groups for u in group.preview_updates(direction)]


def compute_lines(optimizer: LineSearch, objective: Objective) -> list[ComponentLine]:
    """The line of each component, by place. One host synchronisation; the means are over all ranks.

    Raises:
        ConfigurationError: a value in a group is out of its range, a gradient is sparse and the direction has
            moments, or a part answers with something that cannot be used.
    """
    groups: list[GroupLine] = []
    probe_names = tuple(optimizer.direction.probes([], optimizer.param_groups[0]) or ())

    def prepare() -> list[float]:
        memory = optimizer.memory_defaults
        for group in optimizer.param_groups:
            check_values(group, optimizer.direction, memory)
            check_maximize(group, optimizer.param_groups[0])
        groups.extend(_prepare(optimizer, group, probe_names) for group in optimizer.param_groups)
        return _slopes(groups, probe_names)

    n_groups = len(optimizer.param_groups)
    numbers = objective.mean_over_ranks(prepare, n_groups * (1 + len(probe_names)))
    slopes, *derivatives = (numbers[start : start + n_groups] for start in range(0, len(numbers), n_groups))
    value, resolution = loss_sign(optimizer) * objective.value(), objective.resolution()
    names = optimizer.search.defaults()
    lines: list[ComponentLine] = []
    for component in optimizer.components:
        members = tuple(groups[index] for index in component.groups)
        cap = min(float(member.group["max_step_size"]) for member in members)
        reach = min(largest_number(member.parameters) for member in members)
        line = Line(
            loss=value,
            slope=_sum(slopes[index] for index in component.groups),
            resolution=resolution,
            longest=min(cap, reach),
            derivatives=Derivatives(
                {
                    name: _sum(along[index] for index in component.groups)
                    for name, along in zip(probe_names, derivatives, strict=True)
                }
            ),
        )
        previous = float(members[0].group["step_size"])
        memory = copy_memory(members[0].group, names)
        failed = members[0].group["failed_searches"]
        lines.append(ComponentLine(component, members, line, cap, reach, previous, previous, memory, failed))
    if not all(each.line.finite for each in lines):
        return lines
    return [replace(each, first=min(_first_step_size(optimizer, each), each.cap)) for each in lines]


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


def _prepare(optimizer: LineSearch, group: dict[str, Any], probe_names: tuple[str, ...]) -> GroupLine:
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
    directions = direction.search_direction(grads, states, group) if parameters else []
    _check_shapes(direction, "search_direction", directions, grads)
    probes = direction.probes(states, group)
    if not isinstance(probes, Mapping) or tuple(probes) != probe_names:
        raise ConfigurationError(
            f"{direction!r}.probes names {', '.join(map(str, probes or ())) or 'none'} for a parameter group, and "
            f"{', '.join(probe_names) or 'none'} for no parameters. The names must be the same each time."
        )
    for vectors in probes.values():
        _check_shapes(direction, "probes", vectors, grads)
    idle = [state for p in group["params"] if p.grad is None and (state := optimizer.state.get(p))]
    return GroupLine(
        group=group,
        lr=float(group["lr"]),
        weight_decay=float(group["weight_decay"]),
        kept=kept,
        parameters=[local_shard(p) for p in parameters],
        grads=grads,
        states=states,
        directions=directions,
        probes=probes,
        shards=[count_shards(p) for p in parameters],
        new=any(not optimizer.state.get(p) for p in parameters),
        idle=[{key: local_shard(tensor) for key, tensor in state.items()} for state in idle],
    )


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


def _slopes(groups: Sequence[GroupLine], probe_names: Sequence[str]) -> list[float]:
    """⟨g, d⟩ of each group, then ⟨g, v⟩ of each group for each probe, fetched with one wait for each device."""
    vectors = [group.directions for group in groups]
    vectors += [group.probes[name] for name in probe_names for group in groups]
    products: dict[torch.device, list[tuple[int, torch.Tensor]]] = {}
    for index, along in enumerate(vectors):
        group = groups[index % len(groups)]
        for grad, vector, shards in zip(group.grads, along, group.shards, strict=True):
            # Each rank has a shard of the sum, and what the ranks have is averaged.
            product = _dot(grad, vector) * shards if shards > 1 else _dot(grad, vector)
            products.setdefault(product.device, []).append((index, product))
    terms: list[list[float]] = [[] for _ in vectors]
    for on_device in products.values():
        for (index, _), number in zip(on_device, _fetch([product for _, product in on_device]), strict=True):
            terms[index].append(number)
    return [_sum(numbers) for numbers in terms]


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # Half precision would lose the sum; float32 and float64 add up well enough in their own.
    if a.dtype in (torch.float16, torch.bfloat16):
        a, b = a.float(), b.float()
    return torch.dot(a.reshape(-1), b.reshape(-1).to(a.dtype))


def _fetch(scalars: list[torch.Tensor]) -> list[float]:
    wide = torch.float32 if scalars[0].device.type == "mps" else torch.float64
    return torch.stack([scalar.to(wide) for scalar in scalars]).tolist()


def _sum(numbers: Iterable[float]) -> float:
    # math.fsum raises where infinities of both signs meet; here that is a NaN like any other.
    return sum(numbers, 0.0)
