"""The contract of `LineSearch`: what it takes, what it answers, what it never loses."""

import copy
import logging
import math
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import armijo
from armijo.evaluation.rng import RandomState
from problems import ALL, Problem, cycling_adam, everything, name_of, same, stuck

every = pytest.mark.parametrize


@every("kind", ALL, ids=name_of)
def test_it_needs_nothing_but_parameters_and_learns(kind: Any) -> None:
    problem = Problem()
    optimizer = kind(problem.groups())
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.report is None
    losses = []
    for step in range(60):
        loss = optimizer.step(problem.closure())
        assert loss.shape == ()
        assert not loss.requires_grad
        assert optimizer.report.step == step + 1
        assert optimizer.report.loss == loss.item()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@every("kind", ALL, ids=name_of)
def test_it_takes_parameters_groups_and_named_parameters(kind: Any) -> None:
    model = nn.Linear(3, 2)
    for params in (
        model.parameters(),
        list(model.parameters()),
        model.named_parameters(),
        [{"params": [model.weight]}, {"params": model.bias}],
        [{"params": model.named_parameters()}],
    ):
        optimizer = kind(params)
        loss = optimizer.step(lambda: model(torch.ones(4, 3)).square().mean())
        assert loss is not None
        assert all(isinstance(group["step_size"], float) for group in optimizer.param_groups)
        assert all(isinstance(group["component"], str) for group in optimizer.param_groups)


@every("kind", ALL, ids=name_of)
def test_a_module_or_an_iterator_in_a_list_is_answered_with_a_remedy(kind: Any) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(armijo.ConfigurationError, match=r"Pass model\.parameters\(\).*armijo\.split"):
        kind(model)
    with pytest.raises(armijo.ConfigurationError, match="list that holds an iterator"):
        kind([model.parameters()])


