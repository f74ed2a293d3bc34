"""The fused kernel against torch's own optimizers and against the foreach functions, and where it is not to be used."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import armijo
from armijo.directions.adam import AdamDirection
from armijo.directions.base import ParameterState, Tensors, Workspace
from armijo.directions.fused import FusedAdamKernel
from armijo.directions.kernel import StoredKernel
from armijo.snapshot import Snapshot
from problems import growing_adam

every = pytest.mark.parametrize
SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 3, 4), (700, 800), (1 << 18,), ((1 << 19) + 3,)]
"""No number at all, one, a few, and more than one part of the kernel has."""


def tensors(seed: int, dtype: torch.dtype = torch.float32, shapes: Any = SHAPES) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def states_of(direction: AdamDirection, parameters: Tensors, steps: int = 3) -> list[ParameterState]:
    """The states after some steps; one parameter has made one step more than the others."""
    states = [{"step": torch.tensor(0.0), **direction.moments(p)} for p in parameters]
    for k in range(steps):
        for state in states:
            state["step"] += 1
        direction.update(tensors(k, parameters[0].dtype), states, [p.clone() for p in parameters], group_of(direction))
    states[4]["step"] += 1
    return states


def group_of(direction: AdamDirection, **values: Any) -> dict[str, Any]:
    return {**direction.defaults(), **values}


def both(direction: AdamDirection, dtype: torch.dtype) -> tuple[Any, Any, Tensors, Tensors]:
    """A fused and a stored kernel over equal tensors: the kernels, and the parameters of each."""
    made = []
    for fused in (True, False):
        parameters, grads = tensors(90, dtype), tensors(91, dtype)
        states = states_of(direction, parameters)
        group = group_of(direction)
        if fused:
            kernel: Any = direction.kernel(parameters, grads, states, group, Workspace())
            assert isinstance(kernel, FusedAdamKernel)
        else:
            kernel = StoredKernel(direction, grads, states, group, direction.search_direction(grads, states, group))
        made.append((kernel, parameters, states))
    (fused_kernel, first, _), (stored, second, _) = made
    return fused_kernel, stored, first, second


def assert_close(one: Tensors, other: Tensors, ulps: float = 8.0, least: float = 1.0) -> None:
    """Equal up to some rounding errors of numbers of the size `least`, or of their own size where that is more."""
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        if a.numel():
            size = torch.maximum(a.abs(), b.abs()).clamp(min=least)
            assert float(((a - b).abs() / size).max()) <= ulps * torch.finfo(a.dtype).eps


def total(terms: list[tuple[int, torch.Tensor]], place: int) -> float:
    return sum(float(term) for i, term in terms if i == place)


@every("dtype", [torch.float32, torch.float64])
@every("beta1", [0.0, 0.9])
def test_slopes_moves_and_commits_are_those_of_the_stored_directions(beta1: float, dtype: torch.dtype) -> None:
    direction = AdamDirection((beta1, 0.99), 1e-6)
    fused, stored, first, second = both(direction, dtype)
    start = [p.clone() for p in first]
    past = (tensors(92, dtype), tensors(93, dtype))
    single = dtype == torch.float32
    size = 1e-5 if single else 1e-12
    for k, (slopes, expected) in enumerate(zip(fused.slopes(past), stored.slopes(past), strict=True)):
        for place in range(len(SHAPES)):
            # Terms of a past gradient have either sign, and their error is that of the longest ones.
            error = size * len(expected) * 1e3 if k else 0.0
            assert total(slopes, place) == pytest.approx(total(expected, place), rel=size, abs=error)
    at: float | None = 0.0
    for step_size in (0.5, 0.3, 0.01, 2.0, -0.1, 1e-7):
        fused.move(first, start, step_size, at)
        stored.move(second, start, step_size, at)
        assert_close(first, second)
        at = step_size
    assert fused.stays == stored.stays == (beta1 == 0)
    for kernel, parameters in ((fused, first), (stored, second)):
        torch._foreach_copy_(parameters, start)
        for state in kernel._states:
            state["step"] += 1
        kernel.commit(parameters, 0.3, 0.1)
    assert_close(first, second)
    for one, other in zip(fused._states, stored._states, strict=True):
        assert one.keys() == other.keys()
        assert_close([one[name] for name in one], [other[name] for name in one], least=1e-2)


@every("beta1", [0.0, 0.9])
@every("options", [{}, {"weight_decay": 0.1, "lr": 0.5}], ids=str)
def test_the_last_step_is_kept_as_the_stored_directions_keep_it(beta1: float, options: dict[str, Any]) -> None:
    found = []
    for fused in (None, False):
        weights = [torch.nn.Parameter(p) for p in tensors(1, torch.float64)]
        direction = armijo.KeepLastStep(AdamDirection((beta1, 0.99), fused=fused))
        optimizer = armijo.LineSearch(weights, direction=direction, partition=armijo.Together(), **options)
        for k in range(4):
            targets = tensors(10 + k, torch.float64)
            before = [p.detach().clone() for p in weights]
            optimizer.step(lambda targets=targets, weights=weights: distance(weights, targets))
            applied = optimizer.report.components[0].step_size * options.get("lr", 1.0)
            shrink = 1 - applied * options.get("weight_decay", 0.0)
            for parameter, was in zip(weights, before, strict=True):
                last = optimizer.state[parameter]["last_step"]
                assert_close([was * shrink - last], [parameter.detach()])
        found.append([optimizer.state[p]["last_step"] for p in weights])
    assert_close(*found, ulps=1e4)


@every("beta1", [0.0, 0.9])
@every("fused", [None, False])
@every("make", [AdamDirection, armijo.GradientDirection])
def test_the_last_gradient_is_kept_where_a_step_was_taken(make: Any, fused: bool | None, beta1: float) -> None:
    weights = [torch.nn.Parameter(p) for p in tensors(1, torch.float64)]
    inner = make((beta1, 0.99), fused=fused) if make is AdamDirection else make()
    lines: list[armijo.Line] = []

    class Watching(armijo.Backtracking):
        def first_step_size(self, step_size: float, line: armijo.Line, memory: dict[str, Any]) -> float:
            lines.append(line)
            return super().first_step_size(step_size, line, memory)

    direction = armijo.KeepLastGradient(inner)
    optimizer = armijo.LineSearch(weights, direction=direction, search=Watching(), partition=armijo.Together())
    kept = [torch.zeros_like(p) for p in weights]
    for k in range(5):
        for group in optimizer.param_groups:
            group["lr"] = 0.0 if k == 2 else 1.0
        targets = tensors(10 + k, torch.float64)
        before = {p: {name: moment.clone() for name, moment in state.items()} for p, state in optimizer.state.items()}
        optimizer.step(lambda targets=targets: distance(weights, targets))
        grads = [p.grad.clone() for p in weights]
        states = [before.get(p) or {"step": torch.tensor(0.0), **direction.moments(p)} for p in weights]
        d = inner.search_direction(grads, states, optimizer.param_groups[0])
        expected = sum(float((h * v).sum()) for h, v in zip(kept, d, strict=True))
        assert lines[-1].derivatives["last_gradient"] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        kept = [torch.zeros_like(g) if k == 2 else g for g in grads]
        for parameter, gradient in zip(weights, kept, strict=True):
            assert torch.equal(optimizer.state[parameter]["last_gradient"], gradient)


@every("dtype", [torch.float32, torch.float64])
def test_a_slope_with_a_move_is_the_slope_and_the_move(dtype: torch.dtype) -> None:
    fused, stored, first, second = both(AdamDirection((0.0, 0.99)), dtype)
    before, start = [p.clone() for p in first], [torch.full_like(p, math.nan) for p in first]
    past = (tensors(92, dtype),)
    for alone, terms in zip(fused.slopes(past), fused.slopes_ahead(first, start, 0.25, past), strict=True):
        assert [(i, float(term)) for i, term in terms] == [(i, float(term)) for i, term in alone]
    assert all(map(torch.equal, start, before))
    stored.slopes_ahead(second, [torch.empty_like(p) for p in second], 0.25)
    assert_close(first, second)


@every("fail_at", [1, 2, 3, 5])
def test_a_failure_in_the_middle_leaves_the_parameters_as_they_were(
    fail_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, _, parameters, _ = both(AdamDirection((0.0, 0.99)), torch.float32)
    before, calls, real = [p.clone() for p in parameters], [0], torch._foreach_add_

    def failing(*args: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] == fail_at:
            real([args[0][0]], [args[1][0]], **options)
            raise MemoryError("no memory is left")
        real(*args, **options)

    monkeypatch.setattr(torch, "_foreach_add_", failing)
    with Snapshot() as snapshot, pytest.raises(MemoryError):
        snapshot.move_ahead(0, parameters, 0.5, fused)
    assert calls[0] == fail_at
    assert all(map(torch.equal, parameters, before))


@every("weight_decay", [0.0, 0.1])
def test_with_momentum_a_fixed_step_is_torchs_fused_adamw_bit_for_bit(weight_decay: float) -> None:
    ours, theirs = ([torch.nn.Parameter(p) for p in tensors(1)] for _ in range(2))
    optimizer = armijo.LineSearch(ours, search=armijo.FixedStep(1e-2), weight_decay=weight_decay)
    reference = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=weight_decay, fused=True)
    for k in range(5):
        targets = tensors(10 + k)
        optimizer.step(lambda targets=targets: distance(ours, targets))
        reference.zero_grad()
        distance(theirs, targets).backward()
        reference.step()
    assert all(map(torch.equal, ours, theirs))
    for p, q in zip(ours, theirs, strict=True):
        assert all(
            torch.equal(optimizer.state[p][name], reference.state[q][name]) for name in ("exp_avg", "exp_avg_sq")
        )


def distance(parameters: Any, targets: Tensors) -> torch.Tensor:
    return torch.stack([(p - t).square().sum() for p, t in zip(parameters, targets, strict=True)]).sum() / 1000


def test_where_the_momentum_is_zero_the_step_ends_at_the_accepted_trial_to_the_last_bit() -> None:
    parameters = [torch.nn.Parameter(p) for p in tensors(1)]
    optimizer = armijo.LineSearch(parameters, direction=AdamDirection((0.0, 0.999)), partition=armijo.Together())
    statuses, points = [], []
    for k in range(6):
        targets = tensors(10 + k)

        def closure(targets: Tensors = targets) -> torch.Tensor:
            if not torch.is_grad_enabled():
                points.append([p.detach().clone() for p in parameters])
            return distance(parameters, targets)

        optimizer.step(closure)
        (search,) = optimizer.report.searches
        statuses.append(str(search.status))
        if search.trials[-1].step_size == search.step_size:
            assert all(map(torch.equal, parameters, points[-1]))
    assert statuses == ["accepted"] * 6
    assert all(set(state) == {"step", "exp_avg_sq"} for state in optimizer.state.values())


@every("lr", [1.0, 0.5])
@every("beta1", [0.0, 0.9])
def test_gradients_keep_every_bit(beta1: float, lr: float) -> None:
    weight = torch.nn.Parameter(torch.ones(64))
    optimizer = armijo.AdamSLS([weight], lr=lr, betas=(beta1, 0.999), selection=armijo.Every(2))
    odd = torch.tensor([-0.0, 0.0, 1e-45, -1e-40, 1.0, -1.5, 2**-126, 1e-3]).repeat(8)
    for _ in range(4):
        objective = armijo.Objective()
        objective.baseline(lambda: (weight * odd).sum() + 10.0)
        weight.grad = odd.clone()
        optimizer.step(objective)
        assert weight.grad.view(torch.int32).tolist() == odd.view(torch.int32).tolist()


class Halved(AdamDirection):
    def search_direction(self, grads: Tensors, states: list[ParameterState], group: Any) -> Tensors:
        return [d / 2 for d in super().search_direction(grads, states, group)]


@every(
    ("direction", "change"),
    [
        (AdamDirection(fused=False), lambda p: p),
        (Halved(), lambda p: p),
        (AdamDirection(), lambda p: p.to(torch.bfloat16)),
        (AdamDirection(), lambda p: torch.randn(5, 4).t()),
        (AdamDirection(), lambda p: p.as_subclass(type("Named", (torch.Tensor,), {}))),
    ],
    ids=[
        "not wanted",
        "a subclass with another direction",
        "half precision",
        "another layout",
        "another kind of tensor",
    ],
)
def test_the_fused_kernel_leaves_alone_what_it_cannot_serve(
    direction: AdamDirection, change: Callable[..., Any]
) -> None:
    parameters = [change(torch.randn(4, 5))]
    states = [{"step": torch.tensor(0.0), **direction.moments(parameters[0])}]
    assert (
        direction.kernel(parameters, [torch.ones_like(p) for p in parameters], states, group_of(direction), Workspace())
        is None
    )


def test_a_subclass_steps_along_its_own_direction() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = armijo.LineSearch([weight], direction=Halved())
    optimizer.step(lambda: (weight**2).sum())
    assert optimizer.report.components[0].slope == pytest.approx(3.0)


class Calls(TorchFunctionMode):
    """Counts what a step asks of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


