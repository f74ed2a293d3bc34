"""Losses that a line search cannot see into are refused with the reason; those that need more work are served."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import armijo
from armijo.step.guards import BetweenStepsWatch, check_ranks_hold_the_same
from problems import RECOMMENDED, Problem, everything, name_of, same

every = pytest.mark.parametrize


# ------------------------------------------------------------------------ a loss that does not depend on the parameters


def computed_before(problem: Problem) -> Callable[[], torch.Tensor]:
    """The forward pass runs before the closure; only the criterion runs in it."""
    inputs, labels = problem.batch()
    logits = problem.model(inputs)
    return lambda: nn.functional.cross_entropy(logits, labels)


def policy_gradient(problem: Problem, clip: bool = True, offset: float = 0.0) -> Callable[[], torch.Tensor]:
    """GRPO's and PPO's first update of a batch: the old policy is the current one, detached."""
    inputs, _ = problem.batch()
    generator = torch.Generator().manual_seed(1)
    actions = torch.randint(3, (len(inputs), 1), generator=generator)
    advantages = torch.randn(len(inputs), generator=generator, dtype=inputs.dtype)
    advantages = advantages - advantages.mean() + offset

    def loss() -> torch.Tensor:
        log_policy = problem.model(inputs).log_softmax(-1).gather(1, actions).squeeze(1)
        ratio = (log_policy - log_policy.detach()).exp()
        kept = ratio.clamp(0.8, 1.2) if clip else ratio
        return -torch.minimum(ratio * advantages, kept * advantages).mean()

    return loss


BLIND: dict[str, Callable[[Problem], Callable[[], torch.Tensor]]] = {
    "a forward before the closure": computed_before,
    "a policy gradient": policy_gradient,
    "a policy gradient without clipping": lambda problem: policy_gradient(problem, clip=False),
    "a policy gradient with a value of its own": lambda problem: policy_gradient(problem, offset=1.0),
    "straight through": lambda problem: straight_through(problem),
}


def straight_through(problem: Problem) -> Callable[[], torch.Tensor]:
    """Only the gradient depends on the parameters: the value is a detached one."""
    closure = problem.closure()

    def loss() -> torch.Tensor:
        value = closure()
        return value - value.detach() + 0.7

    return loss


@every("kind", RECOMMENDED, ids=name_of)
@every("blind", BLIND.values(), ids=BLIND)
@every("steps", [0, 3])
def test_a_loss_whose_value_does_not_depend_on_the_parameters_is_refused_at_once(
    kind: Any, blind: Any, steps: int
) -> None:
    problem = Problem()
    optimizer = kind(problem.groups())
    for _ in range(steps):
        optimizer.step(problem.closure())
    closure, calls = blind(problem), []
    before = everything(problem.model, optimizer)

    def counted() -> torch.Tensor:
        calls.append(1)
        return closure()

    with pytest.raises(armijo.ClosureContractError, match=r"does not depend on the parameters.*outside of the closure"):
        optimizer.step(counted)
    assert len(calls) == 4, "a baseline and three trials"
    assert same(before, everything(problem.model, optimizer))


def test_a_loss_with_plateaus_is_no_such_loss() -> None:
    """Far away the loss is cut off and the same everywhere, but it is another than at the start."""
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = armijo.SGDSLS([weight], initial_step_size=1e4)
    optimizer.step(lambda: (weight**2).clamp(max=5.0))
    assert optimizer.report.components[0].status == "accepted"


def test_parameters_too_coarse_to_move_are_no_such_loss() -> None:
    """In half precision the step vanishes: the loss depends on the parameters, which cannot show the step."""
    weight = nn.Parameter(torch.full((8,), 100.0, dtype=torch.bfloat16))
    optimizer = armijo.AdamSLS([weight], initial_step_size=1e-2)
    optimizer.step(lambda: (weight.float() ** 2).sum())
    assert optimizer.report.components[0].status == "exhausted"


# ------------------------------------------------------------------------------- parameters written after the forward


@every("restore", [True, False])
def test_parameters_written_between_a_recorded_forward_and_the_step_are_noticed(restore: bool) -> None:
    """Adversarial training: the embedding is perturbed for a second forward, and put back."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 2))
    tokens, labels = torch.randint(5, (6, 2)), torch.randint(2, (6,))
    optimizer = armijo.AdamSLS(model.parameters())

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(tokens), labels)

    objective = armijo.Objective()
    objective.baseline(loss).backward()
    embedding = model[0].weight
    kept = embedding.detach().clone()
    with torch.no_grad():
        embedding += 0.1 * embedding.grad.sign()
    objective.baseline(loss).backward()
    if restore:
        with torch.no_grad():
            embedding.copy_(kept)
    before = everything(model, optimizer)
    with pytest.raises(armijo.ClosureContractError, match=r"between a recorded forward and optimizer\.step"):
        optimizer.step(objective)
    assert same(before, everything(model, optimizer))