@every(
    ("bad", "words"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"max_step_size": 0.0}, "max_step_size"),
        ({"initial_step_size": 0.0}, "initial step size"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": -1e-8}, "eps"),
        ({"c": 1.0}, "c is 1.0"),
        ({"lr": math.nan}, "lr is nan"),
    ],
)
def test_arguments_out_of_range_are_named(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(armijo.ConfigurationError, match=words):
        armijo.AdamSLS(nn.Linear(2, 2).parameters(), **bad)


def test_a_bad_group_is_not_added() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = armijo.PLASLS(first.parameters())
    for bad in ({"lr": -1.0}, {"component": ""}, {"component": 3}, {"step_size": math.inf}, {"maximize": True}):
        with pytest.raises(armijo.ConfigurationError):
            optimizer.add_param_group({"params": list(second.parameters()), **bad})
        assert len(optimizer.param_groups) == 1
    with pytest.raises(armijo.ConfigurationError, match="complex"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    optimizer.add_param_group({"params": list(second.parameters())})
    assert [group["component"] for group in optimizer.param_groups] == ["group 0", "group 1"]


def test_a_group_that_fails_to_be_added_leaves_no_trace() -> None:
    optimizer = armijo.AdamSLS(nn.Linear(2, 2).parameters())
    with pytest.raises(armijo.ConfigurationError, match="betas is None"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "betas": None})
    assert len(optimizer.param_groups) == 1


def test_a_group_that_joins_a_component_takes_its_step_size_over() -> None:
    problem = Problem()
    first, *others = problem.groups()
    optimizer = cycling_adam([first])
    optimizer.step(problem.closure())
    optimizer.add_param_group({**others[0], "component": first["component"]})
    optimizer.add_param_group(others[1])
    sizes = [group["step_size"] for group in optimizer.param_groups]
    assert sizes[0] == sizes[1] != 0.1
    assert sizes[2] == 0.1


@every("key", ["step_size", "max_step_size"])
def test_a_step_size_of_zero_is_answered_with_the_remedy(key: str) -> None:
    problem = Problem()
    optimizer = armijo.PLASLS(problem.groups())
    optimizer.param_groups[1][key] = 0.0
    before = everything(problem.model, optimizer)
    with pytest.raises(armijo.ConfigurationError, match="set its lr to 0"):
        optimizer.step(problem.closure())
    assert same(before, everything(problem.model, optimizer))


def test_groups_are_components_in_plasls_and_one_component_in_the_others() -> None:
    for kind, n in ((armijo.PLASLS, 4), (armijo.AdamSLS, 1), (armijo.SGDSLS, 1)):
        problem = Problem()
        optimizer = kind(problem.groups())
        optimizer.step(problem.closure())
        assert optimizer.report is not None
        assert len(optimizer.report.components) == n
    shared = [{**group, "component": "ab"[i % 2]} for i, group in enumerate(problem.groups())]
    optimizer = armijo.PLASLS(shared)
    for _ in range(9):
        optimizer.step(problem.closure())
    assert optimizer.report is not None
    assert [component.label for component in optimizer.report.components] == ["a", "b"]
    sizes = [group["step_size"] for group in optimizer.param_groups]
    assert sizes[0] == sizes[2]
    assert sizes[1] == sizes[3]


def test_per_group_values_act_per_group() -> None:
    weights = [nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(3)]
    optimizer = cycling_adam(
        [
            {"params": [weights[0]], "lr": 0.0},
            {"params": [weights[1]], "max_step_size": 1e-3},
            {"params": [weights[2]], "betas": (0.5, 0.5), "weight_decay": 0.1},
        ],
        selection=armijo.EachAlone(joint_steps=0),
    )
    for _ in range(3):
        optimizer.step(lambda: sum(w.square().sum() for w in weights))  # type: ignore[arg-type,return-value]
    assert torch.equal(weights[0], torch.ones(3, dtype=torch.float64))
    assert optimizer.param_groups[1]["step_size"] <= 1e-3
    assert 0 < (1 - weights[1]).max() <= 3.01e-3
    assert weights[2].max() < weights[1].min()


@every("joint_steps", [0, 9])
def test_a_cap_holds_in_joint_and_single_searches(joint_steps: int) -> None:
    problem = Problem()
    groups = problem.groups()
    groups[1]["max_step_size"] = 1e-4
    optimizer = armijo.PLASLS(groups, selection=armijo.Cycle(joint_steps))
    for _ in range(8):
        optimizer.step(problem.closure())
        assert optimizer.param_groups[1]["step_size"] <= 1e-4
    assert optimizer.param_groups[0]["step_size"] > 1e-4


def test_lr_multiplies_the_move_and_not_the_trials_and_a_scheduler_drives_it() -> None:
    moved = []
    for lr in (1.0, 0.5):
        weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = armijo.SGDSLS([weight], lr=lr)
        optimizer.step(lambda weight=weight: weight.square().sum())
        moved.append((1 - weight[0].item(), optimizer.param_groups[0]["step_size"]))
    assert moved[1][1] == moved[0][1]
    assert moved[1][0] == pytest.approx(moved[0][0] / 2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=4)
    for _ in range(4):
        optimizer.step(lambda: weight.square().sum())
        scheduler.step()
    before = weight.detach().clone()
    optimizer.step(lambda: weight.square().sum())
    assert torch.equal(weight, before)


def test_maximize_climbs() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = armijo.AdamSLS([weight], maximize=True)
    losses = [float(optimizer.step(lambda: -weight.square().sum()) or 0.0) for _ in range(30)]
    assert losses[-1] > -0.1
    assert losses[0] == -3.0


@every("kind", ALL, ids=name_of)
def test_parameters_without_a_gradient_harm_nothing(kind: Any) -> None:
    used, unused, frozen = (nn.Parameter(torch.ones(3)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = kind([{"params": [used]}, {"params": [unused]}, {"params": [frozen]}])
    for _ in range(12):
        optimizer.step(lambda: used.square().sum())
    assert torch.equal(unused, torch.ones(3))
    assert torch.equal(frozen, torch.ones(3))
    assert used.abs().max() < 1
    assert unused not in optimizer.state
    assert all(0 < group["step_size"] < 1 for group in optimizer.param_groups)


# ----------------------------------------------------------------------------------------------- the closure's part


@every("kind", ALL, ids=name_of)
def test_without_a_closure_the_remedy_is_named(kind: Any) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight])
    with pytest.raises(armijo.MissingClosureError, match="needs a closure"):
        optimizer.step()
    assert not optimizer.state
    optimizer.param_groups[0]["lr"] = 0.0
    weight.grad = torch.ones(3)
    with pytest.raises(armijo.MissingClosureError):
        optimizer.step()
    weight.grad = torch.zeros(3)
    numbers = copy.deepcopy(optimizer.state_dict()["param_groups"])
    assert optimizer.step() is None
    assert set(optimizer.state) == {weight}
    assert optimizer.state_dict()["param_groups"] == numbers
    assert torch.equal(weight, torch.ones(3))


def _after(first: Callable[[nn.Parameter], None], weight: nn.Parameter) -> torch.Tensor:
    first(weight)
    return weight.square().sum()


def _zero(weight: nn.Parameter) -> None:
    if weight.grad is not None:
        weight.grad.zero_()


def _drop(weight: nn.Parameter) -> None:
    weight.grad = None


def contract_breakers(weight: nn.Parameter) -> dict[str, tuple[Callable[[], Any], str]]:
    def meddle() -> torch.Tensor:
        with torch.no_grad():
            weight.add_(0)
        return weight.square().sum()

    return {
        "a float": (lambda: weight.square().sum().item(), "returned a float"),
        "nothing": (lambda: None, "returned nothing"),
        "a vector": (lambda: weight.square(), r"shape \(3,\)"),
        "no graph": (lambda: weight.square().sum().detach(), "no graph"),
        "complex": (lambda: weight.sum() * 1j, "complex64"),
        "changed parameters": (meddle, "changed the parameters"),
        "zero_grad, to zero": (lambda: _after(_zero, weight), "changed the gradients"),
        "zero_grad, to None": (lambda: _after(_drop, weight), "changed the gradients"),
    }


@every("breach", contract_breakers(nn.Parameter(torch.ones(3))))
def test_a_closure_that_breaks_its_contract_is_told_so_and_nothing_moves(breach: str) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = armijo.AdamSLS([weight])
    optimizer.step(lambda: weight.square().sum())
    before = (weight.detach().clone(), copy.deepcopy(optimizer.state_dict()))
    closure, words = contract_breakers(weight)[breach]
    with pytest.raises(armijo.ClosureContractError, match=words):
        optimizer.step(closure)
    assert same(before, (weight.detach(), optimizer.state_dict()))
    assert weight.grad is None or breach.startswith("zero_grad")
    optimizer.step(lambda: weight.square().sum())
    assert weight.max() < before[0].max()


def test_what_a_closure_did_to_the_parameters_in_the_first_step_is_undone() -> None:
    model = nn.Sequential(nn.Embedding(4, 3, max_norm=0.1), nn.Linear(3, 1))
    before = copy.deepcopy(model.state_dict())
    optimizer = armijo.AdamSLS(model.parameters())
    with pytest.raises(armijo.ClosureContractError, match=r"changed the parameters.*without max_norm"):
        optimizer.step(lambda: model(torch.tensor([1, 2])).sum())
    assert same(before, model.state_dict())


def test_lazy_modules_are_told_to_run_once() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(1))
    optimizer = armijo.AdamSLS(model.parameters())
    with pytest.raises(armijo.ConfigurationError, match="Run one forward before the first step"):
        optimizer.step(lambda: model(torch.ones(2, 4)).sum())
    model(torch.ones(2, 4))
    optimizer.step(lambda: model(torch.ones(2, 4)).square().sum())


