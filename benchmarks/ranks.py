"""What a search adds on many ranks: its exchanges counted in a real step, and their latency simulated to 1,024 ranks.

Counted: two gloo processes under DistributedDataParallel take steps, and every all-reduce that armijo asks for is
written down with its bytes. (The gradients' own all-reduces are issued by DDP in C++ and are not among them.)

Simulated, for N ranks, with the phases of a step as they depend on one another; every phase ends with its slowest rank:

    Adam         max(F + B) + G
    line search  max(F) + A + max(B) + G + A + T · (max(F) + A)

F and B are the times of a forward and a backward on one rank, each with a jitter of its own, drawn for every rank and
phase: F · (1 + σ·e) with e exponential of mean 1, so that ranks are late and never early. A = o + 2·α·⌈log₂ N⌉ is an
all-reduce of a few bytes over a tree (o: its launch, and the host's wait for the number), and
G = 2·α·⌈log₂ N⌉ + 2·(N-1)/N · bytes / bandwidth one of the gradients, not overlapped. T, the trials of a step, is
⌊trials⌋ or one more.

Run: python benchmarks/ranks.py [--forward 30] [--jitter 0.03] [--hop 10] [--trials 1.2]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import armijo

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
STEPS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forward", type=float, default=30.0, help="ms of a forward; a backward takes twice as long")
    parser.add_argument("--jitter", type=float, default=0.03, help="σ, the mean share by which a rank is late")
    parser.add_argument("--hop", type=float, default=10.0, help="α, µs of one hop between ranks")
    parser.add_argument("--overhead", type=float, default=60.0, help="o, µs of an all-reduce but for its hops")
    parser.add_argument("--trials", type=float, default=1.2, help="trials a step, on average")
    parser.add_argument("--gradient", type=float, default=440.0, help="MB of gradients")
    parser.add_argument("--bandwidth", type=float, default=100.0, help="GB/s of an all-reduce")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counted()
    simulated(given)


# ----------------------------------------------------------------------------------------------------------- counted


def counted() -> None:
    """Print the exchanges of a step, as they were asked for."""
    print(
        "| optimizer, two ranks | steps | trials | all-reduces | of them beyond 2 a step + 1 a trial | bytes a step |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, args=(folder,), nprocs=2)
        for line in (Path(folder) / "rows").read_text(encoding="utf-8").splitlines():
            print(line)
    print()


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    seen: Counter[str] = Counter()
    plain = distributed.all_reduce

    def counting(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
        seen["calls"] += 1
        seen["bytes"] += tensor.numel() * tensor.element_size()
        return plain(tensor, *args, **kwargs)  # pyright: ignore[reportArgumentType]

    distributed.all_reduce = counting
    rows = []
    for name, blocks in (("AdamSLS", None), ("PLASLS, 8 components", 8)):
        torch.manual_seed(0)
        model = nn.Sequential(*[part for _ in range(8) for part in (nn.Linear(16, 16), nn.Tanh())])
        wrapped = DistributedDataParallel(model)
        groups = armijo.split(model, by="module") if blocks else list(model.parameters())
        optimizer = (armijo.PLASLS if blocks else armijo.AdamSLS)(groups)
        torch.manual_seed(rank)
        seen.clear()
        steps = 20
        for _ in range(steps):
            inputs = torch.randn(8, 16)
            optimizer.step(lambda wrapped=wrapped, inputs=inputs: (wrapped(inputs) - inputs).square().mean())
        trials = optimizer.report.total_forwards - steps
        beyond = seen["calls"] - 2 * steps - trials
        rows.append(f"| {name} | {steps} | {trials} | {seen['calls']} | {beyond} | {seen['bytes'] / steps:.0f} |")
    if rank == 0:
        (Path(folder) / "rows").write_text("\n".join(rows), encoding="utf-8")
    distributed.destroy_process_group()


# --------------------------------------------------------------------------------------------------------- simulated


def simulated(given: argparse.Namespace) -> None:
    """Print a step's milliseconds over the number of ranks."""
    print("| ranks | Adam, ms | line search, ms | ratio | exchanges, ms | waiting for the slowest, ms |")
    print("|---|---|---|---|---|---|")
    for ranks in RANKS:
        adam, search, exchanges, waiting = step_times(ranks, given)
        row = f"{adam:.1f} | {search:.1f} | {search / adam:.2f} | {exchanges:.2f} | {waiting:.1f}"
        print(f"| {ranks:,} | {row} |")


def step_times(ranks: int, given: argparse.Namespace) -> tuple[float, float, float, float]:
    """Mean milliseconds of a step with Adam and with a line search, and what of the second is exchange and waiting."""
    generator = torch.Generator().manual_seed(given.seed)
    hops = 2 * given.hop * 1e-3 * math.ceil(math.log2(ranks))
    small = 0.0 if ranks == 1 else given.overhead * 1e-3 + hops
    large = 0.0 if ranks == 1 else hops + 2 * (ranks - 1) / ranks * given.gradient / given.bandwidth
    forward, backward = given.forward, 2 * given.forward
    lowest = math.floor(given.trials)

    def phase(mean: float) -> torch.Tensor:
        late = torch.empty(STEPS, ranks).exponential_(generator=generator)
        return mean * (1 + given.jitter * late)

    first, back = phase(forward), phase(backward)
    adam = (first + back).amax(1) + large
    trials = lowest + (torch.rand(STEPS, generator=generator) < given.trials - lowest).double()
    alone = first.mean(1) + back.mean(1)
    search = first.amax(1) + back.amax(1)
    for index in range(lowest + 1):
        taken = (trials > index).double()
        trial = phase(forward)
        search += taken * trial.amax(1)
        alone += taken * trial.mean(1)
    exchanges = small * (2 + trials)
    waiting = search - alone
    return (
        float(adam.mean()),
        float((search + exchanges + large).mean()),
        float(exchanges.mean()),
        float(waiting.mean()),
    )


if __name__ == "__main__":
    main()