def test_the_same_perturbation_inside_of_the_closure_is_searched_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    inputs, labels = torch.randn(16, 4), torch.randint(2, (16,))
    optimizer = armijo.AdamSLS(model.parameters())

    def robust() -> torch.Tensor:
        moved = inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(moved), labels), moved)
        return nn.functional.cross_entropy(model(inputs + 0.1 * slope.sign()), labels)

    losses = [float(optimizer.step(robust)) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


@every("each", [1, 2])
def test_something_that_changes_the_parameters_after_each_step_is_spoken_of_once(
    each: int, caplog: pytest.LogCaptureFixture
) -> None:
    problem = Problem()
    optimizer = armijo.AdamSLS(problem.model.parameters())
    with caplog.at_level(logging.WARNING, "armijo"):
        for step in range(60):
            optimizer.step(problem.closure())
            if step % each == 0:
                with torch.no_grad():
                    for parameter in problem.model.parameters():
                        parameter.clamp_(-1, 1)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (1 if each == 1 else 0), said
    assert all("changed the parameters after each of the last 20 steps" in each for each in said)


# ---------------------------------------------------------------------------------- losses that differentiate inside


def penalised(problem: Problem) -> Callable[[], torch.Tensor]:
    inputs, labels = problem.batch()

    def loss() -> torch.Tensor:
        moved = inputs.clone().requires_grad_()
        logits = problem.model(moved)
        (slope,) = torch.autograd.grad(logits.sum(), moved, create_graph=True)
        return nn.functional.cross_entropy(logits, labels) + (slope.norm(dim=1) - 1).square().mean()

    return loss


@every("kind", RECOMMENDED, ids=name_of)
def test_a_loss_that_differentiates_inside_is_searched_with_gradients_enabled(kind: Any) -> None:
    problem = Problem(dtype=torch.float64)
    optimizer = kind(problem.groups())
    for step in range(6):
        closure = penalised(problem)
        random = torch.get_rng_state()
        loss = optimizer.step(closure)
        report = optimizer.report
        assert loss == report.loss
        # One evaluation of the first trial was in vain; from then on it is known.
        assert report.forwards == 1 + sum(len(each.trials) for each in report.searches) + (step == 0)
        if kind is armijo.SGDSLS and report.searches:  # it moves to the point that it tested
            after = torch.get_rng_state()
            torch.set_rng_state(random)
            assert float(closure().detach()) == pytest.approx(report.components[0].trial_loss, rel=1e-12)
            torch.set_rng_state(after)


def test_an_error_that_only_looks_like_it_is_the_users_own() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = armijo.AdamSLS([weight])
    calls = []

    def closure() -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("this does not require grad, and never will")
        return weight.square().sum()

    with pytest.raises(RuntimeError, match="never will"):
        optimizer.step(closure)
    assert torch.equal(weight, torch.ones(2))


# ------------------------------------------------------------------------------------------- closures that run backward


@every("kind", RECOMMENDED, ids=name_of)
@every("to_none", [True, False])
def test_a_closure_written_for_lbfgs_takes_the_same_steps(
    kind: Any, to_none: bool, caplog: pytest.LogCaptureFixture
) -> None:
    plain, lbfgs = Problem(), Problem()
    ours, theirs = (kind(problem.groups()) for problem in (plain, lbfgs))
    with caplog.at_level(logging.WARNING, "armijo"):
        for step in range(6):
            torch.manual_seed(step)  # the dropout masks of both
            ours.step(plain.closure())
            torch.manual_seed(step)
            loss_of = lbfgs.closure()

            def closure(loss_of: Callable[[], torch.Tensor] = loss_of) -> torch.Tensor:
                theirs.zero_grad(set_to_none=to_none)
                loss = loss_of()
                loss.backward()
                return loss

            theirs.step(closure)
            assert ours.report == theirs.report
            for a, b in zip(plain.model.parameters(), lbfgs.model.parameters(), strict=True):
                assert torch.equal(a, b)
                assert torch.equal(a.grad, b.grad)
    said = [record.getMessage() for record in caplog.records if "runs backward()" in record.getMessage()]
    assert len(said) == 1
    assert "three times as long" in said[0]


def test_a_closure_that_runs_backward_and_fails_in_a_trial_leaves_the_gradients_of_the_baseline() -> None:
    problem = Problem()
    optimizer = armijo.AdamSLS(problem.model.parameters())
    loss_of, calls = problem.closure(), []

    def closure() -> torch.Tensor:
        calls.append(1)
        loss = loss_of()
        loss.backward()
        if len(calls) == 2:
            raise RuntimeError("as asked for")
        return loss

    before = everything(problem.model, optimizer)
    with pytest.raises(RuntimeError, match="as asked for"):
        optimizer.step(closure)
    assert same(before, everything(problem.model, optimizer))
    optimizer.step(problem.closure())


# ----------------------------------------------------------------------------------- what a forward changes besides


class Stateful(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(8, 3), kind
        self.teacher = nn.Linear(8, 3)
        self.seen, self.history, self.hidden, self.cache = 0, [], torch.zeros(3), {}
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.layer(inputs)
        with torch.no_grad():
            if self.kind == "teacher":
                for kept, now in zip(self.teacher.parameters(), self.layer.parameters(), strict=True):
                    kept.lerp_(now, 0.1)
            elif self.kind == "buffer":
                self.mean.lerp_(outputs.mean(0), 0.1)  # pyright: ignore[reportCallIssue]
            elif self.kind == "seen" or (self.kind == "seen, not in trials" and outputs.requires_grad):
                self.seen += 1
            elif self.kind == "history":
                self.history.append(float(outputs.mean()))
            elif self.kind == "hidden":
                self.hidden = outputs.mean(0)
            elif self.kind == "hidden in place":
                self.hidden.copy_(outputs.mean(0))
            elif self.kind == "cache":
                self.cache["last"] = outputs.mean(0)
        return outputs + (self.teacher(inputs) if self.kind == "teacher" else 0)


CHANGED = {
    "teacher": "Linear.weight, Linear.bias",
    "seen": "Stateful.seen",
    "history": "Stateful.history",
    "hidden": "Stateful.hidden",
    "hidden in place": "Stateful.hidden",
    "cache": "Stateful.cache",
    "buffer": "",
    "seen, not in trials": "",
    "nothing": "",
}


@every("kind", CHANGED)
def test_what_a_forward_changes_besides_is_named_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Stateful(kind)
    optimizer = armijo.AdamSLS(model.layer.parameters())
    inputs, labels = torch.randn(16, 8), torch.randint(3, (16,))
    with caplog.at_level(logging.WARNING, "armijo"):
        for _ in range(4):
            optimizer.step(lambda: nn.functional.cross_entropy(model(inputs), labels))
    said = [record.getMessage() for record in caplog.records]
    if not CHANGED[kind]:
        assert said == []
    else:
        assert len(said) == 1
        assert said[0].startswith(f"A forward pass changes {CHANGED[kind]}, and so does every trial.")
        assert "torch.is_grad_enabled()" in said[0]


# ---------------------------------------------------------------------------------------------------- one more of each


@every("kind", [*RECOMMENDED, armijo.LineSearch], ids=name_of)
@every("named", [False, True])
def test_one_parameter_twice_in_a_group_is_refused(kind: Any, named: bool) -> None:
    one, two = (nn.Parameter(torch.ones(2)) for _ in range(2))
    given: Any = [("a", one), ("b", two), ("c", one)] if named else [one, two, one]
    with (
        pytest.warns(UserWarning, match="duplicate"),
        pytest.raises(armijo.ConfigurationError, match="as a and c, and would" if named else "as 0 and 2, and would"),
    ):
        kind(given)


def test_the_alarm_about_a_learning_rate_is_about_the_largest(caplog: pytest.LogCaptureFixture) -> None:
    layers = [{"params": [nn.Parameter(torch.ones(1))], "lr": 0.65**k} for k in range(13)]
    with caplog.at_level(logging.WARNING, "armijo"):
        armijo.AdamSLS(layers)
        assert not caplog.records
        armijo.AdamSLS([{**layer, "lr": layer["lr"] * 1e-2} for layer in layers])
    assert "lr is 0.01. Here lr is not a learning rate" in caplog.text


# ----------------------------------------------------------------------------------------- guards, each by itself


class TwoRanks(armijo.Objective):
    """An objective of which this process is one of two ranks; the other holds the parameters at other places."""

    def __init__(self, model: nn.Module, other: list[int]) -> None:
        super().__init__()
        self.baseline(lambda: model(torch.ones(1, 2)).sum())
        self.other = [float(len(other)), float(len(other)) ** 2, float(sum(other)), float(sum(other)) ** 2]

    def mean_over_ranks(self, compute: Callable[[], Any], size: int = 1) -> list[float]:
        return [(mine + theirs) / 2 for mine, theirs in zip(compute(), self.other, strict=True)]


@every(("other", "refused"), [([0, 1], False), ([2, 3], True), ([0], True), ([0, 1, 2, 3], True)])
def test_ranks_that_hold_other_parameters_are_told_apart_by_number_and_place(other: list[int], refused: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    objective, mine = TwoRanks(model, other), list(model.parameters())[:2]
    if not refused:
        check_ranks_hold_the_same(objective, mine)
        return
    with pytest.raises(armijo.ConfigurationError, match="as under ZeroRedundancyOptimizer"):
        check_ranks_hold_the_same(objective, mine)


def test_writes_between_steps_are_spoken_of_at_the_twentieth_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    weight, watch = torch.ones(3), BetweenStepsWatch()
    with caplog.at_level(logging.WARNING, "armijo"):
        for step in range(60):
            watch.begin([weight])
            assert len(caplog.records) == sum(step >= at for at in (20, 35 + 20))
            watch.end([weight])
            if step != 34:
                weight.add_(1.0)
