"""Faults, each injected: whatever happens in a step, it is afterwards whole or as if it had never begun."""

from __future__ import annotations

import copy
import logging
import math
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import armijo
import armijo.step.step as step_module
from armijo.evaluation.rng import RandomState
from evaluation.test_honest_trials import MODELS, closure_for, seeded
from problems import (
    ALL,
    PAPER,
    RECOMMENDED,
    Problem,
    cycling_adam,
    everything,
    failing,
    hopeless,
    name_of,
    same,
    statuses,
    stuck,
)

every = pytest.mark.parametrize


# ------------------------------------------------------------------------------------------- exceptions in a search


HIGH = 100.0
"""Added to a loss, so that a first step far too long does not promise more than the loss."""


@every("error", [RuntimeError("no luck"), KeyboardInterrupt(), torch.OutOfMemoryError("out of memory")], ids=repr)
@every("kind", ALL, ids=name_of)
@every("at", range(5))
def test_after_an_exception_in_any_evaluation_everything_is_as_before_the_step(
    kind: Any, at: int, error: BaseException, tally: Any
) -> None:
    problem = Problem()
    optimizer = kind(problem.groups(), initial_step_size=100.0)
    if at % 2:
        optimizer.step(problem.closure())
    for group in optimizer.param_groups:
        group["step_size"] = 100.0
    before, closure, calls = everything(problem.model, optimizer), problem.closure(), []

    def drawing() -> torch.Tensor:
        calls.append((random.random(), np.random.rand()))
        return closure() + HIGH

    with pytest.raises(type(error)):
        optimizer.step(failing(drawing, at, error))
    assert len(calls) == at + 1, "the search must have come as far as the failing evaluation"
    assert same(before, everything(problem.model, optimizer))
    tally("exceptions in an evaluation")
    optimizer.step(closure)
    assert not same(before, everything(problem.model, optimizer))


@every("error", [RuntimeError("no luck"), KeyboardInterrupt(), torch.OutOfMemoryError("out of memory")], ids=repr)
@every("at", range(4))
@every("name", MODELS)
def test_after_an_exception_buffers_and_generators_of_every_hazard_are_as_before(
    name: str, at: int, error: BaseException, tally: Any
) -> None:
    model = seeded(MODELS[name])
    optimizer = armijo.AdamSLS(_parameters(model), initial_step_size=1e4)
    low = closure_for(model)

    def closure() -> torch.Tensor:
        return low() + HIGH

    closure()  # buffers that are made in the first forward
    for parameter in _parameters(model):
        parameter.grad = None
    before, rng = _snapshot(model, optimizer), RandomState.capture()
    with pytest.raises(type(error)):
        optimizer.step(failing(closure, at, error))
    assert same(before, _snapshot(model, optimizer))
    rng.restore()
    optimizer.step(closure)
    assert optimizer.report is not None
    tally("exceptions in an evaluation")


def _parts(model: Any) -> list[nn.Module]:
    return [model] if model.__class__.__name__ != "Twice" else [*model.parts]


def _parameters(model: Any) -> list[nn.Parameter]:
    return [p for part in _parts(model) for p in part.parameters() if p.requires_grad]


def _snapshot(model: Any, optimizer: armijo.LineSearch) -> Any:
    whole = nn.ModuleList(_parts(model))
    return everything(whole, optimizer)


class _OutOfMemory(TorchDispatchMode):
    """Raises instead of handing out the n-th piece of new memory of more than 64 bytes; counts them."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.numel() * leaf.element_size() > 64:
                if _storage(leaf) in given:
                    continue
                self.count += 1
                if self.count - 1 == self.at:
                    raise torch.OutOfMemoryError("injected")
        return result


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.no_cover
@every("kind", [*RECOMMENDED, *(pytest.param(kind, marks=pytest.mark.soak) for kind in PAPER)], ids=name_of)
def test_out_of_memory_at_any_allocation_of_a_step(kind: Any, tally: Any) -> None:
    """The library's own allocations too: snapshot, directions, moments, copies of buffers, the backward pass."""
    # The paper's search would take some seventy trials from far away, each with the same allocations.
    far = 0.5 if kind in (armijo.paper.AdamSLS, armijo.paper.PLASLS) else 10.0
    for at in range(10_000):
        problem = Problem()
        optimizer = kind(problem.groups(), initial_step_size=far)
        optimizer.step(problem.closure())
        for group in optimizer.param_groups:
            group["step_size"] = far
        low = problem.closure()

        def closure(low: Callable[[], torch.Tensor] = low) -> torch.Tensor:
            return low() + HIGH

        before = everything(problem.model, optimizer)
        mode = _OutOfMemory(at)
        try:
            with mode:
                optimizer.step(closure)
        except torch.OutOfMemoryError:
            assert same(before, everything(problem.model, optimizer)), f"after allocation {at}"
            assert optimizer.step(closure) is not None
            tally("allocations refused")
            continue
        assert at > 50, "there were so few allocations that the fault cannot have met the search"
        return
    raise AssertionError("no end of allocations")


