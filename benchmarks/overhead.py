"""Training time and peak memory of each optimizer against torch's fused AdamW: ratios of one run, as a Markdown table.

A BERT of the given shape with random weights learns random labels; time and memory do not care what it learns. For
the time, all optimizers take turns in one process, a step each, so that a noisy machine disturbs all alike. *All steps*
is the time of the whole run, the first search included; *a later step* is the median of those after the first eight.
For the memory, each optimizer runs in a process of its own: the peak above what was in use before the model was built.

Run: python benchmarks/overhead.py [--shape mini] [--device cpu] [--steps 80] [--only "AdamSLS" ...]
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
from tqdm import tqdm

import armijo

SHAPES = {  # layers, hidden, heads, feed-forward
    "tiny": (2, 128, 2, 512),
    "mini": (6, 384, 12, 1536),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}
METHODS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW, fused": lambda model: torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True),
    "AdamW, foreach": lambda model: torch.optim.AdamW(model.parameters(), lr=2e-5, foreach=True),
    "SGDSLS": lambda model: armijo.SGDSLS(model.parameters()),
    "AdamSLS": lambda model: armijo.AdamSLS(model.parameters()),
    "AdamSLS, β1 = 0": lambda model: armijo.AdamSLS(model.parameters(), betas=(0.0, 0.999)),
    "AdamSLS, on demand": lambda model: armijo.AdamSLS(model.parameters(), selection=armijo.OnDemand()),
    "PLASLS by layer": lambda model: armijo.PLASLS(armijo.split(model, by="layer")),
    "PLASLS by projection": lambda model: armijo.PLASLS(armijo.split(model, by="projection")),
    "PLASLS, every component every step": lambda model: armijo.PLASLS(
        armijo.split(model, by="layer"), selection=armijo.EachAlone()
    ),
}


_FIRST = 8
"""Steps that are not *later steps*: the first search starts far away."""


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

    def steps(self, n: int) -> None:
        for _ in range(n):
            shape = (self.args.batch_size, self.args.length)
            tokens = torch.randint(1000, 20000, shape, generator=self.generator).to(self.args.device)
            labels = torch.randint(2, shape[:1], generator=self.generator).to(self.args.device)
            self._synchronize()
            start = time.perf_counter()
            self._step(lambda x=tokens, y=labels: nn.functional.cross_entropy(self.model(x).logits, y))
            self._synchronize()
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
    run.steps(8)
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
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS), metavar="OPTIMIZER")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(peak_memory(args)))
        return
    methods = dict.fromkeys([next(iter(METHODS)), *args.only])
    memory: dict[str, float] = {}
    for method in methods:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", method]
        memory[method] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    runs = {method: Run(method, args) for method in methods}
    for _ in tqdm(range(args.steps), disable=None):
        for run in runs.values():
            run.steps(1)
    print(table(runs, memory, args))


def table(runs: dict[str, Any], memory: dict[str, float], args: argparse.Namespace) -> str:
    base, base_memory = runs["AdamW, fused"].seconds, memory["AdamW, fused"]
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads"
    lines = [
        f"BERT {args.shape}, batches of {args.batch_size} × {args.length} tokens, {device}, torch {torch.__version__}, "
        f"{args.steps} steps; AdamW, fused: {1000 * statistics.median(base[_FIRST:]):.0f} ms a step, "
        f"{base_memory / 2**20:.0f} MiB",
        "",
        "| optimizer | all steps | a later step | peak memory | forwards a step |",
        "|---|---|---|---|---|",
    ]
    for method, run in runs.items():
        lines.append(
            f"| {method} | {sum(run.seconds) / sum(base):.2f}× "
            f"| {statistics.median(run.seconds[_FIRST:]) / statistics.median(base[_FIRST:]):.2f}× "
            f"| {memory[method] / base_memory:.2f}× "
            f"| {statistics.mean(run.forwards):.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