@every("beta1", [0.0, 0.9])
def test_a_step_without_a_search_is_one_pass_of_the_kernel(beta1: float) -> None:
    parameters = [torch.nn.Parameter(p) for p in tensors(1)]
    optimizer = growing_adam(parameters, betas=(beta1, 0.999), selection=armijo.Every(3))
    counts = []
    for k in range(6):
        targets = tensors(10 + k)
        step_size = optimizer.param_groups[0]["step_size"]
        before = [p.detach().clone() for p in parameters]
        with Calls() as calls:
            optimizer.step(lambda targets=targets: distance(parameters, targets))
        counts.append(calls.names.count("_fused_adamw_"))
        (component,) = optimizer.report.components
        if k % 3:
            assert (component.status, component.step_size, component.trials) == ("unsearched", step_size, 0)
            assert math.isnan(component.slope)
            assert optimizer.report.forwards == 1
            assert not all(map(torch.equal, parameters, before))
    assert len(set(counts[1:3] + counts[4:])) == 1
    if beta1 > 0:
        assert counts[1] == 1, "one call for all of them"
    else:
        # Slopes and moments are two passes, part by part.
        assert counts[0] >= 2 * counts[1]


def test_a_step_without_a_search_notices_what_may_not_be_taken() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = armijo.AdamSLS([weight], selection=armijo.Every(1000))
    optimizer.step(lambda: (weight**2).sum())
    start, state = weight.detach().clone(), copy.deepcopy(optimizer.state[weight])
    for bad in (math.inf, math.nan):
        optimizer.step(lambda bad=bad: (weight * torch.tensor([bad, 1.0])).sum() * 0 + 1.0)
        assert optimizer.report.components[0].status == "nonfinite"
        assert torch.equal(weight, start)
        assert all(torch.equal(optimizer.state[weight][name], state[name]) for name in state)
    optimizer.step(lambda: (weight * 0).sum() + 1.0)
    assert (optimizer.report.components[0].status, optimizer.report.components[0].slope) == ("skipped", 0.0)
    assert torch.equal(weight, start)
    optimizer.step(lambda: weight[0] - weight[1] + 5.0)  # a gradient that is not zero, and whose sum is
    assert optimizer.report.components[0].status == "unsearched"
    assert (weight != start).all()