@every("kind", ALL, ids=name_of)
def test_the_commit_allocates_nothing_of_the_parameters_size(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no step can fail between its first and its last parameter."""
    problem = Problem()
    optimizer = kind(problem.groups())
    optimizer.step(problem.closure())
    commit, modes = step_module._commit, []

    def counted(*decided: Any) -> Any:
        modes.append(_OutOfMemory(-1))
        with modes[-1]:
            return commit(*decided)

    monkeypatch.setattr(step_module, "_commit", counted)
    for _ in range(8):
        optimizer.step(problem.closure())
    assert [mode.count for mode in modes] == [0] * 8


def test_an_exception_in_an_observer_comes_after_the_step_is_whole() -> None:
    problem = Problem()
    optimizer = armijo.AdamSLS(problem.model.parameters())

    def fail(report: armijo.StepReport) -> None:
        raise RuntimeError("no disk")

    handle = optimizer.register_observer(fail)
    with pytest.raises(RuntimeError, match="no disk"):
        optimizer.step(problem.closure())
    handle.remove()
    assert optimizer.report is not None
    assert optimizer.report.step == 1
    assert all(state["step"] == 1 for state in optimizer.state.values())


# ------------------------------------------------------------------------------------------------------------ Ctrl-C


def _interrupt_at_lines(kind: Any, lines: range, tally: Any) -> bool:
    """SIGINT at one executed line of the library after another; whether the step had as many lines."""
    problem = Problem()
    optimizer = kind(problem.groups(), initial_step_size=10.0)
    optimizer.step(problem.closure())
    for group in optimizer.param_groups:
        group["step_size"] = 10.0
    closure = problem.closure()
    before = everything(problem.model, optimizer)
    states, rng = copy.deepcopy((problem.model.state_dict(), optimizer.state_dict())), RandomState.capture()
    optimizer.step(closure)
    after, tracer = everything(problem.model, optimizer), sys.gettrace()
    for at in lines:
        problem.model.load_state_dict(states[0])
        optimizer.load_state_dict(copy.deepcopy(states[1]))
        rng.restore()
        try:
            interrupted = run_with_sigint_at(at, lambda: optimizer.step(closure))
        except KeyboardInterrupt:
            interrupted = True
        sys.settrace(tracer)
        now = everything(problem.model, optimizer)
        assert same(now, before if not same(now, after) else after), f"half a step after SIGINT at line event {at}"
        if not interrupted:
            return False
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert torch.backends.mha.get_fastpath_enabled()
        assert not torch_module._global_forward_pre_hooks
        tally("interrupts at a line of the library")
    return True


@every("first", range(0, 2400, 60))
def test_ctrl_c_at_any_line_leaves_a_whole_step_or_none(first: int, tally: Any) -> None:
    assert _interrupt_at_lines(armijo.AdamSLS, range(first, first + 60, 13), tally)


@pytest.mark.soak
@every("kind", RECOMMENDED, ids=name_of)
@every("offset", range(4))
def test_ctrl_c_at_every_line_of_a_step(kind: Any, offset: int, tally: Any) -> None:
    assert not _interrupt_at_lines(kind, range(offset, 10**6, 4), tally), "the lines came to an end"


def run_with_sigint_at(at: int, function: Callable[[], object]) -> bool:
    """Send SIGINT at the `at`-th line that runs in armijo's own files; False where there are fewer."""
    lines = iter(range(10**6))
    package = str(Path(armijo.__file__).parent)

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(package):
            return None
        if event == "line" and next(lines) == at:
            signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()  # coverage's
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return next(lines) > at


# ------------------------------------------------------------------------------------- losses and gradients gone bad


@every("kind", ALL, ids=name_of)
@every("bad", [math.nan, math.inf])
def test_a_baseline_that_is_not_finite_changes_nothing(kind: Any, bad: float) -> None:
    problem = Problem()
    optimizer = kind(problem.groups())
    for _ in range(8):
        optimizer.step(problem.closure())
    closure = problem.closure()
    before = everything(problem.model, optimizer)
    optimizer.step(lambda: closure() * bad)
    after = everything(problem.model, optimizer)
    for group in (*before[1]["param_groups"], *after[1]["param_groups"]):
        del group["forwards"]
    assert same(before[:2], after[:2])
    assert optimizer.report is not None
    assert {component.status for component in optimizer.report.components} == {"nonfinite"}
    assert optimizer.report.step == 9
    optimizer.step(problem.closure())
    assert optimizer.report.step == 9


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    weight = nn.Parameter(torch.tensor([0.0, 1.0]))
    optimizer = armijo.AdamSLS([weight])
    optimizer.step(lambda: weight.sqrt().sum())
    assert optimizer.report is not None
    assert optimizer.report.components[0].status == "nonfinite"
    assert torch.equal(weight, torch.tensor([0.0, 1.0]))
    assert not optimizer.state


@every("kind", RECOMMENDED, ids=name_of)
@every("bad", [math.nan, math.inf, -math.inf])
@every("trials", ["some", "all"])
def test_trials_that_are_not_finite_are_rejected(kind: Any, bad: float, trials: str, tally: Any) -> None:
    problem = Problem()
    optimizer = kind(problem.groups())
    for _ in range(2):
        optimizer.step(problem.closure())
    closure, calls = problem.closure(), iter(range(100))
    before = everything(problem.model, optimizer)

    def loss() -> torch.Tensor:
        call, found = next(calls), closure()
        spoilt = call > 0 if trials == "all" else call in (1, 3)
        return found * bad if spoilt else found

    optimizer.step(loss)
    after = everything(problem.model, optimizer)
    if trials == "all":
        assert set(statuses(optimizer)) == {"nondeterministic"}, "the look at η = 0 was spoilt too"
        names = [name for name, _ in problem.model.named_parameters()]
        assert all(torch.equal(before[0][name], after[0][name]) for name in names)
        assert [g["step_size"] for g in before[1]["param_groups"]] == [g["step_size"] for g in after[1]["param_groups"]]
    else:
        assert set(statuses(optimizer)) == {"accepted"}
        assert optimizer.report.components[0].trials >= 2
    optimizer.step(problem.closure())
    assert set(statuses(optimizer)) == {"accepted"}
    tally("bad losses and gradients")


@every("kind", ALL, ids=name_of)
@every("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_in_a_gradient_changes_nothing(kind: Any, bad: float, tally: Any) -> None:
    problem = Problem()
    optimizer = kind(problem.groups())
    for _ in range(7):
        optimizer.step(problem.closure())
    before = everything(problem.model, optimizer)
    closure, weight = problem.closure(), problem.model[4].weight

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        grad[3, 5] = bad
        return grad

    handle = weight.register_hook(spoil)
    optimizer.step(closure)
    handle.remove()
    after = everything(problem.model, optimizer)
    for group in (*before[1]["param_groups"], *after[1]["param_groups"]):
        del group["forwards"]
    assert same(before[:2], after[:2])
    assert set(statuses(optimizer)) == {"nonfinite"}
    optimizer.step(problem.closure())
    assert "nonfinite" not in statuses(optimizer)
    tally("bad losses and gradients")


@every("kind", ALL, ids=name_of)
@every(
    "flat",
    [
        lambda weight: 0.0 * weight.sum(),
        lambda weight: 0.0 * weight.sum() + 3.0,
        lambda weight: (weight - weight.detach()).square().sum(),
    ],
    ids=["zero", "constant", "zero at its minimum"],
)
def test_a_flat_loss_moves_nothing_and_searches_nothing(kind: Any, flat: Any) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight])
    for _ in range(3):
        optimizer.step(lambda: flat(weight))
        assert statuses(optimizer) == ["skipped"]
        assert optimizer.report.forwards == 1
    assert torch.equal(weight, torch.ones(3))
    optimizer.step(lambda: (weight - 5).square().sum())
    assert statuses(optimizer) == ["accepted"]
    assert weight.min() > 1


