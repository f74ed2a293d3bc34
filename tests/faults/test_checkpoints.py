"""A run that goes on from a checkpoint is the run that was never interrupted, whatever carried it and whenever."""

from __future__ import annotations

import copy
import logging
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import armijo
from armijo.evaluation.rng import RandomState
from problems import (
    ALL,
    RECOMMENDED,
    Problem,
    cycling_adam,
    everything,
    failing,
    growing_adam,
    hopeless,
    name_of,
    same,
    statuses,
)

MERGING = {armijo.PLASLS: {"merging": armijo.MergeSmallest(1.0)}, armijo.paper.PLASLS: {"merge_below": 1.0}}
PLASLS = [armijo.PLASLS, armijo.paper.PLASLS]

# Phase: the steps before the checkpoint, whether components merge, whether the last search before it is hopeless.
PHASES: dict[str, tuple[int, bool, bool]] = {
    "joint phase": (3, False, False),
    "mid-cycle": (10, False, False),
    "right after a merge": (1, True, False),
    "after an exhausted search": (8, False, True),
    "before the first step": (0, False, False),
}
CASES = [
    (kind, phase)
    for kind in ALL
    for phase in PHASES
    if kind in PLASLS or phase not in ("mid-cycle", "right after a merge")
]

Carry = Callable[[Problem, armijo.LineSearch, Path], Callable[[Problem, armijo.LineSearch], Any]]


def by_state_dict(problem: Problem, optimizer: armijo.LineSearch, folder: Path) -> Any:
    saved = copy.deepcopy(optimizer.state_dict())
    return lambda _, fresh: fresh.load_state_dict(saved)


def by_torch_save(problem: Problem, optimizer: armijo.LineSearch, folder: Path) -> Any:
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return lambda _, fresh: fresh.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))


def by_pickle(problem: Problem, optimizer: armijo.LineSearch, folder: Path) -> Any:
    data = pickle.dumps(optimizer)
    return lambda _, fresh: fresh.load_state_dict(pickle.loads(data).state_dict())


def by_deepcopy(problem: Problem, optimizer: armijo.LineSearch, folder: Path) -> Any:
    twin = copy.deepcopy(optimizer)
    return lambda _, fresh: fresh.load_state_dict(twin.state_dict())


def by_accelerate(problem: Problem, optimizer: armijo.LineSearch, folder: Path) -> Any:
    from accelerate import Accelerator

    prepared: Any = Accelerator(cpu=True).prepare(optimizer)
    saved = copy.deepcopy(prepared.state_dict())

    def restore(_: Problem, fresh: armijo.LineSearch) -> Any:
        fresh.load_state_dict(saved)
        return Accelerator(cpu=True).prepare(fresh)

    return restore


def by_distributed_checkpoint(problem: Problem, optimizer: armijo.LineSearch, folder: Path) -> Any:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    _, saved = get_state_dict(problem.model, optimizer)
    checkpoint.save({"optimizer": saved}, checkpoint_id=folder / "dcp")

    def restore(problem: Problem, fresh: armijo.LineSearch) -> None:
        # Where gradients are left from training, torch takes an optimizer without state for one that keeps none.
        fresh.zero_grad()
        model, empty = get_state_dict(problem.model, fresh)
        loaded = {"optimizer": empty}
        checkpoint.load(loaded, checkpoint_id=folder / "dcp")
        set_state_dict(problem.model, fresh, model_state_dict=model, optim_state_dict=loaded["optimizer"])

    return restore


CARRIERS: dict[str, Carry] = {
    "state_dict": by_state_dict,
    "torch.save": by_torch_save,
    "pickle": by_pickle,
    "deepcopy": by_deepcopy,
    "Accelerate": by_accelerate,
    "distributed checkpoint": by_distributed_checkpoint,
}


