"""What a step costs beside forward and backward passes: ratios to torch's fused AdamW, in one process, taking turns.

Parameters of a BERT's shapes have random gradients, and the loss costs nothing, so that only the own work is
left. Each trial but the last is rejected. All optimizers share parameters and gradients, and keep moments of their own.

Run: python benchmarks/own_work.py [--shape minilm] [--rounds 9] [--threads 1] [--device cpu] [--json FILE]
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import armijo
from methods import BASE, METHODS, STEP_SIZE, finish, own_work, place

SHAPES = {  # layers, hidden, feed-forward, vocabulary
    "1M": (2, 64, 256, 12000),
    "4M": (2, 128, 512, 30522),
    "minilm": (6, 384, 1536, 30522),
    "base": (12, 768, 3072, 30522),
    "large": (24, 1024, 4096, 30522),
}

Build = Callable[[], torch.optim.Optimizer]


def bert(layers: int, hidden: int, inner: int, vocabulary: int) -> Iterator[tuple[int, ...]]:
    """The shapes of a BERT's parameters, with its pooler."""
    yield from ((vocabulary, hidden), (512, hidden), (2, hidden), (hidden,), (hidden,))
    for _ in range(layers):
        yield from ((hidden, hidden), (hidden,)) * 4
        yield from ((hidden,), (hidden,), (inner, hidden), (inner,), (hidden, inner), (hidden,), (hidden,), (hidden,))
    yield from ((hidden, hidden), (hidden,))


def in_components(parameters: list[nn.Parameter], n: int) -> list[dict[str, Any]]:
    groups = [{"params": parameters[place::n], "component": str(place)} for place in range(n)]
    return [group for group in groups if group["params"]]


def optimizers(parameters: list[nn.Parameter], components: list[int]) -> dict[str, tuple[Build, int]]:
    """Each row's name, how its optimizer is built, and the trials of its searches."""
    never = armijo.Every(10**9)

    def adam(betas: tuple[float, float], *, fused: bool = True, **parts: Any) -> Build:
        direction = armijo.AdamDirection(betas, fused=fused)
        return lambda: armijo.LineSearch(parameters, direction=direction, partition=armijo.Together(), **parts)

    def plasls(n: int, betas: tuple[float, float], selection: armijo.Selection) -> Build:
        direction, groups = armijo.AdamDirection(betas, fused=True), in_components(parameters, n)
        return lambda: armijo.LineSearch(groups, direction=direction, selection=selection)

    with_momentum, without = (0.9, 0.999), (0.0, 0.999)
    model = nn.Module()
    for place_, parameter in enumerate(parameters):
        model.register_parameter(str(place_), parameter)
    rows: dict[str, tuple[Build, int]] = {
        BASE: (lambda: torch.optim.AdamW(parameters, lr=STEP_SIZE, fused=True), 1),
        "AdamW, foreach": (lambda: torch.optim.AdamW(parameters, lr=STEP_SIZE, foreach=True), 1),
        "Growing AdamSLS": (adam(with_momentum), 1),
        "Growing AdamSLS, β1 = 0": (adam(without), 1),
        "Growing AdamSLS, β1 = 0, 2 trials": (adam(without), 2),
        "Growing AdamSLS, β1 = 0, 3 trials": (adam(without), 3),
        "Growing AdamSLS, β1 = 0, foreach": (adam(without, fused=False), 1),
        "Growing AdamSLS, no search": (adam(with_momentum, selection=never), 1),
        "Growing AdamSLS, β1 = 0, no search": (adam(without, selection=never), 1),
        "AdamSLS": (lambda: armijo.AdamSLS(parameters, selection=armijo.Jointly()), 1),
        "AdamSLS, no search": (lambda: armijo.AdamSLS(parameters, selection=never), 1),
        "Growing SGDSLS": (lambda: METHODS["Growing SGDSLS"](model), 1),
    }
    for n in components:
        rows[f"Growing PLASLS, β1 = 0, in a cycle, {n} components"] = plasls(n, without, armijo.Cycle(0)), 1
        rows[f"Growing PLASLS, β1 = 0, jointly, {n} components"] = plasls(n, without, armijo.Jointly()), 1
    for name in ("SaLSA", "Prodigy", "Schedule-Free AdamW"):
        if name in METHODS:
            rows[name] = (lambda name=name: METHODS[name](model)), 1
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--components", type=int, nargs="*", default=[1, 10, 50, 200])
    parser.add_argument("--only", nargs="*", default=[], metavar="OPTIMIZER", help="these rows alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where to write the numbers too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    logging.getLogger("armijo").setLevel(logging.ERROR)
    shapes = bert(*SHAPES[args.shape])
    parameters = [nn.Parameter(0.05 * torch.randn(shape, device=args.device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    rows = optimizers(parameters, args.components)
    if args.only:
        rows = {name: row for name, row in rows.items() if name == BASE or name in args.only}
    runs = {name: (build(), trials) for name, (build, trials) in rows.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in tqdm(range(-2, args.rounds), disable=None):
        for name, run in runs.items():
            taken = own_work(*run)
            if turn >= 0:
                seconds[name].append(taken)
    base = statistics.median(seconds[BASE])
    n, where = sum(parameter.numel() for parameter in parameters), place(args.device, args.threads)
    title = (
        f"Own work of a step, {n / 1e6:.1f} million parameters, {where}, median of {args.rounds} steps (and the least)."
    )
    table = [["optimizer", "ms", f"against {BASE}"]]
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        table.append([name, f"{1000 * middle:.1f} ({1000 * min(taken):.1f})", f"{middle / base:.2f}"])
    finish({"title": title, "table": table, "shape": args.shape, "parameters": n, "seconds": seconds}, args.json)


if __name__ == "__main__":
    main()
