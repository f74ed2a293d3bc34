"""Long runs stay flat and alive; equal runs are equal; the order of what one hands over does not matter."""

from __future__ import annotations

import gc
import time
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import armijo
from problems import RECOMMENDED, Problem, everything, name_of, same

every = pytest.mark.parametrize


def _soak(kind: Any, steps: int, tally: Any) -> None:
    problem = Problem()
    optimizer = kind(problem.groups())
    process = psutil.Process()
    resident, objects, sizes, losses = [], [], [], []
    # After many other tests to collect what is free takes a second.
    looks = 20 if steps > 1000 else 8
    began = time.perf_counter()
    for step in range(steps):
        loss = optimizer.step(problem.closure())
        if (step + 1) % (steps // looks) == 0:
            gc.collect()
            resident.append(process.memory_info().rss)
            objects.append(len(gc.get_objects()))
            sizes += [group["step_size"] for group in optimizer.param_groups]
            losses.append(float(loss))
    seconds = time.perf_counter() - began
    # The allocator warms up at first; from the middle on nothing may grow, neither by bytes nor by objects.
    growth = resident[-1] - resident[len(resident) // 2]
    assert growth < 2**21, f"{growth} bytes in half the steps"
    assert objects[-1] - objects[len(objects) // 2] < 50
    assert 1e-9 < min(sizes) < max(sizes) < 1e3
    assert sum(losses[-5:]) < 5 * 1.2
    tally("steps soaked", steps)
    tally(
        f"{name_of(kind)}, {steps:,} steps",
        f"{growth / 1024:+.0f} KiB resident in the second half, step sizes {min(sizes):.1e} to {max(sizes):.1e}, "
        f"{1000 * seconds / steps:.2f} ms a step",
    )


@pytest.mark.no_cover
@every("kind", RECOMMENDED, ids=name_of)
def test_a_run_of_a_thousand_steps_stays_flat(kind: Any, tally: Any) -> None:
    _soak(kind, 1000, tally)


@pytest.mark.soak
@every("kind", RECOMMENDED, ids=name_of)
def test_a_run_of_twenty_thousand_steps_stays_flat(kind: Any, tally: Any) -> None:
    _soak(kind, 20_000, tally)


@every("kind", RECOMMENDED, ids=name_of)
def test_two_runs_with_one_seed_are_equal_to_the_last_bit(kind: Any) -> None:
    ends = []
    for _ in range(2):
        problem = Problem(seed=3)
        optimizer = kind(problem.groups())
        for _ in range(25):
            optimizer.step(problem.closure())
        ends.append(everything(problem.model, optimizer))
    assert same(*ends)


@every("order", [[3, 2, 1, 0], [1, 3, 0, 2]])
@every(
    ("kind", "kwargs"),
    [
        (armijo.SGDSLS, {}),
        (armijo.AdamSLS, {}),
        (armijo.PLASLS, {"selection": armijo.EachAlone(joint_steps=3)}),
        (armijo.PLASLS, {"selection": armijo.Jointly()}),
    ],
)
def test_groups_and_parameters_may_come_in_any_order(kind: Any, kwargs: Any, order: list[int]) -> None:
    ends = []
    for shuffled in (False, True):
        problem = Problem(seed=1, dtype=torch.float64)
        groups = problem.groups()
        if shuffled:
            groups = [{**groups[place], "params": groups[place]["params"][::-1]} for place in order]
        optimizer = kind(groups, **kwargs)
        for _ in range(12):
            optimizer.step(problem.closure())
        ends.append([parameter.detach().clone() for parameter in problem.model.parameters()])
    for a, b in zip(*ends, strict=True):
        # A bias before a batch norm has nothing but rounding errors for a gradient, 1e-17, and Adam divides by ε.
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 if kind is armijo.SGDSLS else 1e-9)


class _Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)
        self.reentrant = reentrant
        self.on = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = checkpoint(self.body, x, use_reentrant=self.reentrant) if self.on else self.body(x)
        return self.head(hidden)


@every("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    """The backward pass runs parts of the forward again; with dropout, whose masks must be those of the trials."""
    runs = []
    for on in (True, False):
        model = _Checkpointed(reentrant)
        model.on = on
        optimizer = armijo.AdamSLS(model.parameters())
        torch.manual_seed(1)
        inputs = torch.randn(16, 8).requires_grad_()  # a reentrant checkpoint wants an input with a gradient
        labels = torch.randint(3, (16,))
        losses = [
            float(optimizer.step(lambda m=model, x=inputs, y=labels: nn.functional.cross_entropy(m(x), y)))
            for _ in range(8)
        ]
        runs.append((losses, optimizer.report))
    assert runs[0] == runs[1]


@every("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_a_compiled_model_is_searched_honestly(backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    compiled = torch.compile(model, backend=backend)
    inputs, labels = torch.randn(32, 8), torch.randint(3, (32,))
    optimizer = armijo.AdamSLS(model.parameters(), selection=armijo.Jointly())
    for step in range(6):
        optimizer.zero_grad()
        # Named, so that no hook is set: a graph compiled with one and a graph compiled without draw other masks.
        objective = armijo.Objective(modules=[model])
        objective.baseline(lambda: nn.functional.cross_entropy(compiled(inputs), labels)).backward()
        optimizer.step(objective)
        assert optimizer.report is not None
        assert optimizer.report.components[0].status == "accepted"
        assert model[1].num_batches_tracked == step + 1