# torch's own checkpoint modules announce their own deprecations.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "phase"), CASES, ids=lambda value: value if isinstance(value, str) else name_of(value)
)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_the_next_twenty_steps_are_those_of_the_uninterrupted_run(
    kind: Any, phase: str, carrier: str, tmp_path: Path, tally: Any
) -> None:
    before, merging, exhausted = PHASES[phase]
    kwargs = MERGING[kind] if merging else {}
    problem = Problem()
    optimizer = kind(problem.groups(), **kwargs)
    for step in range(before):
        closure = problem.closure()
        optimizer.step(hopeless(closure) if exhausted and step == before - 1 else closure)
    if merging:
        assert optimizer.report.merges
    if exhausted:
        for _ in range(10):  # until a search is due
            if not optimizer.report.searches:
                optimizer.step(hopeless(problem.closure()))
        assert "exhausted" in statuses(optimizer)
    batches = [problem.closure() for _ in range(20)]
    weights = copy.deepcopy(problem.model.state_dict())
    restore = CARRIERS[carrier](problem, optimizer, tmp_path)
    rng = RandomState.capture()
    for closure in batches:
        optimizer.step(closure)
    end = everything(problem.model, optimizer)

    problem.model.load_state_dict(weights)
    fresh = kind(problem.groups(), **kwargs)
    stepped = restore(problem, fresh) or fresh
    rng.restore()
    for closure in batches:
        stepped.step(closure)
    assert same(end, everything(problem.model, fresh))
    assert fresh.report == optimizer.report
    tally("checkpoints continued bit for bit")


# -------------------------------------------------------------------------------------------- what cannot be loaded


def _damaged() -> dict[str, tuple[Callable[[dict[str, Any]], Any], str]]:
    def change(**values: Any) -> Callable[[dict[str, Any]], Any]:
        def apply(state: dict[str, Any]) -> Any:
            for key, value in values.items():
                state["param_groups"][-1][key] = value
            return state

        return apply

    def without(key: str) -> Callable[[dict[str, Any]], Any]:
        def apply(state: dict[str, Any]) -> Any:
            del state["param_groups"][-1][key]
            return state

        return apply

    def moment(value: Any) -> Callable[[dict[str, Any]], Any]:
        def apply(state: dict[str, Any]) -> Any:
            state["state"][0] = value(state["state"][0]) if callable(value) else value
            return state

        return apply

    def fewer(state: dict[str, Any]) -> Any:
        state["param_groups"][-1]["params"] = state["param_groups"][-1]["params"][:1]
        return state

    def foreign(state: dict[str, Any]) -> Any:
        state["state"][99] = state["state"][0]
        return state

    return {
        "nothing": (lambda state: {}, "This is not a state of"),
        "a list": (lambda state: [state], "This is not a state of"),
        "no groups": (lambda state: {"state": state["state"]}, "This is not a state of"),
        "groups of nothing": (lambda state: {**state, "param_groups": [None, None, None]}, "This is not a state of"),
        "one group too few": (
            lambda state: {**state, "param_groups": state["param_groups"][:-1]},
            r"this optimizer 4 groups.*split in the same way",
        ),
        "one parameter too few": (fewer, r"split in the same way"),
        "another version": (change(format=3), r"has the format 3.*version of armijo that wrote it"),
        "a key is missing": (without("step_size"), "its groups lack step_size"),
        "a step size of zero": (change(step_size=0.0), "step_size is 0.0; it must be more than 0"),
        "a step size of NaN": (change(step_size=math.nan), "step_size is nan"),
        "an infinite step size": (change(step_size=math.inf), "step_size is infinite"),
        "a step size in words": (change(step_size="large"), "step_size is large"),
        "a label of nothing": (change(component=None), '"component" is None'),
        "an lr of None": (change(lr=None), "lr is None"),
        "half a count": (change(steps=2.5), "steps is 2.5; it must be a count"),
        "half a place": (change(cycle_place=0.5), "cycle_place is 0.5, where defaults"),
        "a place in words": (change(cycle_place="x"), "cycle_place is 'x'"),
        "groups that disagree": (change(steps=999), "steps is 999; it must be a count, alike"),
        "one group maximizes": (change(maximize=True), "One group maximizes"),
        "no moments": (moment({}), "for parameter 0 it holds nothing"),
        "a moment is missing": (moment(lambda m: {"step": m["step"]}), "for parameter 0 it holds step, where"),
        "moments of nothing": (moment(None), "for parameter 0 it holds NoneType"),
        "a moment of another shape": (
            moment(lambda m: {**m, "exp_avg": torch.zeros(3)}),
            r"exp_avg of parameter 0 has the shape \(3,\), and the parameter \(16, 8\)",
        ),
        "a moment that is no tensor": (moment(lambda m: {**m, "exp_avg": 1.0}), "has the shape float"),
        "a step of NaN": (moment(lambda m: {**m, "step": torch.tensor(math.nan)}), "step count of parameter 0"),
        "a step in words": (moment(lambda m: {**m, "step": "three"}), "step count of parameter 0"),
        "a moment of NaN": (
            moment(lambda m: {**m, "exp_avg": torch.full((16, 8), math.nan)}),
            "exp_avg of parameter 0 holds NaN",
        ),
        "a complex moment": (moment(lambda m: {**m, "exp_avg": torch.zeros(16, 8) * 1j}), "complex64"),
        "parameters of nothing": (change(params=None), "This is not a state of"),
        "an lr beyond all numbers": (change(lr=10**400), "OverflowError"),
        "maximize in words": (change(maximize="x"), "maximize is 'x'"),
        "a version in words": (change(format="one"), "has the format one"),
        "an infinite eps": (change(eps=math.inf), "eps is inf"),
        "moments of nobody": (foreign, "a parameter 99 that is in none"),
    }


