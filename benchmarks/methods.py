"""The optimizers that the benchmarks compare, one step of each, and what is counted and timed of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import armijo

Build = Callable[[nn.Module], torch.optim.Optimizer]


def _salsa(model: nn.Module) -> torch.optim.Optimizer:
    from salsa.SaLSA import SaLSA

    return SaLSA(model.parameters())


def _prodigy(model: nn.Module) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    return Prodigy(model.parameters())


def _schedule_free(model: nn.Module) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(model.parameters())
    optimizer.train()
    return optimizer


def _growing(model: nn.Module, beta1: float, **parts: Any) -> torch.optim.Optimizer:
    """AdamSLS as it was until November 2026, and variants."""
    direction = armijo.AdamDirection((beta1, 0.999))
    return armijo.LineSearch(model.parameters(), direction=direction, partition=armijo.Together(), **parts)


def _growing_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return armijo.LineSearch(model.parameters(), direction=armijo.GradientDirection(), partition=armijo.Together())


def _growing_components(model: nn.Module, selection: armijo.Selection) -> torch.optim.Optimizer:
    """PLASLS as it was until November 2026."""
    groups = armijo.split(model, by="layer")
    return armijo.LineSearch(groups, selection=selection, merging=armijo.MergeSmallest())


BASE = "AdamW, fused"

_OURS: Mapping[str, Build] = {
    "SGDSLS": lambda model: armijo.SGDSLS(model.parameters()),
    "AdamSLS": lambda model: armijo.AdamSLS(model.parameters()),
    "AdamSLS, a search in each step": lambda model: armijo.AdamSLS(model.parameters(), selection=armijo.Jointly()),
    "Growing AdamSLS": lambda model: _growing(model, 0.9),
    "Growing AdamSLS, β1 = 0": lambda model: _growing(model, 0.0),
    "Growing AdamSLS, on demand": lambda model: _growing(model, 0.9, selection=armijo.OnDemand()),
    "Growing AdamSLS, β1 = 0, on demand": lambda model: _growing(model, 0.0, selection=armijo.OnDemand()),
    "PLASLS by layer": lambda model: armijo.PLASLS(armijo.split(model, by="layer")),
    "Growing SGDSLS": _growing_sgd,
    "Growing PLASLS by layer": lambda model: _growing_components(model, armijo.Cycle()),
    "Growing PLASLS, every component every step": lambda model: _growing_components(model, armijo.EachAlone()),
}
_RIVALS: Mapping[str, tuple[str, Build]] = {
    "SaLSA": ("salsa", _salsa),
    "Prodigy": ("prodigyopt", _prodigy),
    "Schedule-Free AdamW": ("schedulefree", _schedule_free),
}
METHODS: Mapping[str, Build] = {
    BASE: lambda model: torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True),
    "AdamW, foreach": lambda model: torch.optim.AdamW(model.parameters(), lr=2e-5, foreach=True),
    **_OURS,
    **{name: build for name, (package, build) in _RIVALS.items() if find_spec(package)},
}
"""Other authors' optimizers are here where their packages are installed; all have their authors' defaults."""


def take_step(
    optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor], scaler: torch.amp.GradScaler | None = None
) -> int:
    """Take one step and return the number of forward passes."""
    forwards = 0

    def counted(backwards: bool = False) -> torch.Tensor:
        nonlocal forwards
        forwards += 1
        if not backwards:
            return loss()
        optimizer.zero_grad()
        value = loss()
        (value if scaler is None else scaler.scale(value)).backward()
        return value

    if type(optimizer).__name__ == "SaLSA":
        optimizer.step(counted)
    elif not isinstance(optimizer, armijo.LineSearch):
        counted(backwards=True)
        optimizer.step() if scaler is None else scaler.step(optimizer)
    elif scaler is None:
        optimizer.step(counted)
    else:
        optimizer.zero_grad()
        objective = armijo.Objective()
        scaler.scale(objective.baseline(counted)).backward()
        scaler.step(optimizer, objective)
    if scaler is not None:
        scaler.update()
    return forwards


STEP_SIZE = 1e-9
"""Of steps that are timed: so short that the parameters stay what they are."""


def own_work(optimizer: torch.optim.Optimizer, trials: int = 1) -> float:
    """Take a step with the gradients as they are and a loss that costs nothing, and return its seconds.

    Each trial but the last is rejected.
    """
    first = optimizer.param_groups[0]["params"][0]
    evaluations = 0

    def loss(backwards: bool = False) -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        if backwards or evaluations == 1:
            return first.view(-1)[:1].sum() * 0 + 1.0
        rejected = (evaluations - 1) % trials
        return torch.tensor(2.0 if rejected else -1e9, device=first.device)

    if isinstance(optimizer, armijo.LineSearch):
        objective = armijo.Objective(modules=[])
        objective.baseline(loss)
        for group in optimizer.param_groups:
            group["step_size"] = STEP_SIZE
        taken = timed(first.device, partial(optimizer.step, objective))
        report = optimizer.report
        assert report is not None
        assert report.forwards == 1 + trials * len(report.searches)
        return taken
    if hasattr(optimizer, "speed_up"):  # SaLSA, which skips searches by it
        optimizer.speed_up, optimizer.step_size = False, STEP_SIZE
        return timed(first.device, partial(optimizer.step, loss))
    return timed(first.device, optimizer.step)


def timed(device: torch.device, step: Callable[[], object]) -> float:
    """Seconds until the device has done its work."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def place(device: str, threads: int) -> str:
    """The device in words."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} thread{'s' * (threads > 1)}"
    return f"{name}, torch {torch.__version__}"


def as_markdown(measurement: Mapping[str, Any]) -> str:
    """A measurement's title and table."""
    header, *rows = measurement["table"]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join([measurement["title"], "", *lines])


def finish(measurement: Mapping[str, Any], file: Path | None) -> None:
    """Print a measurement, and write it if a file is given."""
    print(as_markdown(measurement))
    if file is not None:
        file.write_text(json.dumps(measurement, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class Waits(TorchFunctionMode):
    """Count where a device would be waited for: tensors that are read as numbers, wherever they lie.

    Adam's counts of steps are tensors on the CPU everywhere, so reading them is no wait.
    """

    READS = frozenset(
        {"item", "tolist", "__float__", "__int__", "__bool__", "__index__", "numpy", "equal", "allclose", "nonzero"}
    )

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        states = [state for state in optimizer.state.values() if isinstance(state, dict)]
        self.counters = {id(state["step"]) for state in states if "step" in state}
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count `func` if it reads a tensor, then call it."""
        if getattr(func, "__name__", "") in self.READS and id(args[0]) not in self.counters:
            self.count += 1
        return func(*args, **(kwargs or {}))
