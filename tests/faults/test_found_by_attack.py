"""Faults that somebody found who had not seen how their kinds were mended."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import armijo
from problems import RECOMMENDED, name_of

every = pytest.mark.parametrize
X = torch.randn(64, 20, generator=torch.Generator().manual_seed(1))
Y = (X[:, :3].sum(1) > 0).long()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 2))


def statuses(optimizer: armijo.LineSearch) -> list[str]:
    assert optimizer.report is not None
    return [str(component.status) for component in optimizer.report.components]


@every("rows", [8, 64])
@every("by", [None, "module"])
def test_a_model_that_fits_its_rows_trains_on(rows: int, by: Any) -> None:
    model = net()
    optimizer = armijo.PLASLS(armijo.split(model, by=by)) if by else armijo.AdamSLS(model.parameters())
    for _ in range(300):
        loss = optimizer.step(lambda: functional.cross_entropy(model(X[:rows]), Y[:rows]))
    assert float(loss) < 1e-3


def test_a_component_whose_search_failed_waits_for_one_that_succeeds() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = armijo.AdamSLS([w], selection=armijo.Every(3))
    optimizer.step(lambda: (w**2).sum())
    before = w.detach().clone()
    # The gradient of this loss points uphill: the slope is positive, and no trial succeeds.
    seen = []
    for _ in range(7):
        optimizer.step(lambda: 2 * (w**2).sum().detach() - (w**2).sum())
        seen += statuses(optimizer)
    assert seen[:2] == ["unsearched", "unsearched"]
    assert seen[2:] == ["exhausted"] * 5
    failed = w.detach().clone()
    assert not torch.equal(failed, before)
    optimizer.step(lambda: (w**2).sum())
    assert torch.equal(w, failed)
    assert optimizer.param_groups[0]["failed_searches"] == 2
    optimizer.step(lambda: (w**2).sum())
    assert statuses(optimizer) == ["accepted"]
    assert optimizer.param_groups[0]["failed_searches"] == 0
    optimizer.step(lambda: (w**2).sum())
    assert statuses(optimizer) == ["unsearched"]


def test_a_cycle_leaves_a_component_whose_search_failed_where_it_is() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [a], "component": "a"}, {"params": [b], "component": "b"}]
    optimizer = armijo.PLASLS(groups, selection=armijo.Cycle(joint_steps=0))

    def closure() -> torch.Tensor:
        return (a**2).sum() + 2 * (b**2).sum().detach() - (b**2).sum()

    optimizer.step(closure)
    optimizer.step(closure)
    assert statuses(optimizer) == ["unsearched", "exhausted"]
    stays = b.detach().clone()
    optimizer.step(closure)
    assert statuses(optimizer) == ["accepted", "exhausted"]
    assert torch.equal(b, stays)


def test_a_backward_pass_inside_of_the_loss_is_not_that_of_the_loss(caplog: pytest.LogCaptureFixture) -> None:
    def fast_gradient_sign(inner: bool) -> Any:
        model = net()
        optimizer = armijo.AdamSLS(model.parameters())

        def closure() -> torch.Tensor:
            noise = torch.zeros_like(X, requires_grad=True)
            loss = functional.cross_entropy(model(X + noise), Y)
            if inner:
                loss.backward()
                grad = noise.grad
            else:
                (grad,) = torch.autograd.grad(loss, noise)
            assert grad is not None
            return functional.cross_entropy(model(X + 0.1 * grad.sign()), Y)

        for _ in range(5):
            optimizer.step(closure)
        return [parameter.detach().clone() for parameter in model.parameters()]

    with caplog.at_level(logging.WARNING, "armijo"):
        assert all(map(torch.equal, fast_gradient_sign(True), fast_gradient_sign(False)))
    assert "torch.autograd.grad(loss, inputs)" in caplog.text


@every("kind", RECOMMENDED, ids=name_of)
def test_a_mode_that_the_closure_leaves_behind_is_not_that_of_the_trials(kind: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Dropout(0.5), nn.Linear(32, 2))

    def closure() -> torch.Tensor:
        loss = functional.cross_entropy(model(X), Y)
        model.eval()
        return loss

    objective = armijo.Objective()
    model.train()
    objective.baseline(closure).backward()
    assert objective.trial() == objective.value()
    objective.restore_after_baseline()
    assert not model.training


def test_a_hook_that_writes_during_the_backward_pass_is_seen() -> None:
    model = net()
    optimizer = armijo.AdamSLS(model.parameters())

    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        with torch.no_grad():
            parameter.add_(parameter.grad, alpha=-0.1)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(armijo.ClosureContractError, match="changed the parameters"):
        optimizer.step(lambda: functional.cross_entropy(model(X), Y))
    assert all(map(torch.equal, model.parameters(), before))


@every("state", [{"scale": 1.0}, [1.0], {"a": {"b": 1.0}}, deque([1.0], maxlen=1), np.ones(2)], ids=str)
def test_what_a_forward_changes_inside_of_an_attribute_is_named(state: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.statistics = nn.Linear(20, 2), state

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if isinstance(state, dict):
                inner, key = (state["a"], "b") if "a" in state else (state, "scale")
                inner[key] *= 0.9
            elif isinstance(state, deque):
                state.append(state[0] * 0.9)
            else:
                state[0] *= 0.9
            return self.linear(x)

    model = Model()
    optimizer = armijo.SGDSLS(model.parameters())
    with caplog.at_level(logging.WARNING, "armijo"):
        optimizer.step(lambda: functional.cross_entropy(model(X), Y))
    assert "A forward pass changes Model.statistics" in caplog.text


def _forgotten_zero_grad(model: nn.Module, optimizer: armijo.LineSearch) -> None:
    objective = armijo.Objective()
    objective.baseline(lambda: functional.cross_entropy(model(X), Y)).backward()
    if optimizer.report is None:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(1000)
    optimizer.step(objective)


def _scaled(model: nn.Module, optimizer: armijo.LineSearch) -> None:
    optimizer.zero_grad()
    objective = armijo.Objective()
    (objective.baseline(lambda: functional.cross_entropy(model(X), Y)) * 1000).backward()
    optimizer.step(objective)


def _reversed(model: nn.Module, optimizer: armijo.LineSearch) -> None:
    def loss() -> torch.Tensor:
        plain = functional.cross_entropy(model(X), Y)
        return 2 * plain.detach() - plain

    optimizer.step(loss)


@every(("step", "words"), [(_forgotten_zero_grad, "not that of this loss"), (_scaled, "not that of this loss"),
                           (_reversed, "not that of this loss")])  # fmt: skip
def test_a_gradient_of_another_loss_is_named_in_the_first_steps(
    step: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    optimizer = armijo.AdamSLS(model.parameters())
    with caplog.at_level(logging.WARNING, "armijo"):
        for _ in range(5):
            step(model, optimizer)
    assert "has not moved for 5 steps" in caplog.text
    assert words in caplog.text


def test_a_loss_that_is_zero_with_a_gradient_is_named_in_the_first_steps(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = armijo.AdamSLS(model.parameters())
    for _ in range(5):
        optimizer.step(lambda: (lambda loss: loss - loss.detach())(functional.cross_entropy(model(X), Y)))
    assert "the loss is exactly 0, and its gradient is not" in caplog.text


def test_a_tiny_loss_is_named_in_the_first_steps(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = armijo.SGDSLS(model.parameters())
    for _ in range(5):
        optimizer.step(lambda: 1e-6 * functional.cross_entropy(model(X), Y))
    assert "too small to be searched. Multiply the loss" in caplog.text


def test_a_component_that_sleeps_at_first_is_not_named_early(caplog: pytest.LogCaptureFixture) -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = armijo.PLASLS([{"params": [a], "component": "a"}, {"params": [b], "component": "b"}])
    for step in range(20):
        optimizer.step(lambda step=step: (a**2).sum() + (b**2).sum() * float(step > 10))
    assert not caplog.records


def test_a_converged_run_is_told_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = armijo.AdamSLS(model.parameters())
    for _ in range(900):
        optimizer.step(lambda: functional.cross_entropy(model(X), Y, label_smoothing=0.1))
    said = [record.message for record in caplog.records]
    assert len(said) <= 1
    assert all("It may have converged" in message for message in said)


def test_an_optimizer_of_another_model_is_named_at_once(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = armijo.AdamSLS(net().parameters())
    objective = armijo.Objective()
    objective.baseline(lambda: functional.cross_entropy(model(X), Y)).backward()
    with pytest.raises(armijo.ClosureContractError, match="holds other parameters than the model"):
        optimizer.step(objective)
    for _ in range(5):
        optimizer.step(lambda: functional.cross_entropy(model(X), Y))
    assert "it gets no gradient" in caplog.text
    assert "build it anew" in caplog.text


def test_a_weight_decay_that_would_turn_the_weights_round_is_refused() -> None:
    model = net()
    optimizer = armijo.SGDSLS(model.parameters(), weight_decay=100.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(armijo.ConfigurationError, match="weight decay 100"):
        optimizer.step(lambda: functional.cross_entropy(model(X), Y))
    assert all(map(torch.equal, model.parameters(), before))


@every(
    ("schedule", "words"),
    [
        (
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-3, total_steps=20, cycle_momentum=False),
            "initial_lr is 4e-05",
        ),
        (lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=1e-2), "swa_lr is 0.01"),
        (lambda o: torch.optim.lr_scheduler.LinearLR(o, 1e-3, total_iters=9), None),
    ],
)
def test_a_scheduler_that_drives_a_learning_rate_is_named(
    schedule: Any, words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    optimizer = armijo.AdamSLS(model.parameters())
    optimizer.step(lambda: functional.cross_entropy(model(X), Y))
    scheduler = schedule(optimizer)
    for _ in range(3):
        optimizer.step(lambda: functional.cross_entropy(model(X), Y))
        scheduler.step()
    assert [words in record.message for record in caplog.records] == ([True] if words else [])


@every("kind", RECOMMENDED, ids=name_of)
def test_parameters_without_values_are_named(kind: Any) -> None:
    with torch.device("meta"):
        model = nn.Linear(20, 2)
    optimizer = kind(model.parameters())
    with pytest.raises(armijo.ConfigurationError, match="meta device"):
        optimizer.step(lambda: functional.cross_entropy(model(X), Y))