@pytest.mark.parametrize("damage", _damaged())
def test_a_damaged_state_is_refused_and_nothing_loaded(damage: str, tally: Any) -> None:
    problem = Problem()
    optimizer = cycling_adam(problem.groups())
    for _ in range(8):
        optimizer.step(problem.closure())
    spoil, words = _damaged()[damage]
    state = spoil(copy.deepcopy(optimizer.state_dict()))
    optimizer.step(problem.closure())
    before = everything(problem.model, optimizer)
    with pytest.raises(armijo.ConfigurationError, match=words):
        optimizer.load_state_dict(state)
    assert same(before, everything(problem.model, optimizer))
    optimizer.step(problem.closure())
    tally("damaged states refused")


@pytest.mark.parametrize("kind", [*RECOMMENDED, growing_adam, cycling_adam], ids=name_of)
@pytest.mark.parametrize(
    "other",
    [*RECOMMENDED, growing_adam, cycling_adam, torch.optim.Adam, torch.optim.SGD],
    ids=lambda kind: kind.__name__,
)
def test_the_state_of_another_kind_is_refused_unless_it_is_the_same(kind: Any, other: Any) -> None:
    problem = Problem()
    saved = other(problem.groups())
    for _ in range(2):
        if isinstance(saved, armijo.LineSearch):
            saved.step(problem.closure())
        else:
            problem.closure()().backward()
            saved.step()
    optimizer = kind(problem.groups())
    before = everything(problem.model, optimizer)
    families = [{armijo.SGDSLS}, {armijo.AdamSLS, armijo.PLASLS}, {growing_adam, cycling_adam}]
    if {kind, other} <= next(family for family in families if kind in family):  # they keep the same moments
        state = saved.state_dict()
        optimizer.load_state_dict(state)
        for group in state["param_groups"] if kind is cycling_adam else ():
            group.setdefault("cycle_place", 0)  # the other has no cycle; one begins
        assert same(optimizer.state_dict(), state)
    else:
        with pytest.raises(armijo.ConfigurationError, match=type(optimizer).__name__):
            optimizer.load_state_dict(saved.state_dict())
        assert same(before, everything(problem.model, optimizer))