def test_a_group_with_momentum_needs_an_optimizer_that_keeps_one() -> None:
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "betas": (0.9, 0.999)}]
    with pytest.raises(armijo.ConfigurationError, match="keeps no momentum"):
        armijo.AdamSLS(groups, betas=(0.0, 0.999))
    optimizer = armijo.AdamSLS(groups[:1], betas=(0.0, 0.999))
    optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    with pytest.raises(armijo.ConfigurationError, match="cycle_momentum=False"):
        optimizer.step(lambda: (weights[0] ** 2).sum())
    mixed = armijo.AdamSLS([groups[1], {"params": [weights[0]], "betas": (0.0, 0.999)}], betas=(0.9, 0.999))
    mixed.step(lambda: sum((w**2).sum() for w in weights))
    assert torch.equal(mixed.state[weights[0]]["exp_avg"], weights[0].grad)


class Foreseeing(armijo.Guess):
    """Expects half of what it will say."""

    def __init__(self, factor: float | None) -> None:
        self.factor = factor

    def initial_step_size(self) -> float:
        return 0.1

    def next(self, step_size: float, line: Any, memory: Any) -> float:
        return step_size

    def expected(self, step_size: float, memory: Any) -> float | None:
        return None if self.factor is None else step_size * self.factor


@every("factor", [1.0, 0.5, 2.0, math.nan, -1.0, math.inf])
def test_a_wrong_expectation_costs_time_and_changes_nothing(factor: float) -> None:
    ends = []
    for expected in (None, factor):
        parameters = [torch.nn.Parameter(p) for p in tensors(1, torch.float64)]
        search = armijo.Backtracking(guess=Foreseeing(expected))
        optimizer = armijo.LineSearch(parameters, search=search, partition=armijo.Together())
        for k in range(4):
            targets = tensors(10 + k, torch.float64)
            optimizer.step(lambda targets=targets, parameters=parameters: distance(parameters, targets))
        ends.append([p.detach() for p in parameters])
    assert_close(*ends, ulps=20)


