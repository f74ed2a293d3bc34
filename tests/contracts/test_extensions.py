"""What a user can add in one class each: the parts of `extensions.py` in whole runs."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import nn

import armijo
from armijo import Memory
from armijo.components.partition import check_components
from armijo.components.splitting import split
from contracts.extensions import (
    AdaBelief,
    AloneThenTogether,
    BarzilaiBorwein,
    HeavyBall,
    JudgedByNextBatch,
    LargestOfTheLast,
    LearnedRatios,
    Lion,
    OnDemand,
    WhileLossRose,
    by_shape,
)
from problems import Problem, cycling_adam, everything, same

every = pytest.mark.parametrize
Gradient = armijo.GradientDirection


def line_search(problem: Problem, **parts: Any) -> armijo.LineSearch:
    return armijo.LineSearch(problem.groups(), **parts)


EXTENDED: dict[str, dict[str, Any]] = {
    "Lion": {"direction": Lion()},
    "AdaBelief": {"direction": AdaBelief()},
    "Goldstein": {"search": armijo.Bracketing(armijo.Goldstein())},
    "every third step": {"selection": armijo.Every(3)},
    "while the loss rose": {"selection": WhileLossRose()},
    "on demand": {"selection": OnDemand()},
    "smoothed": {"search": armijo.Backtracking(armijo.SmoothedArmijo())},
    "smoothed, in a cycle": {"search": armijo.Backtracking(armijo.SmoothedArmijo()), "selection": armijo.Cycle(2)},
    "non-monotone": {"search": armijo.Backtracking(LargestOfTheLast()), "direction": Gradient()},
    "Barzilai-Borwein": {
        "direction": armijo.KeepLastStep(Gradient()),
        "search": armijo.Backtracking(guess=BarzilaiBorwein()),
    },
    "learned ratios": {
        "direction": armijo.KeepLastStep(armijo.AdamDirection((0.0, 0.999))),
        "search": armijo.Backtracking(guess=LearnedRatios()),
    },
    "judged by the next batch": {
        "direction": armijo.KeepLastStep(armijo.AdamDirection((0.0, 0.999))),
        "search": JudgedByNextBatch(),
        "partition": armijo.Together(),
    },
}


@every("parts", EXTENDED.values(), ids=EXTENDED)
def test_it_learns(parts: Any) -> None:
    problem = Problem()
    optimizer = line_search(problem, **parts)
    losses = [float(optimizer.step(problem.closure())) for _ in range(60)]
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


def test_a_fixed_step_needs_no_criterion_and_no_guess() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = armijo.LineSearch([weight], direction=armijo.AdamDirection(), search=armijo.FixedStep(1e-3))
    optimizer.step(lambda: weight.square().sum())
    torch.testing.assert_close(weight.detach(), torch.full((3,), 1 - 1e-3))
    assert optimizer.report is not None
    assert optimizer.report.components[0].status == "unsearched"
    (search,) = optimizer.report.searches
    assert (search.trials, search.step_size) == ((), 1e-3)


def test_a_component_that_climbs_stays_where_it_is_not_searched_either() -> None:
    problem = Problem(dtype=torch.float64)
    problem.model.eval()
    optimizer = line_search(problem, direction=HeavyBall(), selection=armijo.Every(10**6))
    climbing = 0
    for _ in range(200):
        before = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        optimizer.step(problem.closure())
        assert optimizer.report is not None
        after = (p for group in optimizer.param_groups for p in group["params"])
        same_as_before = iter(list(map(torch.equal, before, after)))
        for group, component in zip(optimizer.param_groups, optimizer.report.components, strict=True):
            stayed = [next(same_as_before) for _ in group["params"]]
            if component.slope < 0:
                climbing += 1
                assert component.status == "ascent"
                assert all(stayed)
    assert climbing > 3


def test_a_later_block_that_fails_keeps_the_step_sizes_found_alone() -> None:
    weights = [nn.Parameter(torch.tensor(1.0, dtype=torch.float64)) for _ in range(2)]
    optimizer = armijo.LineSearch(
        [{"params": [w]} for w in weights],
        direction=Gradient(),
        search=armijo.Backtracking(max_trials=1),
        selection=AloneThenTogether(),
    )
    # Each may halve the loss alone; together they overshoot.
    optimizer.param_groups[0]["step_size"] = optimizer.param_groups[1]["step_size"] = 0.48
    growth = armijo.Growth().factor
    optimizer.step(lambda: (weights[0] + weights[1]) ** 2)
    report = optimizer.report
    assert report is not None
    assert [search.status for search in report.searches] == ["accepted", "accepted", "exhausted"]
    assert [w.item() for w in weights] == [1.0, 1.0]
    assert [component.step_size for component in report.components] == [0.48 * growth] * 2
    assert [component.trials for component in report.components] == [3, 3]


def test_reported_losses_have_the_sign_of_the_users_loss() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = armijo.AdamSLS([weight], maximize=True)
    optimizer.step(lambda: -weight.square().sum())
    report = optimizer.report
    assert report is not None
    assert report.loss == -2.0
    assert report.components[0].trial_loss == pytest.approx(-weight.detach().square().sum().item())
    assert report.searches[0].trials[-1].loss == report.components[0].trial_loss


def test_nothing_moves_along_a_direction_that_climbs() -> None:
    problem = Problem(dtype=torch.float64)
    problem.model.eval()
    optimizer = armijo.LineSearch(problem.model.parameters(), direction=HeavyBall(), search=armijo.Backtracking())
    climbing = 0
    for _ in range(200):
        before = [p.detach().clone() for p in problem.model.parameters()]
        step_size = optimizer.param_groups[0]["step_size"]
        optimizer.step(problem.closure())
        assert optimizer.report is not None
        (component,) = optimizer.report.components
        stayed = all(map(torch.equal, before, problem.model.parameters()))
        assert (component.status == "ascent") == (component.slope < 0)
        if component.slope < 0:
            climbing += 1
            assert stayed
            assert (component.trials, component.step_size) == (0, step_size)
            assert optimizer.report.forwards == 1
    assert climbing > 3


# ---------------------------------------------------------------------------------------------------------- the memory


def carry_state_dict(optimizer: armijo.LineSearch, build: Callable[[], armijo.LineSearch]) -> armijo.LineSearch:
    file = BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = build()
    twin.load_state_dict(torch.load(file, weights_only=True))
    return twin


def carry_pickle(optimizer: armijo.LineSearch, build: Callable[[], armijo.LineSearch]) -> armijo.LineSearch:
    return pickle.loads(pickle.dumps(optimizer))


def carry_copy(optimizer: armijo.LineSearch, build: Callable[[], armijo.LineSearch]) -> armijo.LineSearch:
    return copy.deepcopy(optimizer)


def carry_accelerate(optimizer: armijo.LineSearch, build: Callable[[], armijo.LineSearch]) -> armijo.LineSearch:
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(optimizer).optimizer


def carry_distributed_checkpoint(
    optimizer: armijo.LineSearch, build: Callable[[], armijo.LineSearch]
) -> armijo.LineSearch:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = nn.ParameterList([p for group in optimizer.param_groups for p in group["params"]])
    state = get_optimizer_state_dict(model, optimizer)
    twin = build()
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    set_optimizer_state_dict(model, twin, state)
    return twin


MEMORY = {"smoothed": "mean_decrease", "non-monotone": "last_losses", "Barzilai-Borwein": "last_slope"}


@every("carry", [carry_state_dict, carry_pickle, carry_copy, carry_accelerate, carry_distributed_checkpoint])
@every("kind", MEMORY)
def test_what_a_part_remembers_survives(kind: str, carry: Any) -> None:
    problem = Problem()
    optimizer = line_search(problem, **EXTENDED[kind])
    for _ in range(5):
        optimizer.step(problem.closure())
    name = MEMORY[kind]
    remembered = [group[name] for group in optimizer.param_groups]
    assert all(remembered)
    twin = carry(optimizer, lambda: line_search(problem, **EXTENDED[kind]))
    assert [group[name] for group in twin.param_groups] == remembered
    if isinstance(remembered[0], list):
        lists = [group[name] for each in (optimizer, twin) for group in each.param_groups]
        assert len({id(each) for each in lists}) == len(lists) or carry is carry_accelerate, "no list is shared"


def test_a_resumed_run_with_memory_equals_the_uninterrupted_one() -> None:
    ends = []
    for interrupted in (False, True):
        problem = Problem()
        optimizer = line_search(problem, **EXTENDED["smoothed, in a cycle"])
        for step in range(12):
            if interrupted and step == 7:
                optimizer = carry_state_dict(
                    optimizer, lambda problem=problem: line_search(problem, **EXTENDED["smoothed, in a cycle"])
                )
            optimizer.step(problem.closure())
        ends.append([p.detach().clone() for p in problem.model.parameters()])
    assert all(map(torch.equal, *ends))


@every("kind", ["smoothed", "while the loss rose", "judged by the next batch", "Barzilai-Borwein"])
@every("at", [0, 1])
def test_a_step_that_raises_leaves_the_memory_as_it_was(kind: str, at: int) -> None:
    problem = Problem()
    optimizer = line_search(problem, **EXTENDED[kind])
    for _ in range(4):
        optimizer.step(problem.closure())
    before, calls, closure = everything(problem.model, optimizer), iter(range(99)), problem.closure()

    def failing() -> torch.Tensor:
        loss = closure()
        if next(calls) == at:
            raise RuntimeError("as asked for")
        return loss

    try:
        optimizer.step(failing)
    except RuntimeError:
        assert same(before, everything(problem.model, optimizer))
    else:
        assert kind == "while the loss rose", "it made no trial that could fail"


def test_a_nonfinite_step_leaves_the_memory_as_it_was() -> None:
    problem = Problem()
    optimizer = line_search(problem, **EXTENDED["Barzilai-Borwein"])
    optimizer.step(problem.closure())
    before = copy.deepcopy(optimizer.state_dict()["param_groups"])
    closure = problem.closure()
    optimizer.step(lambda: closure() * math.nan)
    after = optimizer.state_dict()["param_groups"]
    assert [{**group, "forwards": 0} for group in before] == [{**group, "forwards": 0} for group in after]


def test_components_searched_together_share_what_the_search_remembers_and_keep_what_the_guess_does() -> None:
    problem = Problem()
    search = armijo.Backtracking(armijo.SmoothedArmijo(), BarzilaiBorwein())
    optimizer = line_search(problem, direction=armijo.KeepLastStep(Gradient()), search=search)
    for _ in range(3):
        optimizer.step(problem.closure())
    assert len({group["mean_decrease"] for group in optimizer.param_groups}) == 1
    assert len({group["last_slope"] for group in optimizer.param_groups}) == len(optimizer.param_groups)


def with_parts(optimizer: armijo.LineSearch, **parts: Any) -> armijo.LineSearch:
    """The same run with other parts."""
    groups = [{"params": group["params"], "component": group["component"]} for group in optimizer.param_groups]
    twin = armijo.LineSearch(groups, **parts)
    twin.load_state_dict(optimizer.state_dict())
    return twin


def test_parts_are_not_exchanged_on_a_live_optimizer_and_another_takes_its_state_over() -> None:
    problem = Problem()
    optimizer = line_search(problem)
    optimizer.step(problem.closure())
    with pytest.raises(armijo.ConfigurationError, match=r"selection .* cannot be exchanged.*load.*state_dict"):
        optimizer.selection = armijo.Cycle()
    assert optimizer.selection == armijo.Jointly()
    twin = with_parts(optimizer, selection=armijo.Cycle(0))
    assert twin.param_groups[0]["cycle_place"] == 0
    twin.step(problem.closure())
    assert twin.report is not None
    assert twin.report.step == 2


def test_merging_keeps_the_memory_of_the_component_that_stays() -> None:
    problem = Problem()
    search = armijo.Backtracking(armijo.SmoothedArmijo())
    optimizer = line_search(problem, search=search, selection=armijo.EachAlone(0))
    for _ in range(3):
        optimizer.step(problem.closure())
    assert optimizer.param_groups[0]["mean_decrease"] != optimizer.param_groups[1]["mean_decrease"]
    optimizer = with_parts(
        optimizer,
        search=search,
        merging=armijo.MergeSmallest(1e9),
        selection=armijo.Every(100),  # no search now, so that nothing else is written
    )
    optimizer.step(problem.closure())
    assert optimizer.report is not None
    ((label, absorbed),) = optimizer.report.merges
    merged = [g for g in optimizer.param_groups if g["component"] == label]
    assert len(merged) == 2, absorbed
    assert merged[0]["mean_decrease"] == merged[1]["mean_decrease"]


def test_a_cycle_takes_its_place_modulo_at_the_merge_and_not_later() -> None:
    problem = Problem()
    *groups, late = problem.groups()
    optimizer = cycling_adam(groups, selection=armijo.Cycle(0))
    for _ in range(2):
        optimizer.step(problem.closure())
    assert optimizer.param_groups[0]["cycle_place"] == 2
    optimizer = with_parts(optimizer, merging=armijo.MergeSmallest(1e9), selection=armijo.Cycle(0))
    for group in optimizer.param_groups:
        group["cycle_place"] = 1
    optimizer.step(problem.closure())  # place 1 is searched, 2 would be next, and two components are left
    assert optimizer.param_groups[0]["cycle_place"] == 0
    optimizer = with_parts(optimizer, selection=armijo.Cycle(0))
    optimizer.add_param_group(late)
    optimizer.step(problem.closure())
    assert optimizer.report is not None
    assert optimizer.report.searches[0].components == (optimizer.components[0].label,)


def test_a_group_that_joins_a_component_takes_its_memory_over_and_another_starts_anew() -> None:
    problem = Problem()
    first, second, *others = problem.groups()
    search = armijo.Backtracking(LargestOfTheLast())
    optimizer = armijo.LineSearch([first], search=search)
    for _ in range(2):
        optimizer.step(problem.closure())
    optimizer.add_param_group({**second, "component": first["component"]})
    optimizer.add_param_group(others[0])
    lists = [group["last_losses"] for group in optimizer.param_groups]
    assert lists[0] == lists[1] != []
    assert lists[0] is not lists[1]
    assert lists[2] == []


def test_memory_that_is_one_for_the_optimizer_must_be_alike_in_every_group() -> None:
    problem = Problem()
    optimizer = line_search(problem, selection=armijo.Cycle())
    state = optimizer.state_dict()
    state["param_groups"][1]["cycle_place"] = 3
    with pytest.raises(armijo.ConfigurationError, match="cycle_place is 3; it must be alike in every group"):
        optimizer.load_state_dict(state)


@dataclass(frozen=True)
class WritesDown(armijo.Selection):
    """Counts how often it is told of its searches, and selects nothing."""

    def defaults(self) -> Memory:
        return {"told_at": []}

    def blocks(self, lines: Any, step: int, memory: Memory) -> tuple[tuple[int, ...], ...]:
        return ()

    def remember(self, searches: Any, step: int, memory: Memory) -> None:
        assert not searches
        memory["told_at"].append(step)


def test_a_selection_within_every_few_steps_is_told_of_its_steps_alone_also_where_it_selected_nothing() -> None:
    problem = Problem()
    optimizer = line_search(problem, selection=armijo.Every(2, WritesDown()))
    for _ in range(5):
        optimizer.step(problem.closure())
    assert optimizer.param_groups[0]["told_at"] == [0, 1, 2]


# -------------------------------------------------------------------------------------------- parts that cannot be used


class Forgetful(armijo.Growth):
    def defaults(self) -> dict[str, Any]:
        return {"lr": 1.0}


class KeepsTensors(armijo.Growth):
    def defaults(self) -> dict[str, Any]:
        return {"last": 0.0}

    def next(self, step_size: float, line: armijo.Line, memory: Any) -> float:
        memory["last"] = torch.ones(())
        return step_size


class Undeclared(armijo.Growth):
    def next(self, step_size: float, line: armijo.Line, memory: Any) -> float:
        memory["last"] = 1.0
        return step_size


class Backwards(armijo.Growth):
    def next(self, step_size: float, line: armijo.Line, memory: Any) -> float:
        return -step_size


class Twice(armijo.Jointly):
    def blocks(self, lines: Any, step: int, memory: Any) -> Any:
        return ((0, 0),)


class Elsewhere(armijo.Jointly):
    def blocks(self, lines: Any, step: int, memory: Any) -> Any:
        return ((len(lines),),)


class Endless(armijo.FixedStep):
    def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> armijo.Outcome:
        return armijo.Outcome(math.inf, armijo.Status.UNSEARCHED)


class Hasty(armijo.NeverMerge):
    def propose(self, step_sizes: Any, memory: Any) -> armijo.Merge:
        return armijo.Merge(1, 0, 1.0)


class NoPart:
    pass


class Shapeless(armijo.GradientDirection):
    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mean": torch.zeros(())}


class CountsToo(armijo.GradientDirection):
    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"step": torch.zeros_like(parameter)}


class OneTooFew(armijo.GradientDirection):
    def search_direction(self, grads: Any, states: Any, group: Any) -> Any:
        return grads[1:]


class Flat(armijo.GradientDirection):
    def update(self, grads: Any, states: Any, scratch: Any, group: Any) -> Any:
        return [grad.unsqueeze(0) for grad in grads]


class FailsInTheCommit(armijo.AdamDirection):
    def update(self, grads: Any, states: Any, scratch: Any, group: Any) -> Any:
        states[0]["exp_avg"].fill_(7.0)
        raise armijo.ConfigurationError("as asked for")


class Halves(armijo.Jointly):
    def blocks(self, lines: Any, step: int, memory: Any) -> Any:
        return ((0.0,),)


class NowhereBefore(armijo.EachAlone):
    def moved_before(self, block: Any) -> Any:
        return None


class Nothing(armijo.FixedStep):
    def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> Any:
        return armijo.Outcome(None, armijo.Status.UNSEARCHED)  # pyright: ignore[reportArgumentType]


class Words(armijo.FixedStep):
    def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> armijo.Outcome:
        evaluate("far")
        return armijo.Outcome(first, armijo.Status.UNSEARCHED)


class TooFar(armijo.FixedStep):
    def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> armijo.Outcome:
        evaluate(7.0)
        return armijo.Outcome(first, armijo.Status.UNSEARCHED)


class Sizeless(armijo.NeverMerge):
    def propose(self, step_sizes: Any, memory: Any) -> Any:
        return armijo.Merge(0, 1, None)  # pyright: ignore[reportArgumentType]


class MergesBelowZero(armijo.NeverMerge):
    def propose(self, step_sizes: Any, memory: Any) -> Any:
        return armijo.Merge(0, 1, -0.1)


class StepsBack(armijo.FixedStep):
    def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> armijo.Outcome:
        return armijo.Outcome(-0.5, armijo.Status.UNSEARCHED)


class Scalars(armijo.GradientDirection):
    def probes(self, states: Any, group: Any) -> Any:
        return {"far": [torch.ones(()) for _ in states]}


class SometimesProbes(armijo.GradientDirection):
    def probes(self, states: Any, group: Any) -> Any:
        return {"far": [torch.ones(()) for _ in states]} if states else {}


class FailsOnMatrices(armijo.AdamDirection):
    def update(self, grads: Any, states: Any, scratch: Any, group: Any) -> Any:
        return [grad.T @ grad if grad.ndim == 2 else grad for grad in grads]


class NotFinite(armijo.GradientDirection):
    def update(self, grads: Any, states: Any, scratch: Any, group: Any) -> Any:
        return [grad / 0 for grad in grads]


class RecordFails(armijo.AdamDirection):
    def record_step(self, states: Any, updates: Any, step_size: float) -> None:
        raise armijo.ConfigurationError("as asked for")


class NoProbes(armijo.GradientDirection):
    def probes(self, states: Any, group: Any) -> Any:
        return None if states else {}


@dataclass(frozen=True)
class Parted:
    """A partition that answers whatever it is given."""

    answer: Any

    def components(self, labels: Any) -> Any:
        return self.answer


class Moved(armijo.EachAlone):
    def moved_before(self, block: tuple[int, ...]) -> tuple[int, ...]:
        return block


@every(
    ("parts", "words"),
    [
        ({"search": armijo.Backtracking(guess=Forgetful())}, "names lr in its defaults"),
        (
            {"search": armijo.Backtracking(armijo.SmoothedArmijo()), "selection": NoPart()},
            r"no method .*blocks.*armijo\.Sel",
        ),
        ({"direction": armijo.GradientDirection}, r"pass an instance: GradientDirection\("),
        ({"selection": armijo.Jointly}, "selection of LineSearch is the class Jointly"),
        ({"search": armijo.Armijo(0.1)}, r"no method initial_step_size.*armijo\.Search"),
        ({"direction": Shapeless()}, r"moments returned .* for a parameter of the shape \(2,\)"),
        ({"direction": CountsToo()}, 'names other than "step"'),
    ],
)
def test_a_part_that_does_not_fit_is_refused_when_the_optimizer_is_built(parts: Any, words: str) -> None:
    with pytest.raises(armijo.ConfigurationError, match=words):
        armijo.LineSearch([nn.Parameter(torch.ones(2))], **parts)


@every(
    ("build", "words"),
    [
        (
            lambda: armijo.Every(armijo.Cycle()),
            r"Every\(Cycle\(joint_steps=6\)\) cannot count steps.*Every\(3, Cycle\(\)\)",
        ),
        (lambda: armijo.Every(2.5), "cannot count steps"),
        (lambda: armijo.Every(3, armijo.Cycle), r"selection of Every is the class Cycle"),
        (lambda: armijo.Cycle(True), "an integer of 0 or more"),
        (lambda: armijo.KeepLastStep(armijo.AdamDirection), "direction of KeepLastStep is the class AdamDirection"),
        (lambda: armijo.Backtracking(max_trials=2.5), "max_trials is 2.5; it must be an integer"),
        (lambda: armijo.Bracketing(max_trials="many"), "max_trials is 'many'"),
        (lambda: armijo.Backtracking(armijo.Growth()), "criterion of Backtracking is Growth.* no method violation"),
        (lambda: armijo.Backtracking(armijo.Armijo), "pass an instance"),
        (lambda: armijo.Backtracking(least_slope=None), "least_slope is None"),
        (lambda: armijo.Armijo("0.5"), "c is '0.5'"),
        (lambda: armijo.Growth("0.1"), "initial step size is '0.1'"),
        (lambda: armijo.FixedStep("0.1"), "fixed step size is '0.1'"),
        (lambda: armijo.MergeSmallest("0.1"), "threshold is '0.1'"),
    ],
)
def test_a_wrong_kind_of_argument_is_a_sentence(build: Any, words: str) -> None:
    with pytest.raises(armijo.ConfigurationError, match=words):
        build()


@every("kind", [armijo.SGDSLS, armijo.AdamSLS, armijo.PLASLS])
@every("part", ["criterion", "search", "direction", "foo"])
def test_a_recommended_class_says_where_other_parts_go(kind: Any, part: str) -> None:
    with pytest.raises(TypeError, match=rf"{kind.__name__} takes no {part}.*armijo\.LineSearch\(params, direction="):
        kind([nn.Parameter(torch.ones(2))], **{part: 1})


@every(
    "answer",
    [
        None,
        (),
        "ab",
        (armijo.Component("a", (0, 1, 2, 3)), armijo.Component("b", (0,))),
        (armijo.Component("a", (0, 1)),),
        (armijo.Component("a", (0, 1)), armijo.Component("a", (2, 3))),
        (armijo.Component("a", (2, 3)), armijo.Component("b", (0, 1))),
        (armijo.Component("a", (1, 0, 2, 3)),),
        (armijo.Component(3, (0, 1, 2, 3)),),  # pyright: ignore[reportArgumentType]
        (armijo.Component("a", (0, 1, 2, -1)),),
        (armijo.Component("a", (0, 1, 2, 3)), armijo.Component("b", ())),
        (armijo.Component("", (0, 1, 2, 3)),),
        (armijo.Component("a", [0, 1, 2, 3]),),  # pyright: ignore[reportArgumentType]
        (armijo.Component("a", (0.0, 1, 2, 3)),),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_partition_that_loses_or_doubles_a_group_is_refused(answer: Any) -> None:
    with pytest.raises(armijo.ConfigurationError, match="lies in exactly one, and components and their groups ascend"):
        check_components(Parted(answer), answer, 4)
    with pytest.raises(armijo.ConfigurationError, match="of 1 parameter groups"):
        line_search(Problem(), partition=Parted(answer))
    good = [armijo.Component("a", (0, 2)), armijo.Component("b", (1, 3))]
    assert check_components(Parted(good), good, 4) == tuple(good)


class RemembersNothing(armijo.Growth):
    def defaults(self) -> Any:
        return None


class NumberedMemory(armijo.Growth):
    def defaults(self) -> Any:
        return {3: 0.0}


@every("guess", [RemembersNothing(), NumberedMemory()])
def test_memory_that_is_no_dict_of_names_is_refused(guess: Any) -> None:
    with pytest.raises(armijo.ConfigurationError, match=r"defaults\(\) returned .* It must return a dict"):
        armijo.Backtracking(guess=guess)


def test_memory_that_is_nan_can_be_loaded() -> None:
    @dataclass(frozen=True)
    class Unknown(armijo.Jointly):
        def defaults(self) -> Memory:
            return {"unknown": math.nan, "several": [math.nan, 1.0]}

    optimizer = line_search(Problem(), selection=Unknown())
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert math.isnan(optimizer.param_groups[-1]["unknown"])


def test_an_inner_moment_by_the_name_of_the_last_step_is_refused() -> None:
    with pytest.raises(armijo.ConfigurationError, match="has a moment last_step of its own"):
        armijo.LineSearch(
            [nn.Parameter(torch.ones(2))],
            direction=armijo.KeepLastStep(armijo.KeepLastStep(Gradient())),
        )


@every("value", [True, "x"])
def test_a_group_that_is_turned_round_later_is_noticed(value: Any) -> None:
    problem = Problem()
    optimizer = line_search(problem)
    optimizer.param_groups[1]["maximize"] = value
    with pytest.raises(armijo.ConfigurationError, match="maximize"):
        optimizer.step(problem.closure())


def test_an_evaluation_after_the_search_is_refused() -> None:
    kept: list[Any] = []

    class Keeps(armijo.FixedStep):
        def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> armijo.Outcome:
            kept.append(evaluate)
            return armijo.Outcome(first, armijo.Status.UNSEARCHED)

    weight = nn.Parameter(torch.ones(2))
    optimizer = armijo.LineSearch([weight], search=Keeps(0.1))
    optimizer.step(lambda: weight.square().sum())
    before = weight.detach().clone()
    with pytest.raises(RuntimeError, match="called after its search"):
        kept[0](0.5)
    assert torch.equal(weight, before)


@every("name", ["min_lr", "momentum", "swa_lr"])
def test_memory_by_a_name_that_schedulers_write_is_refused(name: str) -> None:
    class Scheduled(armijo.Growth):
        def defaults(self) -> Any:
            return {name: 0.0}

    with pytest.raises(armijo.ConfigurationError, match=f"names {name} in its defaults"):
        armijo.LineSearch([nn.Parameter(torch.ones(2))], search=armijo.Backtracking(guess=Scheduled()))


class CyclesToo(armijo.Growth):
    def defaults(self) -> dict[str, Any]:
        return {"cycle_place": 0}


def test_two_parts_with_one_name_are_refused() -> None:
    search = armijo.Backtracking(guess=CyclesToo())
    with pytest.raises(armijo.ConfigurationError, match="remember 'cycle_place'"):
        armijo.LineSearch([nn.Parameter(torch.ones(2))], search=search, selection=armijo.Cycle())


@every(
    ("parts", "words"),
    [
        ({"search": armijo.Backtracking(guess=KeepsTensors())}, r"last is tensor.*float\(tensor\)"),
        ({"search": armijo.Backtracking(guess=Undeclared())}, r"a name that no defaults\(\) declares"),
        ({"search": armijo.Backtracking(guess=Backwards())}, "must be a positive number"),
        ({"selection": Twice()}, "no place occurs twice"),
        ({"selection": Elsewhere()}, r"places in 0\.\.3"),
        ({"search": Endless(1.0)}, "must be a finite number"),
        ({"merging": Hasty()}, "kept < absorbed"),
        ({"direction": OneTooFew()}, "search_direction returned .* one tensor of the same shape"),
        ({"direction": Flat()}, r"update returned .* for gradients"),
        ({"direction": FailsInTheCommit()}, "as asked for"),
        ({"selection": Halves()}, r"selected the block \(0\.0,\)"),
        ({"selection": NowhereBefore(0)}, "None have moved before"),
        ({"search": Nothing(1.0)}, "found the step size None"),
        ({"merging": Sizeless()}, "a finite step size > 0"),
        ({"merging": MergesBelowZero()}, "a finite step size > 0"),
        ({"search": StepsBack(1.0)}, r"found the step size -0\.5.*0 to stay"),
        ({"direction": Scalars()}, "probes returned .* one tensor of the same shape"),
        ({"direction": SometimesProbes()}, "probes names far for a parameter group, and none for no parameters"),
        (
            {"search": TooFar(1.0), "max_step_size": 5.0},
            "tried the step size 7.0; the longest allowed here is line.longest, 5.0",
        ),
        ({"direction": FailsOnMatrices()}, "update returned .* one tensor of the same shape"),
        ({"direction": NotFinite()}, "update returned numbers that are not finite"),
        ({"direction": RecordFails()}, "as asked for"),
        ({"direction": NoProbes()}, "probes names none for a parameter group"),
        ({"search": Words(1.0)}, "tried a step size that is NaN or no number"),
        ({"selection": Moved(0)}, r"\(0,\) have moved before the block \(0,\)"),
        ({"search": JudgedByNextBatch()}, "last_step"),
    ],
)
def test_a_part_that_answers_nonsense_is_named_and_nothing_is_written(parts: Any, words: str) -> None:
    problem = Problem()
    optimizer = line_search(problem, **parts)
    before = everything(problem.model, optimizer)

    def steps() -> None:
        nonlocal before
        for _ in range(3):
            before = everything(problem.model, optimizer)
            optimizer.step(problem.closure())

    with pytest.raises(armijo.ConfigurationError, match=words):
        steps()
    assert same(before, everything(problem.model, optimizer))


def test_a_selection_sees_how_its_searches_ended() -> None:
    problem = Problem()
    optimizer = armijo.AdamSLS(problem.model.parameters(), selection=OnDemand())
    searched = []
    for _ in range(80):
        optimizer.step(problem.closure())
        assert optimizer.report is not None
        searched.append(len(optimizer.report.searches))
        gap = optimizer.param_groups[0]["gap"]
        if searched[-1]:
            (search,) = optimizer.report.searches
            assert (gap > 1) == (search.step_size == search.first_step_size)
    assert 0 < sum(searched) < 40
    assert optimizer.report.total_forwards < 160


@every("c", [0.1, 0.5])
def test_components_searched_alone_may_be_tested_together_at_last(c: float) -> None:
    problem = Problem(dtype=torch.float64)
    problem.model.eval()
    search = armijo.Backtracking(armijo.Armijo(c))
    optimizer = line_search(
        problem, direction=armijo.AdamDirection((0.0, 0.999)), search=search, selection=AloneThenTogether()
    )
    shortened = 0
    for _ in range(30):
        closure = problem.closure()
        before = [group["step_size"] for group in optimizer.param_groups]
        optimizer.step(closure)
        report = optimizer.report
        assert report is not None
        *alone, together = report.searches
        assert [len(each.components) for each in alone] == [1, 1, 1, 1]
        assert len(together.components) == 4
        assert together.first_step_size == max(each.step_size for each in alone)
        shortened += together.step_size < together.first_step_size
        promised = sum(c.step_size * c.slope for c in report.components)
        # What was tested at last is what was taken.
        assert closure().item() == pytest.approx(report.components[0].trial_loss, rel=1e-12)
        assert closure().item() <= report.loss - c * promised + 1e-12
        assert report.forwards == 1 + sum(len(each.trials) for each in report.searches)
        assert before != [group["step_size"] for group in optimizer.param_groups]
    assert shortened > 0, "alone they accept longer steps than together"


class ClimbsInVectors(armijo.GradientDirection):
    def search_direction(self, grads: Any, states: Any, group: Any) -> Any:
        return [-grad if grad.ndim == 1 else grad for grad in grads]


def test_a_component_that_stays_alone_stays_in_the_joint_test_too() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3))
    groups = [{"params": [vector]}, {"params": [matrix], "max_step_size": 0.05}]
    optimizer = armijo.LineSearch(groups, direction=ClimbsInVectors(), selection=AloneThenTogether())
    optimizer.step(lambda: matrix.square().sum() + vector.square().sum())
    *_, together = optimizer.report.searches
    assert together.components == ("group 0", "group 1")
    assert (together.status, together.step_size) == ("accepted", 0.05)
    assert torch.equal(vector, torch.ones(3))
    assert torch.equal(matrix, torch.full((2, 2), 0.9))


def test_a_splitting_rule_is_a_function() -> None:
    groups = split(Problem().model, by=by_shape)
    assert [group["component"] for group in groups] == ["matrices", "vectors"]


# --------------------------------------------------------------------------------------------------------- the reports


def test_each_search_is_reported_with_its_trials() -> None:
    problem = Problem()
    optimizer = cycling_adam(problem.groups(), selection=armijo.EachAlone(joint_steps=1))
    optimizer.step(problem.closure())
    assert optimizer.report is not None
    (search,) = optimizer.report.searches
    assert search.components == tuple(component.label for component in optimizer.components)
    assert search.trials[0].step_size == search.first_step_size == 0.1 * 2 ** (1 / 500)
    assert armijo.Trial(search.step_size, optimizer.report.components[0].trial_loss) in search.trials
    assert search.slope == pytest.approx(sum(component.slope for component in optimizer.report.components))
    optimizer.step(problem.closure())
    assert [search.components for search in optimizer.report.searches] == [(c.label,) for c in optimizer.components]
    assert optimizer.report.forwards == 1 + sum(len(search.trials) for search in optimizer.report.searches)
    assert [len(s.trials) for s in optimizer.report.searches] == [c.trials for c in optimizer.report.components]


def test_memory_may_be_written_in_every_way_of_a_dict() -> None:
    from armijo.search.memory import ScratchMemory

    memory = ScratchMemory({"a": 0, "b": [1], "c": 2, "d": 3, "e": 4})
    memory |= {"a": 1}
    memory["b"].append(2)
    memory.update(c=3)
    assert memory.setdefault("d", 9) == 3
    assert memory.setdefault("new", 5) == 5
    assert memory.written == {"a": 1, "b": [1, 2], "c": 3, "new": 5}
    memory = ScratchMemory({"a": [3, 4], "b": [3, 4]})
    memory["a"][1] = 0
    assert memory.written == {"a": [3, 0]}


@dataclass(frozen=True)
class MomentsOfMatrices(armijo.GradientDirection):
    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"m": torch.zeros_like(parameter)} if parameter.ndim > 1 else {}


def test_moments_may_depend_on_the_number_of_dimensions() -> None:
    problem = Problem()
    optimizer = line_search(problem, direction=MomentsOfMatrices())
    optimizer.step(problem.closure())
    twin = carry_state_dict(optimizer, lambda: line_search(problem, direction=MomentsOfMatrices()))
    assert [set(state) for state in twin.state.values()] == [set(state) for state in optimizer.state.values()]


def test_the_last_step_of_a_parameter_without_a_gradient_is_none() -> None:
    weights = [nn.Parameter(torch.tensor(1.0)) for _ in range(2)]
    optimizer = armijo.LineSearch(weights, direction=armijo.KeepLastStep(Gradient()), search=armijo.FixedStep(0.1))

    def kept() -> list[float]:
        return [optimizer.state[weight]["last_step"].item() for weight in weights]

    optimizer.step(lambda: weights[0] + 2 * weights[1])
    assert kept() == pytest.approx([0.1, 0.2])
    optimizer.step(lambda: weights[0] * 3)
    assert kept() == pytest.approx([0.3, 0.0])
    optimizer.step(lambda: weights[1] * 1)
    assert kept() == pytest.approx([0.0, 0.1])


def test_bracketing_lengthens_a_first_step_that_rounding_would_judge() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = armijo.LineSearch([weight], direction=Gradient(), search=armijo.Bracketing())
    optimizer.param_groups[0]["step_size"] = 1e-12
    optimizer.step(lambda: (weight - 3.0) ** 2)
    assert optimizer.report is not None
    assert optimizer.report.components[0].status == "accepted"
    assert 0.25 <= optimizer.param_groups[0]["step_size"] <= 0.75


@every("lr", [1.0, 0.5])
def test_a_place_that_has_moved_before_moves_by_what_the_commit_moves_it(lr: float) -> None:
    @dataclass(frozen=True)
    class FirstHasMoved(armijo.EachAlone):
        def moved_before(self, block: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(range(block[0]))

    weights = [nn.Parameter(torch.tensor(1.0)) for _ in range(2)]
    seen: list[float] = []

    def loss() -> torch.Tensor:
        seen.append(weights[0].item())
        return (weights[0] ** 2 + weights[1] ** 2) / 2

    optimizer = armijo.LineSearch(
        [{"params": [weight]} for weight in weights], direction=Gradient(), lr=lr, selection=FirstHasMoved(0)
    )
    optimizer.step(loss)
    assert seen[-1] == weights[0].item() != 1.0


def test_a_hyperparameter_of_a_direction_may_be_called_momentum_and_driven() -> None:
    @dataclass(frozen=True)
    class Averaged(armijo.GradientDirection):
        def defaults(self) -> dict[str, Any]:
            return {"momentum": 0.9}

    optimizer = armijo.LineSearch([nn.Parameter(torch.ones(2))], direction=Averaged())
    assert optimizer.param_groups[0]["momentum"] == 0.9


@every("kind", [armijo.SGDSLS, armijo.AdamSLS, armijo.PLASLS])
def test_a_state_that_was_only_looked_up_is_no_state(kind: Any) -> None:
    problem, twin = Problem(), Problem()
    looked, plain = kind(problem.groups()), kind(twin.groups())
    for parameter in problem.model.parameters():
        assert looked.state[parameter] == {}
    looked.load_state_dict(looked.state_dict())
    pickle.loads(pickle.dumps(looked))
    for step in range(3):
        torch.manual_seed(step)
        looked.step(problem.closure())
        torch.manual_seed(step)
        plain.step(twin.closure())
    assert all(map(torch.equal, problem.model.parameters(), twin.model.parameters()))


@every("carry", [True, False])
def test_a_model_converted_after_a_step_is_told_to_convert_the_optimizer(carry: bool) -> None:
    problem = Problem()
    optimizer = line_search(problem, direction=armijo.AdamDirection())
    optimizer.step(problem.closure())
    inputs, labels = problem.batch()
    problem.model.double()

    def closure() -> torch.Tensor:
        return nn.functional.cross_entropy(problem.model(inputs.double()), labels)

    if carry:
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step(closure)
        return
    before = everything(problem.model, optimizer)
    with pytest.raises(armijo.ConfigurationError, match=r"the model was converted after a step.*load_state_dict"):
        optimizer.step(closure)
    assert same(before, everything(problem.model, optimizer))
