"""Training time and peak memory of each optimizer against torch.optim.AdamW: ratios of one run, as a Markdown table.

A BERT of the given shape with random weights learns random labels; time and memory do not care what it learns. For
the time, all optimizers take turns in one process, a few steps each, so that a noisy machine disturbs all alike; the
first steps, whose search starts far away, are left out and stated by `forwards a step` alone. For the memory, each
optimizer runs in a process of its own: the peak above what was in use before the model was built.

Run: python benchmarks/overhead.py [--shape mini] [--device cpu] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import armijo

SHAPES = {  # layers, hidden, heads, feed-forward
    "tiny": (2, 128, 2, 512),
    "mini": (6, 384, 12, 1536),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}
METHODS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=2e-5),
    "SGDSLS": lambda model: armijo.SGDSLS(model.parameters()),
    "AdamSLS": lambda model: armijo.AdamSLS(model.parameters()),
    "PLASLS by layer": lambda model: armijo.PLASLS(armijo.split(model, by="layer")),
    "PLASLS by projection": lambda model: armijo.PLASLS(armijo.split(model, by="projection")),
    "PLASLS, every component every step": lambda model: armijo.PLASLS(
        armijo.split(model, by="layer"), selection=armijo.EachAlone()
    ),
}


class Run:
    def __init__(self, method: str, args: argparse.Namespace) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        layers, hidden, heads, feed_forward = SHAPES[args.shape]
        config = BertConfig(
            num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=feed_forward
        )
        self.model = BertForSequenceClassification(config).to(args.device).train()
        self.optimizer = METHODS[method](self.model)
        self.generator = torch.Generator().manual_seed(0)
        self.args = args
        self.seconds: list[float] = []
        self.forwards: list[int] = []

    def steps(self, n: int, *, timed: bool) -> None:
        for _ in range(n):
            shape = (self.args.batch_size, self.args.length)
            tokens = torch.randint(1000, 20000, shape, generator=self.generator).to(self.args.device)
            labels = torch.randint(2, shape[:1], generator=self.generator).to(self.args.device)
            self._synchronize()
            start = time.perf_counter()
            self._step(lambda x=tokens, y=labels: nn.functional.cross_entropy(self.model(x).logits, y))
            self._synchronize()
            if timed:
                self.seconds.append(time.perf_counter() - start)
                report = getattr(self.optimizer, "report", None)
                self.forwards.append(1 if report is None else report.forwards)

    def _step(self, closure: Callable[[], torch.Tensor]) -> None:
        if isinstance(self.optimizer, armijo.LineSearch):
            self.optimizer.step(closure)
        else:
            self.optimizer.zero_grad()
            closure().backward()
            self.optimizer.step()

    def _synchronize(self) -> None:
        if self.args.device == "cuda":
            torch.cuda.synchronize()


def peak_memory(args: argparse.Namespace) -> float:
    """Bytes above what was in use before the model was built, in this process."""
    import transformers  # noqa: F401 (imported before the first reading)

    before = _peak_resident()
    run = Run(args.memory_of, args)
    run.steps(8, timed=False)
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _peak_resident() - before


def _peak_resident() -> int:
    # Linux hands getrusage's peak down from the parent process; its own line in /proc knows this process alone.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps of each optimizer in a round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(peak_memory(args)))
        return
    memory: dict[str, float] = {}
    for method in METHODS:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", method]
        memory[method] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    runs = {method: Run(method, args) for method in METHODS}
    for run in runs.values():
        run.steps(8, timed=False)
    for _ in range(args.rounds):
        for run in runs.values():
            run.steps(args.steps, timed=True)
    print(table(runs, memory, args))


def table(runs: dict[str, Any], memory: dict[str, float], args: argparse.Namespace) -> str:
    base_time, base_memory = statistics.median(runs["AdamW"].seconds), memory["AdamW"]
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads"
    lines = [
        f"BERT {args.shape}, batches of {args.batch_size} × {args.length} tokens, {device}, torch {torch.__version__}, "
        f"median of {args.rounds * args.steps} steps after 8; AdamW: {1000 * base_time:.0f} ms a step, "
        f"{base_memory / 2**20:.0f} MiB",
        "",
        "| optimizer | time a step | peak memory | forwards a step |",
        "|---|---|---|---|",
    ]
    for method, run in runs.items():
        lines.append(
            f"| {method} | {statistics.median(run.seconds) / base_time:.2f}× | {memory[method] / base_memory:.2f}× "
            f"| {statistics.mean(run.forwards):.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