class Waits(TorchFunctionMode):
    """Counts where a device would be waited for: tensors read as numbers, those that count steps apart (on the CPU)."""

    READS = ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "numpy", "equal", "allclose", "nonzero")

    def __init__(self, optimizer: armijo.LineSearch) -> None:
        super().__init__()
        self.counters = {id(state["step"]) for state in optimizer.state.values()}
        self.reads = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.READS and id(args[0]) not in self.counters:
            self.reads += 1
        return func(*args, **(kwargs or {}))


@every("fused", [True, False])
@every("selection", [armijo.Jointly(), armijo.Every(2), armijo.EachAlone(0), armijo.Cycle(0)], ids=repr)
def test_a_step_waits_for_the_device_once_and_once_more_for_each_trial(fused: bool, selection: Any) -> None:
    shapes = [shape for shape in SHAPES if 0 not in shape]
    parameters = [torch.nn.Parameter(p) for p in tensors(1, shapes=shapes)]
    groups = [{"params": [p]} for p in parameters]
    optimizer = armijo.LineSearch(groups, direction=AdamDirection(fused=fused), selection=selection)
    for k in range(6):
        targets = tensors(10 + k, shapes=shapes)
        with Waits(optimizer) as waits:
            optimizer.step(lambda targets=targets: distance(parameters, targets))
        if k:
            assert waits.reads == 1 + sum(len(search.trials) for search in optimizer.report.searches)
        parameters[0].grad = None