FLAT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "no gradient": lambda loss: loss * 0,
    "constant": lambda loss: loss * 0 + 3.0,
    "exactly 0, with a slope": lambda loss: loss - loss.detach(),
    "a slope too small to search": lambda loss: loss * 1e-9 + 3.0,
}


@every("kind", RECOMMENDED, ids=name_of)
@every("selection", [None, armijo.Cycle(0), armijo.EachAlone(0), armijo.Every(2)], ids=repr)
@every("flat", FLAT)
@every("weight_decay", [0.0, 0.1])
def test_what_no_trial_can_test_does_not_move_after_ordinary_steps_either(
    kind: Any, selection: Any, flat: str, weight_decay: float
) -> None:
    if flat == "a slope too small to search" and isinstance(selection, armijo.Every):
        pytest.skip("a step without a search computes no slope")
    problem = Problem(dtype=torch.float64)
    options = {} if selection is None else {"selection": selection}
    optimizer = kind(problem.groups(), weight_decay=weight_decay, **options)
    for _ in range(3):
        optimizer.step(problem.closure())
    for _ in range(3):
        before = [p.detach().clone() for p in problem.model.parameters()]
        sizes = [group["step_size"] for group in optimizer.param_groups]
        closure = problem.closure()
        optimizer.step(lambda closure=closure: FLAT[flat](closure()))
        assert set(statuses(optimizer)) == {"skipped"}
        assert optimizer.report.forwards == 1
        assert all(map(torch.equal, before, problem.model.parameters()))
        assert [group["step_size"] for group in optimizer.param_groups] == sizes
    optimizer.step(problem.closure())
    assert optimizer.report.step == 7