def test_a_checkpoint_cut_short_never_reaches_the_optimizer(tmp_path: Path) -> None:
    problem = Problem()
    optimizer = armijo.PLASLS(problem.groups())
    optimizer.step(problem.closure())
    torch.save(optimizer.state_dict(), tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    before = everything(problem.model, optimizer)
    for length in range(0, len(data), len(data) // 20):
        (tmp_path / "cut.pt").write_bytes(data[:length])
        with pytest.raises((RuntimeError, EOFError, OSError, pickle.UnpicklingError)):
            optimizer.load_state_dict(torch.load(tmp_path / "cut.pt", weights_only=True))
        assert same(before, everything(problem.model, optimizer))


# ------------------------------------------------------------------------------------------------- mixed precision


class _Unscaled(torch.amp.GradScaler):
    """The scaler for the CPU."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__("cpu", **keywords)


def _scaled_step(problem: Problem, optimizer: armijo.LineSearch, scaler: _Unscaled, spoil: bool) -> None:
    closure = problem.closure()

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.float16):
            found = closure()
        return found.float()

    objective = armijo.Objective()
    optimizer.zero_grad()
    scaler.scale(objective.baseline(loss)).backward()
    if spoil:
        problem.model[0].weight.grad.fill_(math.inf)
    scaler.unscale_(optimizer)
    scaler.step(optimizer, objective)
    scaler.update()


@pytest.mark.parametrize("kind", RECOMMENDED, ids=name_of)
def test_a_grad_scaler_that_skips_steps_and_changes_its_scale(kind: Any) -> None:
    problem = Problem()
    optimizer = kind(problem.groups())
    scaler = _Unscaled(init_scale=2.0**8, growth_interval=3)
    scales = []
    for step in range(12):
        before = everything(problem.model, optimizer)[:2]
        _scaled_step(problem, optimizer, scaler, spoil=step in (4, 5))
        scales.append(scaler.get_scale())
        if step in (4, 5):
            assert same(before[1], optimizer.state_dict()), "a skipped step changes nothing of the optimizer's"
            assert same(
                [before[0][name] for name, _ in problem.model.named_parameters()], list(problem.model.parameters())
            )
    assert scales[3] > 2.0**8
    assert scales[5] == scales[3] / 4
    assert optimizer.report.step == 10
    assert optimizer.report.components[0].status in ("accepted", "unsearched")


@pytest.mark.parametrize("kind", RECOMMENDED, ids=name_of)
def test_the_scale_does_not_change_the_step(kind: Any) -> None:
    ends = []
    for scale in (1.0, 2.0**10):
        problem = Problem()
        optimizer = kind(problem.groups())
        scaler = _Unscaled(init_scale=scale, growth_interval=10**6)
        for _ in range(6):
            _scaled_step(problem, optimizer, scaler, spoil=False)
        ends.append([group["step_size"] for group in optimizer.param_groups])
    assert ends[0] == pytest.approx(ends[1], rel=0.2)  # float16 gradients round otherwise at another scale


@pytest.mark.parametrize("kind", RECOMMENDED, ids=name_of)
@pytest.mark.parametrize("outer", [False, True], ids=["autocast in the closure", "one outer autocast region"])
def test_bfloat16_autocast(kind: Any, outer: bool) -> None:
    problem = Problem()
    optimizer = kind(problem.groups())

    def step() -> float:
        inputs, labels = problem.batch()

        def loss() -> torch.Tensor:
            if outer:
                return nn.functional.cross_entropy(problem.model(inputs).float(), labels)
            with torch.autocast("cpu", torch.bfloat16):
                logits = problem.model(inputs)
            return nn.functional.cross_entropy(logits.float(), labels)

        return float(optimizer.step(loss))

    if outer:
        with torch.autocast("cpu", torch.bfloat16):
            losses = [step() for _ in range(40)]
    else:
        losses = [step() for _ in range(40)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_half_precision_is_spoken_of_once_and_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    problem = Problem(dtype=torch.bfloat16)
    optimizer = armijo.AdamSLS(problem.model.parameters())
    with caplog.at_level(logging.WARNING, "armijo"):
        for _ in range(3):
            optimizer.step(problem.closure())
    weights, loss = [record.getMessage() for record in caplog.records]
    assert "8 of 8 parameters are bfloat16" in weights
    assert "float32 (model.float())" in weights
    assert "The loss is bfloat16: near 1" in loss
    assert "moves in steps of 0.008" in loss
    assert "logits.float()" in loss
    caplog.clear()
    problem = Problem()
    with caplog.at_level(logging.WARNING, "armijo"):
        armijo.AdamSLS(problem.model.parameters()).step(problem.closure())
    assert not caplog.records


def test_half_precision_is_spoken_of_also_where_the_first_search_fails(caplog: pytest.LogCaptureFixture) -> None:
    problem = Problem(dtype=torch.bfloat16)
    optimizer = armijo.AdamSLS(problem.model.parameters())
    with caplog.at_level(logging.WARNING, "armijo"), pytest.raises(RuntimeError):
        optimizer.step(failing(problem.closure(), at=1, error=RuntimeError("as asked for")))
    assert "8 of 8 parameters are bfloat16" in caplog.text