def test_several_micro_batches_are_fetched_together() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = armijo.AdamSLS([weight])
    for _ in range(3):
        objective = armijo.Objective()
        for target in (1.5, 2.0, 3.0):
            objective.baseline(lambda target=target: (weight - target).square().sum() / 3).backward()
        with Waits(optimizer) as waits:
            optimizer.step(objective)
        optimizer.zero_grad()
    trials = len(optimizer.report.searches[0].trials)
    assert waits.reads == 1 + 3 * trials


def test_the_default_dtype_and_device_are_the_users_own() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = armijo.AdamSLS([weight], betas=(0.0, 0.999))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            for _ in range(3):
                optimizer.step(lambda: (weight**2).sum())
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.report.components[0].status == "accepted"
    assert 0 < abs(weight.item()) < 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU is needed")
@every("beta1", [0.0, 0.9])
def test_on_a_gpu_the_fused_kernel_takes_the_steps_of_the_stored_directions(beta1: float) -> None:
    ends = []
    for fused in (True, False):
        parameters = [torch.nn.Parameter(p.cuda()) for p in tensors(1)]
        direction = AdamDirection((beta1, 0.999), fused=fused)
        optimizer = armijo.LineSearch(parameters, direction=direction, partition=armijo.Together())
        for k in range(6):
            targets = [t.cuda() for t in tensors(10 + k)]
            optimizer.step(lambda targets=targets, parameters=parameters: distance(parameters, targets))
        ends.append([p.detach().cpu() for p in parameters])
    assert_close(*ends, ulps=100)


def test_parameters_of_one_shape_and_another_layout_in_groups_of_their_own() -> None:
    plain, turned = torch.nn.Parameter(torch.randn(4, 5)), torch.nn.Parameter(torch.randn(5, 4).t())
    optimizer = armijo.AdamSLS([{"params": [plain]}, {"params": [turned]}])
    for _ in range(5):
        optimizer.step(lambda: (plain**2).sum() + (turned**2).sum())
        assert optimizer.report.components[0].status == "accepted"


