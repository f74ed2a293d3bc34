"""Models, batches and comparisons that several test modules share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import armijo
from armijo.evaluation.rng import RandomState

RECOMMENDED = [armijo.SGDSLS, armijo.AdamSLS, armijo.PLASLS]
PAPER = [armijo.paper.SGDSLS, armijo.paper.AdamSLS, armijo.paper.PLASLS]
ALL = [*RECOMMENDED, *PAPER]


def growing_adam(
    params: Any, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, c: float = 0.1, **options: Any
) -> armijo.LineSearch:
    """Adam with momentum whose step size grows from step to step, searched in every one."""
    settings = {"selection": armijo.Jointly(), "partition": armijo.Together(), **options}
    search = armijo.Backtracking(armijo.Armijo(c), armijo.Growth(0.1))
    return armijo.LineSearch(params, direction=armijo.AdamDirection(betas, eps), search=search, **settings)


def cycling_adam(params: Any, **options: Any) -> armijo.LineSearch:
    """The same with a step size for each component, of which one is searched a step, as in the paper's PLASLS."""
    parts = {"selection": armijo.Cycle(), "merging": armijo.MergeSmallest(), "partition": armijo.ByLabel()}
    return growing_adam(params, **parts | options)


def growing_sgd(params: Any, c: float = 0.1, **options: Any) -> armijo.LineSearch:
    """Stochastic gradient descent whose step size grows from step to step, searched in every one."""
    settings = {"partition": armijo.Together(), **options}
    search = armijo.Backtracking(armijo.Armijo(c), armijo.Growth(0.1))
    return armijo.LineSearch(params, direction=armijo.GradientDirection(), search=search, **settings)


def name_of(kind: type) -> str:
    return f"{kind.__module__.removeprefix('armijo.')}.{kind.__name__}"


class Problem:
    """Noisy classification by a small network with batch norm and dropout; each linear layer is a component."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.Tanh(),
            nn.Dropout(0.2),
            nn.Linear(16, 16),
            nn.Tanh(),
            nn.Linear(16, 3),
        ).to(dtype)
        self.generator = torch.Generator().manual_seed(seed)
        self.teacher = torch.randn(8, 3, generator=self.generator, dtype=dtype)
        self.dtype = dtype

    def groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(module.parameters()), "component": f"layer {index}"}
            for index, module in enumerate(self.model)
            if list(module.parameters())
        ]

    def batch(self, rows: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.randn(rows, 8, generator=self.generator, dtype=self.dtype)
        noise = 0.5 * torch.randn(rows, 3, generator=self.generator, dtype=self.dtype)
        return inputs, (inputs @ self.teacher + noise).argmax(1)

    def closure(self) -> Callable[[], torch.Tensor]:
        inputs, labels = self.batch()
        return lambda: nn.functional.cross_entropy(self.model(inputs), labels)


def failing(closure: Callable[[], torch.Tensor], at: int, error: BaseException) -> Callable[[], torch.Tensor]:
    """The same loss, but its evaluation number `at`, from 0, ends in `error`, after all its draws and writes."""
    calls = iter(range(1000))

    def loss() -> torch.Tensor:
        found = closure()
        if next(calls) == at:
            raise error
        return found

    return loss


class _Uphill(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return -grad


def hopeless(closure: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The same loss with its gradient turned round: every step along it climbs, so that no search can succeed."""
    return lambda: _Uphill.apply(closure())


def stuck(weight: nn.Parameter) -> Callable[[], torch.Tensor]:
    """A loss that rises on either side of w = 1 although its gradient does not vanish there."""

    class Kink(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, w: torch.Tensor) -> torch.Tensor:
            return 1 + (w - 1).abs().sum()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return grad * torch.ones(3)

    return lambda: Kink.apply(weight)


def everything(model: nn.Module, optimizer: armijo.LineSearch) -> Any:
    """All that a failed step must leave alone: parameters, buffers, moments, numbers, generators."""
    rng = RandomState.capture()
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        copy.deepcopy(optimizer.state_dict()),
        (rng.python, [str(part) for part in rng.numpy], rng.cpu.tolist()),
    )


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, whatever is nested in what; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a.nan_to_num(nan=1e30), b.nan_to_num(nan=1e30))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def statuses(optimizer: armijo.LineSearch) -> list[str]:
    assert optimizer.report is not None
    return [str(component.status) for component in optimizer.report.components]
