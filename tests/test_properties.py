"""Properties of whole runs: what an accepted step promises, and what must not matter."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import armijo
from problems import cycling_adam, growing_adam

every = pytest.mark.parametrize


class Classification:
    """Noisy classification by a network of `depth` linear layers, one component each."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64, depth: int = 3, dropout: float = 0.0) -> None:
        torch.manual_seed(seed)
        widths = [8, *[12] * (depth - 1), 3]
        layers: list[nn.Module] = []
        for place, (a, b) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(a, b))
            if place < depth - 1:
                layers += [nn.Tanh(), nn.Dropout(dropout)]
        self.model = nn.Sequential(*layers).to(dtype)
        self.linears = [layer for layer in self.model if isinstance(layer, nn.Linear)]
        self.teacher = torch.randn(8, 3, dtype=dtype)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(layer.parameters()), "component": f"{i}"} for i, layer in enumerate(self.linears)]

    def closure(self) -> Callable[[], torch.Tensor]:
        inputs = torch.randn(32, 8, generator=self.generator, dtype=self.dtype)
        noise = torch.randn(32, 3, generator=self.generator, dtype=self.dtype)
        labels = (inputs @ self.teacher + noise).argmax(1)
        return lambda: nn.functional.cross_entropy(self.model(inputs), labels)


def preconditioned(
    parameters: list[nn.Parameter], optimizer: armijo.LineSearch, kind: type
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients and directions, computed here once more from the public state, before the step is taken."""
    grads = [p.grad.detach().clone() for p in parameters]  # type: ignore[union-attr]
    if kind is armijo.SGDSLS:
        return grads, grads
    directions = []
    for p, g in zip(parameters, grads, strict=True):
        state = optimizer.state.get(p, {})
        t = float(state.get("step", 0)) + 1
        v = 0.999 * state.get("exp_avg_sq", torch.zeros_like(p)) + 0.001 * g**2
        directions.append(g / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
    return grads, directions


@every("kind", [armijo.SGDSLS, armijo.AdamSLS, armijo.PLASLS])
@given(
    seed=st.integers(0, 10**6),
    c=st.sampled_from([0.01, 0.1, 0.5]),
    initial_step_size=st.sampled_from([1e-5, 1e-2, 1.0, 100.0]),
)
def test_an_accepted_trial_satisfies_the_inequality_recomputed_independently(
    kind: Any, seed: int, c: float, initial_step_size: float
) -> None:
    problem = Classification(seed)
    optimizer = kind(problem.groups(), c=c, initial_step_size=initial_step_size)
    accepted = 0
    for _ in range(9):
        closure = problem.closure()
        parameters = list(problem.model.parameters())
        start = [p.detach().clone() for p in parameters]
        optimizer.zero_grad()
        f0 = closure()
        f0.backward()
        grads, directions = preconditioned(parameters, optimizer, kind)
        optimizer.step(closure)
        labels = [group["component"] for group in problem.groups()]
        end = [p.detach().clone() for p in parameters]
        searched = [c for c in optimizer.report.components if c.status == "accepted"]
        if not searched:
            continue
        accepted += 1
        with torch.no_grad():
            slope = 0.0
            for place, (p, w, g, d) in enumerate(zip(parameters, start, grads, directions, strict=True)):
                own = [s for s in searched if s.label in ("all", labels[place // 2])]
                p.copy_(w - own[0].step_size * d if own else w)
                slope += float((g * d).sum()) * own[0].step_size if own else 0.0
            trial = closure()
            for p, w in zip(parameters, end, strict=True):
                p.copy_(w)
        assert trial.item() == pytest.approx(searched[0].trial_loss, rel=1e-9)
        assert trial.item() <= f0.item() - c * slope + 1e-12
    assert accepted > 0


@every("seed", range(3))
@every(
    "selection", [armijo.Cycle(), armijo.Cycle(0), armijo.EachAlone(), armijo.EachAlone(0), armijo.Jointly()], ids=repr
)
@every(
    "kinds",
    [
        (cycling_adam, growing_adam),
        (armijo.PLASLS, lambda params: armijo.AdamSLS(params, selection=armijo.Jointly())),
    ],
    ids=["growing", "recommended"],
)
def test_plasls_with_one_component_is_adam_with_one_step_size(seed: int, selection: Any, kinds: Any) -> None:
    components, together = kinds

    def run(make: Callable[[Classification], armijo.LineSearch]) -> list[torch.Tensor]:
        problem = Classification(seed, torch.float32, dropout=0.2)
        optimizer = make(problem)
        for _ in range(30):
            optimizer.step(problem.closure())
        return [p.detach() for p in problem.model.parameters()]

    def plasls(problem: Classification) -> armijo.LineSearch:
        return components([{"params": list(problem.model.parameters()), "component": "all"}], selection=selection)

    for a, b in zip(run(plasls), run(lambda problem: together(problem.model.parameters())), strict=True):
        assert torch.equal(a, b)


@given(order=st.permutations(range(4)), seed=st.integers(0, 100))
def test_with_every_component_searched_every_step_their_order_does_not_matter(order: list[int], seed: int) -> None:
    def run(places: list[int]) -> tuple[dict[str, float], list[torch.Tensor]]:
        problem = Classification(seed, depth=4)
        groups = problem.groups()
        optimizer = armijo.PLASLS([groups[place] for place in places], selection=armijo.EachAlone(joint_steps=3))
        for _ in range(10):
            optimizer.step(problem.closure())
        return {g["component"]: g["step_size"] for g in optimizer.param_groups}, list(problem.model.parameters())

    (sizes, weights), (permuted_sizes, permuted) = run(list(range(4))), run(order)
    assert permuted_sizes == pytest.approx(sizes)
    for a, b in zip(weights, permuted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@every("dtype", [torch.float32, torch.float64])
@every("seed", range(4))
def test_no_component_freezes(dtype: torch.dtype, seed: int) -> None:
    problem = Classification(seed, dtype, depth=9)
    optimizer = armijo.PLASLS(problem.groups())
    smallest = 1.0
    for _ in range(300):
        optimizer.step(problem.closure())
        smallest = min(smallest, *(group["step_size"] for group in optimizer.param_groups))
    assert len({group["component"] for group in optimizer.param_groups}) == 9, "nothing merged"
    assert smallest > 1e-9


@every("kind", [armijo.SGDSLS, armijo.AdamSLS, armijo.PLASLS])
@every("seed", range(3))
def test_a_first_guess_of_ten_does_not_diverge(kind: Any, seed: int) -> None:
    problem = Classification(seed, torch.float32)
    optimizer = kind(problem.groups(), initial_step_size=10.0)
    losses = [float(optimizer.step(problem.closure())) for _ in range(150)]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert max(losses) < 10 * losses[0]


@every("kind", [armijo.SGDSLS, armijo.AdamSLS, armijo.PLASLS])
def test_the_first_search_is_short(kind: Any) -> None:
    problem = Classification(0, torch.float32, depth=9)
    for initial_step_size in (0.1, 10.0):
        optimizer = kind(problem.groups(), initial_step_size=initial_step_size)
        optimizer.step(problem.closure())
        assert optimizer.report.forwards <= 20


@every("kind", [armijo.AdamSLS, armijo.PLASLS])
def test_two_runs_with_one_seed_are_one(kind: Any) -> None:
    def run() -> list[torch.Tensor]:
        problem = Classification(0, torch.float32, dropout=0.3)
        optimizer = kind(problem.groups())
        for _ in range(40):
            optimizer.step(problem.closure())
        return list(problem.model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