@every("beta1", [0.0, 0.9])
@every("selection", [armijo.Every(3), armijo.Jointly()], ids=repr)
def test_every_write_to_a_parameter_is_counted(beta1: float, selection: Any) -> None:
    weights = [torch.nn.Parameter(torch.tensor([3.0, -1.0])), torch.nn.Parameter(torch.tensor([2.0]))]
    optimizer = armijo.AdamSLS(weights, betas=(beta1, 0.999), selection=selection)
    for _ in range(6):
        before = [(w.detach().clone(), w._version) for w in weights]
        optimizer.step(lambda: sum((w**4).sum() for w in weights))
        for weight, (values, version) in zip(weights, before, strict=True):
            assert torch.equal(weight, values) or weight._version > version


@every("sizes", [(10, 10), (1 << 18, 1 << 18)])
@every("apart", [True, False], ids=["two groups", "one group"])
@every("direction", [AdamDirection(), AdamDirection((0.0, 0.999)), armijo.GradientDirection()], ids=repr)
def test_parameters_that_share_memory_are_restored(direction: Any, apart: bool, sizes: tuple[int, int]) -> None:
    memory = torch.randn(sizes[0])
    weights = [torch.nn.Parameter(memory), torch.nn.Parameter(memory)]
    groups = [{"params": [w]} for w in weights] if apart else weights
    optimizer = armijo.LineSearch(groups, direction=direction, partition=armijo.Together())
    before, calls = memory.clone(), [0]

    def closure() -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 2:
            raise RuntimeError("out of luck")
        return (weights[0] ** 2).mean() + (weights[1] ** 2).mean()

    with pytest.raises(RuntimeError, match="out of luck"):
        optimizer.step(closure)
    assert torch.equal(memory, before)


@dataclass(frozen=True)
class FarThenNear(armijo.CriterionSearch):
    def find(self, line: Any, first: float, evaluate: Any, violation: Any, memory: Any) -> armijo.Outcome:
        evaluate(1e5)
        return armijo.Outcome(1e-4, armijo.Status.ACCEPTED, evaluate(1e-4))


def test_a_trial_much_nearer_than_the_last_one_is_where_it_says() -> None:
    weight = torch.nn.Parameter(torch.zeros(5))
    optimizer = armijo.LineSearch([weight], direction=AdamDirection((0.0, 0.999)), search=FarThenNear())
    optimizer.step(lambda: ((weight - 1.0) ** 2).sum())
    assert torch.allclose(weight, torch.full((5,), 1e-4), rtol=1e-5)


@every("eps", [0.0, 1e-8])
def test_a_step_without_a_search_sees_what_is_not_finite_and_what_only_adds_up_to_it(eps: float) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = growing_adam([weight], betas=(0.9, 0.0), eps=eps, selection=armijo.Every(3))
    optimizer.step(lambda: (weight**2).sum())
    optimizer.step(lambda: weight[0] ** 2 + 0 * weight[1] + 1.0)
    assert optimizer.report.components[0].status == ("nonfinite" if eps == 0 else "unsearched")
    assert weight.isfinite().all()
    large = torch.nn.Parameter(torch.full((4,), 1e-30))
    optimizer = growing_adam([large], betas=(0.9, 0.0), eps=1e-8, selection=armijo.Every(3))
    optimizer.step(lambda: large.sum() + 1.0)
    objective = armijo.Objective()
    objective.baseline(lambda: large.sum() + 1.0)
    large.grad = torch.full((4,), 3e38)
    optimizer.step(objective)
    assert optimizer.report.components[0].status == "unsearched"


def test_what_stays_is_not_written_where_no_search_is_due() -> None:
    weight = torch.nn.Parameter(torch.tensor([-0.0, 1.0]))
    optimizer = armijo.AdamSLS([weight], selection=armijo.Every(2))
    optimizer.step(lambda: (weight * 0).sum() + 1.0)
    optimizer.step(lambda: (weight * 0).sum() + 1.0)
    assert weight.detach().view(torch.int32).tolist() == torch.tensor([-0.0, 1.0]).view(torch.int32).tolist()
    assert float(optimizer.state[weight]["step"]) == 2


def test_a_gradient_that_is_negated_by_a_view_is_served() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = armijo.AdamSLS([weight])
    objective = armijo.Objective()
    objective.baseline(lambda: -weight.sum() + 5.0)
    weight.grad = torch._neg_view(torch.ones(3))
    optimizer.step(objective)
    assert (weight > 1).all()