def test_a_recorded_objective_keeps_its_gradients_through_the_trials_and_is_not_told_that_it_ran_backward(
    caplog: pytest.LogCaptureFixture,
) -> None:
    weight, seen = nn.Parameter(torch.ones(3)), []
    optimizer, objective = armijo.AdamSLS([weight]), armijo.Objective()

    def closure() -> torch.Tensor:
        seen.append(None if weight.grad is None else weight.grad.clone())
        return weight.square().sum()

    objective.baseline(closure).backward()
    with caplog.at_level(logging.WARNING, "armijo"):
        optimizer.step(objective)
    assert seen[0] is None
    assert len(seen) == optimizer.report.forwards > 1
    assert all(torch.equal(grad, torch.full((3,), 2.0)) for grad in seen[1:])
    assert not caplog.records


def test_a_forgotten_backward_is_told_so() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = armijo.AdamSLS([weight])
    objective = armijo.Objective()
    objective.baseline(lambda: weight.square().sum())
    with pytest.raises(armijo.ClosureContractError, match=r"Call backward\(\) on what"):
        optimizer.step(objective)


@every(
    ("key", "value"),
    [
        ("lr", "x"),
        ("lr", None),
        ("lr", math.inf),
        ("weight_decay", None),
        ("step_size", math.inf),
        ("betas", (0.9, 1.0)),
    ],
)
def test_a_value_spoilt_between_steps_is_named_and_nothing_written(key: str, value: Any) -> None:
    problem = Problem()
    optimizer = armijo.AdamSLS(problem.groups())
    optimizer.step(problem.closure())
    good, optimizer.param_groups[1][key] = optimizer.param_groups[1][key], value
    before = everything(problem.model, optimizer)
    with pytest.raises(armijo.ConfigurationError, match=key):
        optimizer.step(problem.closure())
    assert same(before, everything(problem.model, optimizer))
    optimizer.param_groups[1][key] = good
    optimizer.step(problem.closure())


