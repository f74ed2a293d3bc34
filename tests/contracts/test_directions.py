"""Only of the library's own directions: with a fixed step size each is torch's own optimizer.

`test_testing.py` checks them against the contract of directions.
"""

from functools import partial
from typing import Any

import pytest
import torch

import armijo
from contracts.extensions import HeavyBall

every = pytest.mark.parametrize


def tensors(seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, 4), (5,), ())]


def slope(grads: list[torch.Tensor], directions: list[torch.Tensor]) -> float:
    return sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))


@every("lr", [1.0, 0.5])
def test_the_last_step_is_kept_and_leads_back(lr: float) -> None:
    weights = [p.requires_grad_() for p in tensors(3)]
    looked: list[tuple[float, float]] = []

    class LooksBack(armijo.Backtracking):
        def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> armijo.Outcome:
            looked.append((evaluate(-1.0, along="last_step"), line.derivatives["last_step"]))
            return armijo.Backtracking.search(self, line, first, evaluate, memory)

    optimizer = armijo.LineSearch(
        [{"params": [w]} for w in weights],
        direction=armijo.KeepLastStep(armijo.AdamDirection()),
        search=LooksBack(),
        lr=lr,
    )
    points: list[list[torch.Tensor]] = []
    for k in range(4):
        points.append([w.detach().clone() for w in weights])
        optimizer.step(lambda k=k: sum(((w - k) ** 2).sum() for w in weights))
        if k == 0:
            assert looked[-1][1] == 0.0
            continue
        earlier, now = points[-2:]
        assert looked[-1][0] == pytest.approx(sum(float(((w - k) ** 2).sum()) for w in earlier), rel=1e-12)
        expected = slope([2 * (w - k) for w in now], [e - n for e, n in zip(earlier, now, strict=True)])
        assert looked[-1][1] == pytest.approx(expected, rel=1e-10)


@every("maximize", [False, True])
@every(
    ("direction", "weight_decay", "reference"),
    [
        # torch's SGD couples its decay with the gradient, so it can only be compared without.
        (armijo.GradientDirection(), 0.0, torch.optim.SGD),
        (HeavyBall(), 0.0, partial(torch.optim.SGD, momentum=0.9)),
        (armijo.AdamDirection(), 0.0, torch.optim.Adam),
        (armijo.KeepLastStep(armijo.AdamDirection()), 0.0, torch.optim.Adam),
        (armijo.AdamDirection(), 0.1, torch.optim.AdamW),
        (armijo.AdamDirection((0.7, 0.95), 1e-4), 0.1, partial(torch.optim.AdamW, betas=(0.7, 0.95), eps=1e-4)),
    ],
    ids=["SGD", "SGD with momentum", "Adam", "Adam, its last step kept", "AdamW", "AdamW with other betas"],
)
def test_with_a_fixed_step_size_it_is_torchs_own(
    direction: Any, weight_decay: float, reference: Any, maximize: bool
) -> None:
    ours, theirs = ([p.requires_grad_() for p in tensors(1)] for _ in range(2))
    optimizer = armijo.LineSearch(
        ours,
        direction=direction,
        search=armijo.FixedStep(1e-2),
        weight_decay=weight_decay,
        maximize=maximize,
    )
    expected = reference(theirs, lr=1e-2, weight_decay=weight_decay, maximize=maximize)

    def loss(parameters: list[torch.Tensor], k: int) -> torch.Tensor:
        target = tensors(100 + k)
        return sum(((p - t).sin() ** 2 * (k + 1)).sum() for p, t in zip(parameters, target, strict=True))  # type: ignore[return-value]

    for k in range(30):
        optimizer.step(lambda k=k: loss(ours, k))
        expected.zero_grad()
        loss(theirs, k).backward()
        expected.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert optimizer.report is not None
    assert optimizer.report.total_forwards == 30