def test_memory_for_copies_does_not_grow_with_conversions() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = armijo.AdamSLS(model.parameters())
    for dtype in (torch.float32, torch.float64, torch.float32):
        model.to(dtype)
        optimizer.load_state_dict(optimizer.state_dict())
        inputs = torch.ones(4, 3, dtype=dtype)
        for _ in range(2):
            optimizer.step(lambda inputs=inputs: model(inputs).square().mean())
        assert {kind[0] for kind in optimizer._copies._free} == {dtype}


@every(
    "selection", [armijo.Jointly(), armijo.Cycle(0), armijo.Cycle(3), armijo.EachAlone(1), armijo.Every(2)], ids=repr
)
@every("cap", [math.inf, 1e-3])
def test_the_first_trial_of_an_expected_block_is_made_with_the_slope(
    selection: Any, cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[float] = []
    move = FusedAdamKernel.move

    def counted(self: FusedAdamKernel, parameters: Tensors, start: Tensors, step_size: float, at: float | None) -> None:
        moves.append(step_size)
        move(self, parameters, start, step_size, at)

    monkeypatch.setattr(FusedAdamKernel, "move", counted)
    weights = [torch.nn.Parameter(p) for p in tensors(1, shapes=[(3, 5), (7,), (2, 2)])]
    groups = [{"params": [p], "max_step_size": cap * 10**-k} for k, p in enumerate(weights)]
    optimizer = armijo.LineSearch(groups, direction=AdamDirection((0.0, 0.99)), selection=selection)
    for k in range(8):
        targets = tensors(10 + k, shapes=[(3, 5), (7,), (2, 2)])
        moves.clear()
        optimizer.step(lambda targets=targets: distance(weights, targets))
        if optimizer.report.searches:
            first, *later = optimizer.report.searches
            expected = (len(first.trials) - 1) * len(first.components)
            assert len(moves) == expected + sum(len(search.trials) * len(search.components) for search in later)


# ----------------------------------------------------------------------------------------------------------- estimates

LARGE = [(), (7,), (300, 400), ((1 << 17) + 3,), (1 << 19,)]


def estimator(
    step: int = 3, dtype: torch.dtype = torch.float32, spoil: float | None = None
) -> tuple[FusedAdamKernel, tuple[Tensors, ...]]:
    direction = AdamDirection((0.0, 0.99), 1e-6)
    parameters, grads = tensors(90, dtype, LARGE), tensors(91, dtype, LARGE)
    if spoil is not None:
        grads[-1][-1] = spoil
    squares = tensors(92, dtype, LARGE)
    states = [{"step": torch.tensor(float(step)), "exp_avg_sq": square**2} for square in squares]
    kernel = direction.kernel(parameters, grads, states, group_of(direction), Workspace())
    assert isinstance(kernel, FusedAdamKernel)
    past = [g + 0.5 * noise for g, noise in zip(grads, tensors(93, dtype, LARGE), strict=True)]
    return kernel, (past,)


@every("dtype", [torch.float32, torch.float64])
def test_estimates_are_exact_for_small_tensors_and_near_for_large_ones(dtype: torch.dtype) -> None:
    kernel, past = estimator(dtype=dtype)
    exact, estimated = kernel.slopes(past), kernel.estimates(past)
    assert estimated is not None
    assert len(exact) == len(estimated) == 2
    for terms, expected in zip(estimated, exact, strict=True):
        for place, shape in enumerate(LARGE):
            near = 1e-6 if math.prod(shape) < 1 << 16 else 0.2
            assert total(terms, place) == pytest.approx(total(expected, place), rel=near)
        found = sum(total(terms, place) for place in range(len(LARGE)))
        assert found != sum(total(expected, place) for place in range(len(LARGE))), "nothing was estimated"


def test_each_number_is_read_once_in_31_steps() -> None:
    direction, places = AdamDirection((0.0, 0.0), 1.0), range(3 * 499)
    read = dict.fromkeys(places, 0)
    for step in range(31):
        grads = [torch.zeros(1 << 17)]
        states = [{"step": torch.tensor(float(step)), "exp_avg_sq": torch.ones(1 << 17)}]
        kernel = direction.kernel([torch.zeros(1 << 17)], grads, states, group_of(direction), Workspace())
        assert kernel is not None
        for place in places:
            grads[0][place] = 1.0
            estimates = kernel.estimates()
            assert estimates is not None
            read[place] += float(estimates[0][0][1]) > 0
            grads[0][place] = 0.0
    missed = [place for place, times in read.items() if times == 0]
    assert set(read.values()) == {0, 1}
    assert [place % 499 for place in missed] == [496, 497, 498] * 3, "499 is no multiple of 16"


@every("spoil", [math.nan, math.inf, -math.inf])
def test_an_estimate_is_not_finite_where_a_number_that_it_does_not_read_is_not(spoil: float) -> None:
    kernel, past = estimator(spoil=spoil)
    slopes, _ = kernel.estimates(past) or []
    assert not math.isfinite(sum(float(term) for _, term in slopes))


def unsearched(weight: torch.nn.Parameter, **parts: Any) -> armijo.LineSearch:
    """One step searched, the others not."""
    return armijo.AdamSLS([weight], selection=armijo.Every(10**9), **parts)


def test_a_sparse_gradient_that_no_block_meets_is_looked_at_again() -> None:
    weight = torch.nn.Parameter(torch.ones(1 << 17))
    optimizer = unsearched(weight)
    for step in range(6):  # the blocks of these steps have other places
        before = weight.detach().clone()
        optimizer.step(lambda: 1 + (weight[5000] - 3) ** 2)
        assert optimizer.report is not None
        (component,) = optimizer.report.components
        assert component.status == ("unsearched" if step else "accepted")
        assert component.slope > 0
        assert not torch.equal(weight, before)


def test_a_gradient_that_is_not_finite_moves_nothing_at_a_step_without_a_search() -> None:
    weight = torch.nn.Parameter(torch.ones(1 << 17))
    optimizer = unsearched(weight)
    optimizer.step(lambda: weight.square().mean())
    before = weight.detach().clone()
    optimizer.step(lambda: weight.square().mean() + 0 * (weight[-1] - weight[-1].detach()).sqrt())
    assert optimizer.report is not None
    assert optimizer.report.components[0].status == "nonfinite"
    assert torch.equal(weight, before)


def test_the_commit_after_an_estimate_has_all_the_memory_that_it_needs() -> None:
    kernel, past = estimator()
    assert kernel.estimates(past) is not None
    assert "_parts" in vars(kernel), "made before anything of the optimizer's is written"


def test_with_no_epsilon_there_is_no_estimate() -> None:
    direction = AdamDirection((0.0, 0.0), 0.0)
    states = [{"step": torch.tensor(3.0), "exp_avg_sq": torch.ones(1 << 17)}]
    kernel = direction.kernel([torch.ones(1 << 17)], [torch.ones(1 << 17)], states, group_of(direction), Workspace())
    assert kernel is not None
    assert kernel.estimates() is None


def test_only_a_doubtful_group_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    slopes = FusedAdamKernel.slopes

    def counted(self: FusedAdamKernel, past: tuple[Tensors, ...] = ()) -> Any:
        looked.append(sum(grad.numel() for grad in self._grads))
        return slopes(self, past)

    large, silent, small = (torch.nn.Parameter(torch.ones(n)) for n in (1 << 17, 1 << 16, 3))
    groups = [{"params": [large]}, {"params": [silent]}, {"params": [small]}]
    optimizer = armijo.PLASLS(groups, selection=armijo.Every(10**9))

    def loss() -> torch.Tensor:
        return 1 + large.square().mean() + 0 * silent.sum() + 0 * small.sum()

    optimizer.step(loss)
    monkeypatch.setattr(FusedAdamKernel, "slopes", counted)
    optimizer.step(loss)
    assert sorted(looked) == sorted([16 * ((1 << 17) // 499), 16 * ((1 << 16) // 499), 3, 1 << 16])


def test_a_searched_step_has_the_exact_slope() -> None:
    reports = []
    for fused in (True, False):
        weight = torch.nn.Parameter(tensors(5, shapes=[(1 << 17,)])[0])
        direction = armijo.KeepLastGradient(AdamDirection((0.0, 0.999), fused=fused))
        search = armijo.Backtracking(armijo.Armijo(0.5), armijo.Hypergradient())
        optimizer = armijo.LineSearch([weight], direction=direction, search=search)
        for _ in range(3):
            optimizer.step(lambda weight=weight: weight.square().mean())
        assert optimizer.report is not None
        reports.append(optimizer.report.components[0])
    assert reports[0].slope == pytest.approx(reports[1].slope, rel=1e-5)