def test_a_merging_that_raises_leaves_the_step_undone() -> None:
    class Failing(armijo.NeverMerge):
        def propose(self, step_sizes: Any, memory: Any) -> None:
            raise RuntimeError("no opinion")

    problem = Problem()
    optimizer = armijo.PLASLS(problem.groups(), merging=Failing())
    before = everything(problem.model, optimizer)
    with pytest.raises(RuntimeError, match="no opinion"):
        optimizer.step(problem.closure())
    assert same(before, everything(problem.model, optimizer))


def test_a_step_size_that_the_number_format_cannot_hold_is_a_failed_trial() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer = armijo.SGDSLS([weight], initial_step_size=1e5)
    optimizer.step(lambda: weight.float().square().sum())
    assert optimizer.report is not None
    assert optimizer.report.components[0].status == "accepted"
    fixed = armijo.LineSearch(
        [weight],
        direction=armijo.GradientDirection(),
        search=armijo.FixedStep(1e6),
    )
    with pytest.raises(armijo.ConfigurationError, match="Cap it with max_step_size"):
        fixed.step(lambda: weight.float().square().sum())


def test_a_state_from_before_a_scheduler_was_added_is_loaded() -> None:
    weight = nn.Parameter(torch.ones(3))
    state = armijo.AdamSLS([weight]).state_dict()
    optimizer = armijo.AdamSLS([{"params": [weight], "note": "mine"}])
    torch.optim.lr_scheduler.LinearLR(optimizer)
    optimizer.load_state_dict(state)
    optimizer.step(lambda: weight.square().sum())


def test_ctrl_c_reaches_the_trials_of_an_objective() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = armijo.AdamSLS([weight])
    reached = []

    def closure() -> torch.Tensor:
        if not torch.is_grad_enabled():
            signal.raise_signal(signal.SIGINT)
            reached.append("the line after it")
        return weight.square().sum()

    objective = armijo.Objective()
    objective.baseline(closure).backward()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(objective)
    assert not reached
    assert torch.equal(weight, torch.ones(3))


def test_a_group_added_to_one_component_takes_its_step_size_over() -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = armijo.AdamSLS([first], initial_step_size=10.0)
    optimizer.step(lambda: first.square().sum())
    optimizer.add_param_group({"params": [second]})
    assert optimizer.param_groups[1]["step_size"] == optimizer.param_groups[0]["step_size"] < 10.0


def test_a_loss_instead_of_a_closure_is_told_so() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = armijo.AdamSLS([weight])
    with pytest.raises(armijo.ClosureContractError, match="given a Tensor instead of a function"):
        optimizer.step(weight.square().sum())  # type: ignore[arg-type]
    assert not optimizer.state


def test_a_scalar_of_shape_one_is_a_scalar() -> None:
    weight = nn.Parameter(torch.ones(1))
    loss = armijo.SGDSLS([weight]).step(lambda: weight.square())
    assert loss is not None
    assert loss.shape == ()


def test_groups_may_be_relabelled_between_steps() -> None:
    problem = Problem()
    optimizer = armijo.PLASLS(problem.groups(), selection=armijo.Cycle(joint_steps=0))
    for _ in range(3):
        optimizer.step(problem.closure())
    for group in optimizer.param_groups:
        group["component"] = "one"
    optimizer.step(problem.closure())
    assert optimizer.report is not None
    assert [component.label for component in optimizer.report.components] == ["one"]


# ------------------------------------------------------------------------------------------- reports and checkpoints


@every("kind", ALL, ids=name_of)
def test_forwards_are_one_and_the_trials(kind: Any) -> None:
    problem, calls = Problem(), 0
    optimizer = kind(problem.groups())
    total = 0
    for _ in range(15):
        closure = problem.closure()

        def counted(closure: Callable[[], torch.Tensor] = closure) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return closure()

        calls = 0
        optimizer.step(counted)
        report = optimizer.report
        total += calls
        # A cycle searches one block a step, so the most trials of any component are the trials of the step.
        assert report.forwards == calls == 1 + max(component.trials for component in report.components)
        assert report.total_forwards == total


