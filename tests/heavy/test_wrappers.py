"""What people put around an optimizer: it works as alone, or it is refused, or the log says what it does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_optimizer
import schedulefree
import skorch
import torch
from mechanic_pytorch import mechanize
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward

import armijo
from problems import Problem

Step = Callable[[Problem], Any]


def _equal(problem: Problem, steps: int, step: Step) -> bool:
    """Whether the parameters are those of a plain loop after as many steps."""
    twin = Problem()
    plain = armijo.AdamSLS(twin.model.parameters())
    for number in range(steps):
        torch.manual_seed(number)
        step(problem)
        torch.manual_seed(number)
        plain.step(twin.closure())
    return all(map(torch.equal, problem.model.parameters(), twin.model.parameters()))


def test_averages_of_the_weights_leave_the_trajectory_alone() -> None:
    problem = Problem()
    optimizer = armijo.AdamSLS(problem.model.parameters())
    averaged = torch.optim.swa_utils.AveragedModel(problem.model)

    def step(problem: Problem) -> None:
        optimizer.step(problem.closure())
        averaged.update_parameters(problem.model)

    assert _equal(problem, 10, step)
    assert not all(map(torch.equal, averaged.module.parameters(), problem.model.parameters()))


def test_lookahead_is_the_plain_loop_until_it_pulls_the_weights_back() -> None:
    problem = Problem()
    lookahead = pytorch_optimizer.Lookahead(armijo.AdamSLS(problem.model.parameters()), k=11)
    assert _equal(problem, 10, lambda problem: lookahead.step(problem.closure()))
    before = [parameter.detach().clone() for parameter in problem.model.parameters()]
    for _ in range(20):
        lookahead.step(problem.closure())
    assert not all(map(torch.equal, problem.model.parameters(), before))


def test_skorch_trains_as_a_plain_loop_does() -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))

    inputs, labels = Problem().batch(128)
    net = skorch.NeuralNetClassifier(
        fresh(), criterion=nn.CrossEntropyLoss, optimizer=armijo.AdamSLS, lr=1.0, max_epochs=3, batch_size=32,
        verbose=0, train_split=None,
    )  # fmt: skip
    net.fit(inputs.numpy(), labels.numpy())
    model = fresh()
    optimizer = armijo.AdamSLS(model.parameters())
    for _ in range(3):
        for x, y in zip(inputs.split(32), labels.split(32), strict=True):
            optimizer.step(lambda x=x, y=y: nn.functional.cross_entropy(model(x), y))
    assert all(map(torch.equal, net.module_.parameters(), model.parameters()))


def _sam(problem: Problem) -> Step:
    sam = pytorch_optimizer.SAM(problem.model.parameters(), base_optimizer=armijo.AdamSLS, rho=0.05)

    def step(problem: Problem) -> None:
        closure = problem.closure()

        def again() -> torch.Tensor:
            loss = closure()
            loss.backward()
            return loss

        closure().backward()
        sam.step(again)

    return step


def _pcgrad(problem: Problem) -> Step:
    wrapped = pytorch_optimizer.PCGrad(armijo.AdamSLS(problem.model.parameters()))

    def step(problem: Problem) -> None:
        wrapped.pc_backward([problem.closure()(), problem.closure()()])
        wrapped.step()

    return step


def _in_backward(problem: Problem) -> Step:
    _apply_optimizer_in_backward(armijo.AdamSLS, problem.model.parameters(), {})
    return lambda problem: problem.closure()().backward()


def _schedule_free(problem: Problem) -> Step:
    wrapped = schedulefree.ScheduleFreeWrapper(armijo.AdamSLS(problem.model.parameters()))
    wrapped.train()
    return lambda problem: wrapped.step(problem.closure())


def _orthograd(problem: Problem) -> Step:
    wrapped = pytorch_optimizer.OrthoGrad(armijo.AdamSLS(problem.model.parameters()))
    return lambda problem: wrapped.step(problem.closure())


def _mechanic(problem: Problem) -> Step:
    wrapped = mechanize(armijo.AdamSLS)(problem.model.parameters())
    return lambda problem: wrapped.step(problem.closure())


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (_sam, "needs a closure"),
        (_pcgrad, "needs a closure"),
        (_in_backward, "needs a closure"),
        (_schedule_free, "needs a closure"),
        (_orthograd, "changed the gradients"),
        (_mechanic, "no graph to differentiate"),
    ],
)
def test_a_wrapper_that_takes_another_step_is_refused(wrap: Callable[[Problem], Step], words: str) -> None:
    problem = Problem()
    before = [parameter.detach().clone() for parameter in problem.model.parameters()]
    step = wrap(problem)
    with pytest.raises(armijo.ArmijoError, match=words):
        step(problem)
    if wrap is not _sam:  # it climbs before it asks for the step
        assert all(map(torch.equal, problem.model.parameters(), before))


def test_a_wrapper_that_rescales_the_step_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    problem = Problem()
    trac = pytorch_optimizer.TRAC(armijo.AdamSLS(problem.model.parameters()))
    with caplog.at_level(logging.WARNING, "armijo"):
        for _ in range(30):
            trac.step(problem.closure())
    (said,) = [record for record in caplog.records if "Something else has changed" in record.message]
    assert "an optimizer around this one" in said.message
