"""What a step costs beside forward and backward passes: ratios to torch's fused AdamW, in one process, taking turns.

Parameters of a BERT's shapes have random gradients, and the loss costs nothing, so that only the own work is
left. Each trial but the last is rejected. All optimizers share parameters and gradients, and keep moments of their own.

Run: python benchmarks/own_work.py [--shape minilm] [--rounds 9] [--threads 1] [--device cpu] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import armijo

SHAPES = {"minilm": (6, 384, 1536), "base": (12, 768, 3072), "large": (24, 1024, 4096)}
STEP_SIZE = 1e-9
"""So short that the shared parameters stay what they are."""


def bert(layers: int, hidden: int, inner: int, vocabulary: int = 30522) -> Iterator[tuple[int, ...]]:
    """The shapes of a BERT's parameters, with its pooler."""
    yield from ((vocabulary, hidden), (512, hidden), (2, hidden), (hidden,), (hidden,))
    for _ in range(layers):
        yield from ((hidden, hidden), (hidden,)) * 4
        yield from ((hidden,), (hidden,), (inner, hidden), (inner,), (hidden, inner), (hidden,), (hidden,), (hidden,))
    yield from ((hidden, hidden), (hidden,))


def in_components(parameters: list[torch.nn.Parameter], n: int) -> list[dict[str, Any]]:
    groups = [{"params": parameters[place::n], "component": str(place)} for place in range(n)]
    return [group for group in groups if group["params"]]


def timed(device: torch.device, step: Callable[[], object]) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


@dataclass
class Run:
    """One optimizer and how long its steps took."""

    optimizer: torch.optim.Optimizer
    trials: int = 1
    seconds: list[float] = field(default_factory=list)

    def step(self) -> float:
        first = self.optimizer.param_groups[0]["params"][0]
        if not isinstance(self.optimizer, armijo.LineSearch):
            return timed(first.device, self.optimizer.step)
        evaluations = 0

        def loss() -> torch.Tensor:
            nonlocal evaluations
            evaluations += 1
            if torch.is_grad_enabled():
                return first.view(-1)[:1].sum() * 0 + 1.0
            rejected = (evaluations - 1) % self.trials
            return torch.tensor(2.0 if rejected else -1e9, device=first.device)

        objective = armijo.Objective(modules=[])
        objective.baseline(loss)
        for group in self.optimizer.param_groups:
            group["step_size"] = STEP_SIZE
        taken = timed(first.device, partial(self.optimizer.step, objective))
        report = self.optimizer.report
        assert report is not None
        assert report.forwards == 1 + self.trials * len(report.searches)
        return taken


def optimizers(parameters: list[torch.nn.Parameter], components: list[int]) -> dict[str, Callable[[], Run]]:
    never = armijo.Every(10**9)

    def adam(betas: tuple[float, float], trials: int = 1, *, fused: bool = True, **parts: Any) -> Callable[[], Run]:
        direction = armijo.AdamDirection(betas, fused=fused)
        return lambda: Run(
            armijo.LineSearch(parameters, direction=direction, partition=armijo.Together(), **parts), trials
        )

    def plasls(n: int, betas: tuple[float, float], selection: armijo.Selection) -> Callable[[], Run]:
        direction, groups = armijo.AdamDirection(betas, fused=True), in_components(parameters, n)
        return lambda: Run(armijo.LineSearch(groups, direction=direction, selection=selection))

    with_momentum, without = (0.9, 0.999), (0.0, 0.999)
    rows: dict[str, Callable[[], Run]] = {
        "torch AdamW, fused": lambda: Run(torch.optim.AdamW(parameters, lr=STEP_SIZE, fused=True)),
        "torch AdamW, foreach": lambda: Run(torch.optim.AdamW(parameters, lr=STEP_SIZE, foreach=True)),
        "AdamSLS": adam(with_momentum),
        "AdamSLS, β1 = 0": adam(without),
        "AdamSLS, β1 = 0, 2 trials": adam(without, 2),
        "AdamSLS, β1 = 0, 3 trials": adam(without, 3),
        "AdamSLS, β1 = 0, foreach": adam(without, fused=False),
        "AdamSLS, no search": adam(with_momentum, selection=never),
        "AdamSLS, β1 = 0, no search": adam(without, selection=never),
        "SGDSLS": lambda: Run(armijo.SGDSLS(parameters)),
    }
    for n in components:
        rows[f"PLASLS, β1 = 0, jointly, {n} components"] = plasls(n, without, armijo.Jointly())
        rows[f"PLASLS, β1 = 0, in a cycle, {n} components"] = plasls(n, without, armijo.Cycle(0))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--components", type=int, nargs="*", default=[1, 10, 50, 200])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where to write the numbers too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    logging.getLogger("armijo").setLevel(logging.ERROR)
    shapes = bert(*SHAPES[args.shape])
    parameters = [torch.nn.Parameter(0.05 * torch.randn(shape, device=args.device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    runs = {name: make() for name, make in optimizers(parameters, args.components).items()}
    for run in runs.values():
        run.step()
        run.step()
    for _ in tqdm(range(args.rounds), disable=None):
        for run in runs.values():
            run.seconds.append(run.step())
    base = statistics.median(runs["torch AdamW, fused"].seconds)
    millions = sum(parameter.numel() for parameter in parameters) / 1e6
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} thread(s)"
    print(
        f"Own work of a step, {millions:.1f} million parameters, {where}, torch {torch.__version__}, median of "
        f"{args.rounds} steps (and the least)\n"
    )
    print("| optimizer | ms | against AdamW fused |")
    print("|---|---|---|")
    for name, run in runs.items():
        middle, least = statistics.median(run.seconds), min(run.seconds)
        print(f"| {name} | {1000 * middle:.1f} ({1000 * least:.1f}) | {middle / base:.2f} |")
    if args.json:
        seconds = {name: run.seconds for name, run in runs.items()}
        made = {"where": where, "torch": torch.__version__, "parameters": millions * 1e6, "seconds": seconds}
        args.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