def test_observers_see_each_report_until_removed() -> None:
    problem = Problem()
    optimizer = armijo.PLASLS(problem.groups())
    seen: list[armijo.StepReport] = []
    handle = optimizer.register_observer(seen.append)
    for _ in range(3):
        optimizer.step(problem.closure())
    handle.remove()
    optimizer.step(problem.closure())
    assert [report.step for report in seen] == [1, 2, 3]
    with pytest.raises(AttributeError):
        seen[0].loss = 0.0  # type: ignore[misc]


def test_observers_stay_when_a_state_is_loaded_or_accelerate_prepares() -> None:
    accelerate = pytest.importorskip("accelerate")
    problem = Problem()
    optimizer = armijo.AdamSLS(problem.model.parameters())
    seen: list[int] = []
    optimizer.register_observer(lambda report: seen.append(report.step))
    optimizer.step(problem.closure())
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(problem.closure())
    prepared = accelerate.Accelerator(cpu=True).prepare(optimizer)
    prepared.step(problem.closure())
    assert seen == [1, 2, 3]


def test_a_deep_copy_goes_on_by_itself() -> None:
    problem = Problem()
    optimizer = armijo.PLASLS(problem.groups())
    optimizer.step(problem.closure())
    twin = copy.deepcopy(optimizer)
    assert twin.search == optimizer.search
    assert twin.selection == optimizer.selection
    parameter = twin.param_groups[0]["params"][0]
    twin.step(lambda: parameter.square().sum())
    assert twin.report is not None


def test_only_numbers_strings_and_tuples_lie_in_the_groups() -> None:
    problem = Problem()
    optimizer = armijo.PLASLS(problem.groups())
    optimizer.step(problem.closure())
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key != "params":
                assert isinstance(value, int | float | str | tuple | bool), key


def test_step_hooks_run_and_see_the_closure() -> None:
    weight, seen = nn.Parameter(torch.ones(1)), []
    optimizer = armijo.SGDSLS([weight])
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(len(args) + len(kwargs)))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(o.report.step))
    optimizer.step(lambda: weight.square().sum())
    assert seen == [2, 1]


# ---------------------------------------------------------------------------------------- somebody else's backward


def part(model: nn.Module, x: torch.Tensor, y: torch.Tensor, micro: int) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y) / micro