@every("kind", RECOMMENDED, ids=name_of)
def test_a_first_guess_that_nothing_has_tested_is_not_taken(kind: Any) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight])
    optimizer.step(lambda: (weight - weight.detach()).sum())  # exactly 0, with a slope
    assert torch.equal(weight, torch.ones(3))


@every("kind", RECOMMENDED, ids=name_of)
def test_a_loss_of_zero_with_a_slope_is_left_alone(kind: Any) -> None:
    """f = 0 is taken for the minimum of a loss that cannot be negative, as in the paper."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight])
    optimizer.step(lambda: weight.sum() - 3.0)
    assert statuses(optimizer) == ["skipped"]
    assert optimizer.report.forwards == 1


@every("selection", [armijo.Cycle(joint_steps=2), armijo.EachAlone(joint_steps=2), armijo.Jointly()])
def test_a_component_whose_gradient_vanishes_and_wakes_up_again(selection: Any, tally: Any) -> None:
    torch.manual_seed(0)
    sleeper, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = armijo.PLASLS([{"params": [sleeper]}, {"params": [other]}], selection=selection)
    target = torch.tensor([1.0, -2.0, 3.0, 0.5])

    def loss(asleep: bool) -> torch.Tensor:
        return (0.0 if asleep else 1.0) * (sleeper - 4 * target).square().mean() + (other - target).square().mean() + 1

    for _ in range(4):
        optimizer.step(lambda: loss(False))
    before, step_size = sleeper.detach().clone(), optimizer.param_groups[0]["step_size"]
    for _ in range(100):
        optimizer.step(lambda: loss(True))
    # Momentum and η from before; nothing grew meanwhile that nobody had tested.
    assert torch.isfinite(sleeper).all()
    if not isinstance(selection, armijo.Jointly):
        assert optimizer.param_groups[0]["step_size"] == step_size
    awake = float(loss(False).detach())
    for _ in range(20):
        optimizer.step(lambda: loss(False))
    assert float(loss(False).detach()) < awake
    assert not torch.equal(before, sleeper)
    tally("components asleep and awake again")


@every("kind", [armijo.AdamSLS, armijo.PLASLS], ids=name_of)
def test_a_loss_independent_of_a_component(kind: Any) -> None:
    used, unused = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = kind([{"params": [unused]}, {"params": [used]}])
    for _ in range(30):
        optimizer.step(lambda: (used - 3).square().sum() + 1.0)
    assert torch.equal(unused, torch.ones(4))
    assert (used - 3).abs().max() < 0.5


# -------------------------------------------------------------------------------------- searches that cannot succeed


@every("kind", RECOMMENDED, ids=name_of)
def test_a_failed_search_moves_nothing_and_keeps_the_step_size(kind: Any) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight], initial_step_size=0.1)
    for _ in range(5):
        optimizer.step(stuck(weight))
        assert optimizer.report.components[0].status == "exhausted"
        assert torch.equal(weight, torch.ones(3))
        assert optimizer.param_groups[0]["step_size"] == 0.1
    assert optimizer.report.forwards <= 1 + 25 + 1, "it ends, and says so after one look at η = 0"
    optimizer.step(lambda: weight.square().sum())
    assert optimizer.report.components[0].status == "accepted"
    assert weight.max() < 1


def test_a_failed_component_stays_while_the_others_move() -> None:
    stays, moves = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = cycling_adam([{"params": [stays]}, {"params": [moves]}], selection=armijo.Cycle(joint_steps=0))
    optimizer.step(lambda: stuck(stays)() + moves.square().sum())
    assert optimizer.report is not None
    assert [component.status for component in optimizer.report.components] == ["exhausted", "unsearched"]
    assert torch.equal(stays, torch.ones(3))
    assert moves.max() < 1
    assert stays in optimizer.state, "its moments are committed all the same"


def _bad(fault: str, closure: Callable[[], torch.Tensor], noise: torch.Generator) -> Callable[[], torch.Tensor]:
    first = iter([True])
    if fault == "uphill":
        return hopeless(closure)
    if fault == "every trial infinite":
        return lambda: closure() * (1.0 if next(first, False) else math.inf)
    if fault == "every trial raises the loss":
        return lambda: closure() + (0.0 if next(first, False) else 10.0)
    return lambda: closure() + 5.0 * torch.rand((), generator=noise)


@every("kind", RECOMMENDED, ids=name_of)
@every("fault", ["uphill", "every trial infinite", "every trial raises the loss", "noise of the loss's own size"])
def test_after_searches_that_could_not_succeed_it_recovers_within_twenty_steps(
    kind: Any, fault: str, tally: Any
) -> None:
    problem = Problem()
    optimizer = kind(problem.groups())
    for _ in range(12):
        optimizer.step(problem.closure())
    step_sizes, noise, searched = [], torch.Generator().manual_seed(0), 0
    while searched < 10:
        if not searched:  # steps before the next search is due change the step size and do not fail
            step_sizes = [group["step_size"] for group in optimizer.param_groups]
        optimizer.step(_bad(fault, problem.closure(), noise))
        assert optimizer.report.forwards <= 1 + 26
        searched += bool(optimizer.report.searches)
    after = [group["step_size"] for group in optimizer.param_groups]
    if not fault.startswith("noise"):
        assert after == pytest.approx(step_sizes, rel=0.05), "a failed search leaves the step size alone"
    seen: list[str] = []
    for _ in range(20):
        optimizer.step(problem.closure())
        # A component of a cycle waits for its turn with the status of its last search.
        seen += [str(component.status) for component in optimizer.report.components if component.trials]
    assert "accepted" in seen
    assert seen.count("exhausted") + seen.count("nondeterministic") == 0
    if fault.startswith("noise"):
        # A trial that noise alone let pass counts as success, and what it leaves is left to the growth of η.
        tally(
            f"{name_of(kind)}, ten steps of noise",
            f"smallest step size {min(step_sizes):.1e} before, {min(after):.1e} after",
        )
    else:
        assert min(group["step_size"] for group in optimizer.param_groups) > 0.01 * min(step_sizes)
        tally("hopeless searches recovered from")


def test_a_function_that_does_not_repeat_is_warned_about_in_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    weight, rising = nn.Parameter(torch.ones(3)), iter(range(10_000))
    optimizer = armijo.AdamSLS([weight])
    with caplog.at_level(logging.WARNING, "armijo"):
        for _ in range(60):
            optimizer.step(lambda: weight.sum() * 0.01 + next(rising))
            assert statuses(optimizer) == ["nondeterministic"]
    assert torch.equal(weight, torch.ones(3))
    told = [record.getMessage() for record in caplog.records if "different loss" in record.getMessage()]
    assert len(told) == 1
    assert "global generators" in told[0]
