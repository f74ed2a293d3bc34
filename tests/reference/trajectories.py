"""Prints where optimizers go, to the last bit: run once with an earlier commit's library and once with this one.

    PYTHONPATH=SRC python tests/reference/trajectories.py [MODEL_FOLDER]

Each line is a case and a digest of every loss, step size, forward count and parameter along its steps. The script uses
only names that both libraries have, and torch's foreach functions in both.
"""

import hashlib
import importlib.util
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import armijo
import armijo.paper

if importlib.util.find_spec("armijo.directions.fused"):
    # The fused kernel's results differ by a rounding error; what it is compared with in tests/test_fused.py is this.
    from armijo.directions.fused import FusedAdamKernel

    FusedAdamKernel.takes = staticmethod(lambda *tensors: False)


adam_sls: Callable[..., Any] = armijo.AdamSLS
sgd_sls: Callable[..., Any] = armijo.SGDSLS
plasls: Callable[..., Any] = armijo.PLASLS
if importlib.util.find_spec("armijo.directions.last_gradient"):
    # The defaults are others now; this is what they were.
    sys.path.append(str(Path(__file__).parents[1]))
    from problems import cycling_adam, growing_adam, growing_sgd

    adam_sls, sgd_sls, plasls = growing_adam, growing_sgd, cycling_adam


class Net(nn.Module):
    """Embedding, two encoder layers with dropout, BatchNorm, head: buffers, masks and a stack of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        layer = [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True) for _ in range(2)]
        self.layers = nn.ModuleList(layer)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of shape (rows, 3)."""
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(self.norm(hidden.mean(1)))


def trace(optimizer: Any, closures: list[Callable[[], torch.Tensor]]) -> str:
    """A digest of all that can be seen of the steps."""
    digest = hashlib.sha256()
    for closure in closures:
        loss = optimizer.step(closure)
        report = optimizer.report
        numbers = [float(loss), float(report.forwards), *(float(g["step_size"]) for g in optimizer.param_groups)]
        numbers += [c.slope for c in report.components]
        digest.update(struct.pack(f"{len(numbers)}d", *numbers))
        digest.update(repr([(c.label, str(c.status), c.trials) for c in report.components]).encode())
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                digest.update(parameter.detach().numpy().tobytes())
                state = optimizer.state.get(parameter, {})
                # Without momentum exp_avg is the last gradient, and no longer kept.
                kept = [key for key in sorted(state) if key != "exp_avg" or group["betas"][0] > 0]
                digest.update(b"".join(state[key].numpy().tobytes() for key in kept))
    return digest.hexdigest()


def rosenbrock() -> tuple[nn.Module, list[Callable[[], torch.Tensor]]]:
    """A valley in float64, a component a coordinate."""
    model = nn.ParameterDict(
        {name: nn.Parameter(torch.tensor(v, dtype=torch.float64)) for name, v in [("x", -1.2), ("y", 1.0)]}
    )
    return model, [lambda: (1 - model["x"]) ** 2 + 100 * (model["y"] - model["x"] ** 2) ** 2] * 60


def regression() -> tuple[nn.Module, list[Callable[[], torch.Tensor]]]:
    """Mini-batches of a logistic regression with one hidden layer."""
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3))
    data = [(torch.randn(32, 10), torch.randint(3, (32,))) for _ in range(60)]
    return model, [lambda x=x, y=y: functional.cross_entropy(model(x), y) for x, y in data]


def encoder() -> tuple[nn.Module, list[Callable[[], torch.Tensor]]]:
    """A small encoder in training mode."""
    model = Net()
    data = [(torch.randint(20, (16, 7)), torch.randint(3, (16,))) for _ in range(40)]
    return model, [lambda x=x, y=y: functional.cross_entropy(model(x), y) for x, y in data]


def minilm(folder: str) -> tuple[nn.Module, list[Callable[[], torch.Tensor]]]:
    """all-MiniLM-L6-v2 with a new head, on made-up tokens."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).float()
    model.train()
    data = [(torch.randint(1000, 20000, (8, 12)), torch.randint(3, (8,))) for _ in range(4)]
    return model, [lambda x=x, y=y: model(input_ids=x, labels=y).loss for x, y in data]


def optimizers(by: str) -> dict[str, Callable[[nn.Module], Any]]:
    """The recommended classes in plain and in unusual settings, and the paper's."""

    def trainable(model: nn.Module) -> Any:
        return model.parameters()

    return {
        "SGDSLS": lambda model: sgd_sls(trainable(model)),
        "SGDSLS decay": lambda model: sgd_sls(trainable(model), lr=0.5, weight_decay=0.01, c=0.5),
        "AdamSLS": lambda model: adam_sls(trainable(model)),
        "AdamSLS decay": lambda model: adam_sls(
            trainable(model), lr=0.7, betas=(0.0, 0.99), weight_decay=0.1, c=0.5, max_step_size=1e-2
        ),
        "PLASLS": lambda model: plasls(armijo.split(model, by=by)),
        "PLASLS merges": lambda model: plasls(
            armijo.split(model, by=by), c=0.3, merging=armijo.MergeSmallest(1e-2), max_step_size=0.05
        ),
        "paper.SGDSLS": lambda model: armijo.paper.SGDSLS(trainable(model)),
        "paper.AdamSLS": lambda model: armijo.paper.AdamSLS(trainable(model)),
        "paper.PLASLS": lambda model: armijo.paper.PLASLS(armijo.split(model, by=by), merge_below=1e-3),
    }


def main(folder: str | None) -> None:
    """Write all cases."""
    torch.set_num_threads(1)
    problems: dict[str, tuple[Callable[[], Any], str]] = {
        "rosenbrock": (rosenbrock, "tensor"),
        "regression": (regression, "module"),
        "encoder": (encoder, "layer"),
    }
    if folder is not None:
        problems["MiniLM"] = (lambda: minilm(folder), "layer")
    for name, (problem, by) in problems.items():
        for kind, build in optimizers(by).items():
            if name == "MiniLM" and kind not in ("SGDSLS", "AdamSLS", "PLASLS"):
                continue
            torch.manual_seed(0)
            model, closures = problem()
            sys.stdout.write(f"{name}: {kind}: {trace(build(model), closures)}\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
