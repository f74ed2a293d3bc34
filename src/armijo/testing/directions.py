"""The contract of directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from armijo.directions.base import ParameterState, Tensors, Workspace
from armijo.errors import ConfigurationError
from armijo.optimizer import LineSearch
from armijo.testing.contract import Contract

__all__ = ["check_direction", "randn"]

LONGEST_UPDATE = 3.0
"""How many times as long as the search direction an update may be, once a constant gradient has filled the momentum."""

_LOOKING_BACK = ("probes", "past_gradients")
"""The methods that return vectors by name."""

_SHAPES = ((3, 4), (5,), ())


def randn(seed: int, scale: float = 1.0) -> Tensors:
    """Draw one random tensor of each shape; the same seed gives the same tensors."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return [scale * torch.randn(s, generator=generator, dtype=torch.float64, device="cpu") for s in _SHAPES]


def check_direction(contract: Contract) -> None:
    """Check the moments, the search directions, the updates and the probes."""
    with torch.no_grad():
        for dtype in (torch.float64, torch.float32):
            for shape in (*_SHAPES, (0,)):
                _check_moments(contract, torch.zeros(shape, dtype=dtype, device="cpu"))
        # Every fourth gradient is short and opposes those before it: it shows a search along the momentum.
        run = _DirectionRun(contract)
        for k in range(12):
            run.step(randn(k // 4, -0.1 if k % 4 == 3 else 1.0), applied=0.0 if k == 5 else 0.1)
        run.stay()
        run.step(randn(0, 0.0))
        _DirectionRun(contract).step(randn(0, 0.0))
        run = _DirectionRun(contract)
        gradients, ratio = randn(1), 1.0
        for _ in range(50):
            ratio = run.step(gradients)
        contract.require(
            ratio <= LONGEST_UPDATE,
            f"applies an update {ratio:.3g} times as long as the direction it searches along, after 50 equal gradients",
            "The step size is found for the length of the search direction: make the momentum an average, "
            "(1 - β)·g + β·m, not a sum.",
        )


def _check_moments(contract: Contract, parameter: torch.Tensor) -> None:
    moments, again = (contract.call("moments", parameter) for _ in range(2))
    contract.require(
        isinstance(moments, Mapping)
        and all(isinstance(name, str) and name != "step" for name in moments)
        and all(isinstance(moment, torch.Tensor) for moment in moments.values()),
        f"returned {moments!r} from moments",
        'It must return a dict of tensors, by names other than "step", which counts steps.',
    )
    contract.require(
        all(
            (m.shape, m.dtype, m.device) == (parameter.shape, parameter.dtype, parameter.device)
            for m in moments.values()
        )
        and not any(moment.any() for moment in moments.values()),
        f"has other moments than zeros like the parameter, of the shape {tuple(parameter.shape)} and {parameter.dtype}",
        "Write torch.zeros_like(parameter): a moment has the parameter's shape, dtype and device, and is all zero.",
    )
    contract.require(
        moments.keys() == again.keys() and not any(moments[name] is again[name] for name in moments),
        "returns the same tensors from moments when it is called again",
        "Make new tensors at each call: every parameter has its own.",
    )


class _DirectionRun:
    """Steps of one direction from fresh moments, as `LineSearch` makes them."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        parameters = randn(99)
        try:
            self._group = LineSearch(parameters, direction=contract.part).param_groups[0]
        except ConfigurationError as error:
            contract.fail(f"is refused by LineSearch: {str(error).rstrip('.')}", "The error says what to change.")
        self._states: list[ParameterState] = [
            {"step": torch.tensor(0.0, dtype=torch.float32, device="cpu"), **contract.call("moments", parameter)}
            for parameter in parameters
        ]
        self._held = [dict(state) for state in self._states]
        self._names = {name: tuple(contract.call(name, [], self._group)) for name in _LOOKING_BACK}

    def step(self, grads: Tensors, applied: float = 0.1) -> float:
        """One step; returns ‖u‖/‖d‖, 1 where d vanishes."""
        contract, kept = self.contract, [grad.clone() for grad in grads]
        directions = self._search_phase(grads)
        searched = [direction.clone() for direction in directions]
        lengths = [_norm(directions)]
        for state in self._states:
            state["step"] += 1
        counts = [float(state["step"]) for state in self._states]
        updates = contract.call("update", grads, self._states, directions, self._group)
        self._check_tensors("update", updates)
        lengths.append(_norm(updates))
        contract.require(
            not contract.call("updates_along_search", self._group) or all(map(torch.equal, updates, searched)),
            "says updates_along_search, and its update is not the search direction, to the last bit",
            "Return False: an accepted trial is left where it is only if the update leads there.",
        )
        applied_updates = [update.clone() for update in updates]
        contract.call("record_step", self._states, updates, applied)
        contract.require(
            all(map(torch.equal, updates, applied_updates)),
            "changes the updates in record_step",
            "They are applied after it; write to the states alone.",
        )
        contract.require(
            all(map(torch.equal, grads, kept)),
            "changes the gradients in update",
            "Work on new tensors, or on scratch where that does not hold the gradients themselves.",
        )
        self._check_states(counts)
        return lengths[1] / lengths[0] if lengths[0] > 0 else 1.0

    def stay(self) -> None:
        """A step in which no parameter has a gradient."""
        self.contract.call("record_step", self._states, [], 0.0)
        self._check_states([float(state["step"]) for state in self._states])

    def _search_phase(self, grads: Tensors) -> Tensors:
        contract, states, fresh = self.contract, self._states, not float(self._states[0]["step"])
        kept = [grad.clone() for grad in grads]
        before = [{name: moment.clone() for name, moment in state.items()} for state in states]
        numbers = dict(self._group)
        directions = contract.call("search_direction", grads, states, self._group)
        vectors = {name: contract.call(name, states, self._group) for name in _LOOKING_BACK}
        contract.require(
            numbers == self._group
            and all(state.keys() == old.keys() for state, old in zip(states, before, strict=True))
            and all(torch.equal(s[name], old[name]) for s, old in zip(states, before, strict=True) for name in old)
            and all(map(torch.equal, grads, kept)),
            "writes moments, gradients or the group in search_direction, probes or past_gradients",
            "Work on new tensors there and write the moments in update: a step may be abandoned after the search.",
        )
        self._check_tensors("search_direction", directions)
        self._check_kernel(grads, directions)
        stored = {id(moment) for state in states for moment in state.values()}
        contract.require(
            not any(id(direction) in stored for direction in directions),
            "returns a moment itself from search_direction",
            "Return new tensors or the gradients: update may overwrite them.",
        )
        for method, found in vectors.items():
            contract.require(
                isinstance(found, Mapping) and tuple(found) == self._names[method],
                f"has other {method} than {self._names[method]}, which {method}([], group) names",
                "The names must be the same at each step and for each group.",
            )
            for tensors in found.values():
                self._check_tensors(method, tensors)
        slope = sum(float((grad * direction).sum()) for grad, direction in zip(grads, directions, strict=True))
        size = _norm(grads) * _norm(directions)
        contract.require(
            slope > 0 or not (fresh and _norm(grads)),
            f"does not descend along its first search direction: ⟨g, d⟩ = {slope:.3g}",
            "Search along the gradient or the preconditioned gradient; the optimizer steps to w - η·d.",
        )
        contract.require(
            slope >= -1e-12 * size,
            f"climbs after {int(states[0]['step'])} steps: ⟨g, d⟩ = {slope:.3g} for a short gradient that opposes "
            "earlier ones",
            "Search along the preconditioned gradient, and put the momentum into update alone.",
        )
        return directions

    def _check_kernel(self, grads: Tensors, directions: Tensors) -> None:
        """A kernel of the direction's own, if it has one, computes the same slopes and moves."""
        contract, start = self.contract, randn(98)
        parameters, copies = [p.clone() for p in start], [torch.empty_like(p) for p in start]
        kernel = contract.call("kernel", parameters, grads, self._states, self._group, Workspace())
        if kernel is None:
            return
        past = randn(97)
        slopes = [[0.0] * len(grads), [0.0] * len(grads)]
        for sums, terms in zip(slopes, kernel.slopes_ahead(parameters, copies, 0.25, (past,)), strict=True):
            for place, term in terms:
                sums[place] += float(term)
        products = [
            [float((h * direction).sum()) for h, direction in zip(gradients, directions, strict=True)]
            for gradients in (grads, past)
        ]
        moved = [p - 0.25 * direction for p, direction in zip(start, directions, strict=True)]
        contract.require(
            all(
                math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
                for sums, expected in zip(slopes, products, strict=True)
                for a, b in zip(sums, expected, strict=True)
            )
            and all(torch.allclose(p, q, rtol=1e-9, atol=1e-12) for p, q in zip(parameters, moved, strict=True))
            and all(map(torch.equal, copies, start)),
            "has a kernel whose slopes or moves are not those of its search_direction",
            "A kernel is the same arithmetic in another order; a subclass with another one returns None from kernel.",
        )

    def _check_tensors(self, method: str, tensors: Any) -> None:
        contract = self.contract
        listed = isinstance(tensors, list | tuple) and all(isinstance(tensor, torch.Tensor) for tensor in tensors)
        contract.require(
            listed and [tuple(tensor.shape) for tensor in tensors] == list(_SHAPES),
            f"returned {[tuple(t.shape) for t in tensors] if listed else type(tensors).__name__} from {method}, for "
            f"gradients of the shapes {list(_SHAPES)}",
            "It must return a list with one tensor of the same shape for each gradient.",
        )
        contract.require(
            all(bool(tensor.isfinite().all()) for tensor in tensors),
            f"returned NaN or infinity from {method}",
            "Keep it finite where gradients are zero, for instance by an eps in the denominator.",
        )

    def _check_states(self, counts: list[float]) -> None:
        names = {name for held in self._held for name in held}
        self.contract.require(
            all(state.keys() == held.keys() for state, held in zip(self._states, self._held, strict=True))
            and all(
                state[name] is held[name] for state, held in zip(self._states, self._held, strict=True) for name in held
            ),
            f"replaces, adds or removes tensors of the state {sorted(names)}",
            "Write them in place, state[name].copy_(...), and name all of them in moments: anything else is lost.",
        )
        self.contract.require(
            [float(state["step"]) for state in self._states] == counts,
            'writes "step" in the state',
            "The optimizer counts the steps; keep a count of your own as a moment.",
        )


def _norm(tensors: Tensors) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))