def test_an_objective_of_micro_batches_takes_the_step_of_the_whole_batch() -> None:
    results = []
    for micro in (1, 4):
        torch.manual_seed(0)
        model = nn.Linear(8, 3, dtype=torch.float64)
        optimizer = armijo.PLASLS([{"params": [model.weight]}, {"params": [model.bias]}])
        generator = torch.Generator().manual_seed(3)
        for _ in range(10):
            inputs = torch.randn(32, 8, generator=generator, dtype=torch.float64)
            labels = torch.randint(3, (32,), generator=generator)
            optimizer.zero_grad()
            objective = armijo.Objective()
            for x, y in zip(inputs.chunk(micro), labels.chunk(micro), strict=True):
                objective.baseline(partial(part, model, x, y, micro)).backward()
            returned = optimizer.step(objective)
            assert optimizer.report is not None
            assert optimizer.report.forwards % micro == 0
        results.append((returned, [p.detach() for p in model.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_an_empty_objective_is_refused() -> None:
    with pytest.raises(armijo.ClosureContractError, match="recorded no forward"):
        armijo.AdamSLS([nn.Parameter(torch.ones(1))]).step(armijo.Objective())


def test_an_objective_serves_one_step() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer, objective = armijo.AdamSLS([weight]), armijo.Objective()
    objective.baseline(lambda: weight.square().sum()).backward()
    optimizer.step(objective)
    with pytest.raises(armijo.ClosureContractError, match=r"new armijo\.Objective"):
        objective.baseline(lambda: weight.square().sum())
    with pytest.raises(armijo.ClosureContractError, match=r"new armijo\.Objective"):
        optimizer.step(objective)


def test_an_objective_may_be_recorded_by_somebody_else() -> None:
    weight = nn.Parameter(torch.ones(3))

    def closure() -> torch.Tensor:
        return weight.square().sum()

    random_state = RandomState.capture()
    loss = closure()
    loss.backward()
    optimizer = armijo.AdamSLS([weight])
    optimizer.step(armijo.Objective.from_forwards([armijo.RecordedForward(closure, loss.detach(), random_state)]))
    assert optimizer.report is not None
    assert optimizer.report.components[0].status == "accepted"
    assert weight.max() < 1


# -------------------------------------------------------------------------------------------------- what is logged


def test_one_sentence_for_a_component_that_has_not_moved(caplog: pytest.LogCaptureFixture) -> None:
    weight, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = armijo.PLASLS([{"params": [weight], "component": "body"}, {"params": [unused], "component": "pooler"}])
    with caplog.at_level(logging.WARNING, logger="armijo"):
        for _ in range(49):
            optimizer.step(lambda: (weight - 3).square().sum() + 1)
        assert not [r for r in caplog.records if "pooler" in r.getMessage()]
        for _ in range(60):
            optimizer.step(lambda: (weight - 3).square().sum() + 1)
    sentences = [r.getMessage() for r in caplog.records if "pooler" in r.getMessage()]
    assert len(sentences) == 1
    assert "50 steps" in sentences[0]
    assert "requires_grad=False" in sentences[0]


def test_a_loss_that_was_computed_before_the_step_is_refused() -> None:
    model, inputs = nn.Linear(3, 1), torch.randn(4, 3)
    optimizer = armijo.AdamSLS(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    loss = model(inputs).square().mean()
    with pytest.raises(armijo.ClosureContractError, match="computed before, outside of it"):
        optimizer.step(lambda: loss)
    assert all(map(torch.equal, before, model.parameters()))
    assert optimizer.report is None
    optimizer.step(lambda: model(inputs).square().mean())
    # A parameter that is the loss is computed each time, too.
    weight = nn.Parameter(torch.tensor(3.0))
    armijo.SGDSLS([weight]).step(lambda: weight)
    assert weight.item() < 3


@pytest.mark.parametrize("make", [armijo.SGDSLS, armijo.AdamSLS, armijo.PLASLS])
def test_a_learning_rate_that_was_brought_along_is_spoken_of(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    weight = nn.Parameter(torch.ones(3))
    for lr in (1.0, 0.1, 0.0):
        make([weight], lr=lr)
    assert caplog.records == []
    make([weight], lr=2e-5)
    make([{"params": [weight], "lr": torch.tensor(1e-3)}])
    assert [record.getMessage().partition(" Here ")[0] for record in caplog.records] == ["lr is 2e-05.", "lr is 0.001."]


def test_plasls_with_one_component_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    armijo.PLASLS(armijo.split(model, by="module"))
    armijo.PLASLS([{"params": list(model.parameters()), "component": "all"}])
    assert caplog.records == []
    armijo.PLASLS(model.parameters())
    assert "given one component" in caplog.text
    assert 'armijo.split(model, by="layer")' in caplog.text


def test_one_sentence_for_a_failing_component(caplog: pytest.LogCaptureFixture) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = armijo.AdamSLS([weight])
    with caplog.at_level(logging.WARNING, logger="armijo"):
        for _ in range(55):
            optimizer.step(stuck(weight))
    assert len(caplog.records) == 1
    assert "falls by -1 times what its gradient promises" in caplog.records[0].getMessage()


def test_a_loss_that_is_to_grow_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    weight = nn.Parameter(torch.full((3,), 0.1))
    optimizer = armijo.AdamSLS([weight], maximize=True)
    with caplog.at_level(logging.WARNING, logger="armijo"):
        for _ in range(30):
            optimizer.step(lambda: weight.square().sum())
    assert optimizer.report is not None
    assert optimizer.report.loss > 1
    assert not caplog.records


def test_one_sentence_for_a_loss_ten_times_its_minimum(caplog: pytest.LogCaptureFixture) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = armijo.SGDSLS([weight])
    with caplog.at_level(logging.WARNING, logger="armijo"):
        for scale in (1.0, 1.0, 20.0, 1.0):
            optimizer.step(lambda scale=scale: scale * (weight.square().sum() + 1))
        assert not caplog.records, "one hard batch is no explosion"
        for scale in (200.0, 300.0, 400.0):
            optimizer.step(lambda scale=scale: scale * (weight.square().sum() + 1))
    assert len(caplog.records) == 1
    assert "max_step_size" in caplog.records[0].getMessage()
