"""What each optimizer costs against torch's fused AdamW: ratios of one run, as a Markdown table.

A BERT of the given shape with random weights learns random labels; time and memory do not care what it learns.
All optimizers take turns in one process, a step each, so that a noisy machine disturbs all alike.

- *n tokens*: the time of the whole run with batches of 32 × n tokens, the first search included, and in brackets the
  median of the steps after the first eight.
- *own work*: the median of a step with the gradients of a backward pass and a loss that costs nothing: the first
  trial of a search is accepted.
- *peak memory* above what was in use before the model was built, with the shortest batches: each optimizer runs in a
  process of its own.
- *waits*: tensors that a step reads as numbers, for which a device would be waited for.

Run: python benchmarks/overhead.py [--shape mini] [--device cpu] [--steps 80] [--only "AdamSLS" ...]
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from methods import BASE, METHODS, Waits, finish, own_work, place, take_step, timed

SHAPES = {  # layers, hidden, heads, feed-forward
    "tiny": (2, 128, 2, 512),
    "mini": (6, 384, 12, 1536),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}
PRECISIONS = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of autocast; float16 with a GradScaler."""
_FIRST = 8
"""Steps before the *later* ones: the first search starts far away."""


class Run:
    """A model, its optimizer, and the seconds and forward passes of their steps."""

    def __init__(self, method: str, length: int, args: argparse.Namespace) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        layers, hidden, heads, feed_forward = SHAPES[args.shape]
        config = BertConfig(
            num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=feed_forward
        )
        self.model = BertForSequenceClassification(config).to(args.device).train()
        self.optimizer = METHODS[method](self.model)
        self.generator = torch.Generator().manual_seed(0)
        self.precision = PRECISIONS[args.precision]
        self.scaler = torch.amp.GradScaler(args.device) if self.precision is torch.float16 else None
        self.shape, self.device = (args.batch_size, length), torch.device(args.device)
        self.seconds: list[float] = []
        self.forwards: list[int] = []

    def step(self) -> None:
        """Take one step, and note its time."""
        loss = self._next_loss()
        self.seconds.append(
            timed(self.device, lambda: self.forwards.append(take_step(self.optimizer, loss, self.scaler)))
        )

    def waits(self) -> int:
        """Take one step and count its waits."""
        loss = self._next_loss()
        with Waits(self.optimizer) as waits:
            take_step(self.optimizer, loss, self.scaler)
        return waits.count

    def _next_loss(self) -> Callable[[], torch.Tensor]:
        tokens = torch.randint(1000, 20000, self.shape, generator=self.generator).to(self.device)
        labels = torch.randint(2, self.shape[:1], generator=self.generator).to(self.device)
        return partial(self._loss, tokens, labels)

    def _loss(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            logits = self.model(tokens).logits
        return nn.functional.cross_entropy(logits.float(), labels)


@dataclass
class Row:
    """What was measured of one optimizer."""

    memory: float = 0.0
    waits: int = 0
    own_work: float = 0.0
    seconds: dict[int, list[float]] = field(default_factory=dict)
    forwards: float = 0.0


def peak_memory(args: argparse.Namespace) -> float:
    """Bytes above what was in use before the model was built, in this process."""
    import transformers  # noqa: F401 (imported before the first reading)

    before = _peak_resident()
    _take_eight(args.memory_of, args)
    return _peak_resident() - before


def _take_eight(method: str, args: argparse.Namespace) -> None:
    run = Run(method, args.tokens[0], args)
    for _ in range(8):
        run.step()


def _peak_allocated(method: str, args: argparse.Namespace) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _take_eight(method, args)
    return torch.cuda.max_memory_allocated() - before


def _peak_resident() -> int:
    # Linux hands getrusage's peak down from the parent process; its own line in /proc knows this process alone.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(args: argparse.Namespace) -> dict[str, Row]:
    """A row for each optimizer."""
    rows = {method: Row() for method in dict.fromkeys([BASE, *args.only])}
    for method, row in rows.items():
        if args.device == "cuda":
            row.memory = _peak_allocated(method, args)
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", method]
        row.memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for tokens in args.tokens:
        runs = {method: Run(method, tokens, args) for method in rows}
        for _ in tqdm(range(args.steps), desc=f"{tokens} tokens", disable=None):
            for run in runs.values():
                run.step()
        for method, run in runs.items():
            rows[method].seconds[tokens] = run.seconds
            rows[method].forwards = statistics.mean(run.forwards)
            rows[method].waits = run.waits()
    work: dict[str, list[float]] = {method: [] for method in rows}
    for turn in range(-2, 9):
        for method, run in runs.items():
            taken = own_work(run.optimizer)
            if turn >= 0:
                work[method].append(taken)
    for method, row in rows.items():
        row.own_work = statistics.median(work[method])
    return rows


def measurement(rows: dict[str, Row], args: argparse.Namespace) -> dict[str, Any]:
    """Title and table, and the numbers behind them."""
    base = rows[BASE]
    times = ", ".join(f"{1000 * statistics.median(base.seconds[n][_FIRST:]):.0f} ms at {n} tokens" for n in args.tokens)
    title = (
        f"BERT {args.shape}, batches of {args.batch_size} texts, {args.precision}, {place(args.device, args.threads)}, "
        f"{args.steps} steps. {BASE}: own work {1000 * base.own_work:.0f} ms, a step {times}, "
        f"{base.memory / 2**20:.0f} MiB."
    )
    lengths = [f"{n} tokens" for n in args.tokens]
    table = [["optimizer", "own work", *lengths, "peak memory", "forwards", "waits"]]
    for method, row in rows.items():
        ratios = [
            f"{sum(row.seconds[n]) / sum(base.seconds[n]):.2f} "
            f"({statistics.median(row.seconds[n][_FIRST:]) / statistics.median(base.seconds[n][_FIRST:]):.2f})"
            for n in args.tokens
        ]
        cells = [method, f"{row.own_work / base.own_work:.1f}", *ratios, f"{row.memory / base.memory:.2f}"]
        table.append([*cells, f"{row.forwards:.2f}", str(row.waits)])
    return {"title": title, "table": table, "rows": {method: asdict(row) for method, row in rows.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 128])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS), metavar="OPTIMIZER")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--json", type=Path, help="where to write the numbers too")
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
    logging.getLogger("armijo").setLevel(logging.ERROR)
    if args.memory_of:
        print(json.dumps(peak_memory(args)))
        return
    finish(measurement(measure(args), args), args.json)


if __name__ == "__main__":
    main()
