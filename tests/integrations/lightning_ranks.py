"""One rank of Lightning's runs: torchrun --nproc_per_node=2 lightning_ranks.py FOLDER."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

import armijo
from integrations.rows import bert, rows
from integrations.test_lightning import Automatic, Manual, Watching, quiet

PATIENCE = timedelta(seconds=60)
"""A rank that waits for one that has ended must not wait for ever."""


class Sharded(Automatic):
    """FSDP2."""

    def configure_model(self) -> None:
        assert self.device_mesh is not None
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Bare(Manual):
    """A closure that backward() is called for without averaging."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.optimizers().step(lambda: self.loss(batch))  # pyright: ignore


def plasls(net: torch.nn.Module) -> armijo.LineSearch:
    return armijo.PLASLS(armijo.split(net, n_layer_groups=2))


CASES: dict[str, tuple[Callable[..., LightningModule], dict[str, Any]]] = {
    "accumulated": (Automatic, {"accumulate_grad_batches": 2}),
    "manual": (Manual, {}),
    "fsdp2": (Sharded, {"strategy": "sharded"}),
}


def trainer_of(*callbacks: Callback, **options: Any) -> Trainer:
    if options["strategy"] == "sharded":
        options["strategy"] = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, timeout=PATIENCE)
    else:
        options["strategy"] = DDPStrategy(process_group_backend="gloo", timeout=PATIENCE)
    return Trainer(
        **options,
        callbacks=list(callbacks),
        accelerator="cpu",
        devices=2,
        max_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    quiet()
    rank = int(os.environ["RANK"])
    # Lightning's own sampler shuffles.
    data: Any = DataLoader(rows()[rank::2], batch_size=4)  # pyright: ignore[reportArgumentType]
    for case, (kind, options) in CASES.items():
        watch, module = Watching(), kind(bert(), plasls)
        trainer_of(watch, **{"strategy": "ddp", **options}).fit(module, data)
        held = [p.full_tensor() if isinstance(p, DTensor) else p for p in module.net.parameters()]
        found = {
            "parameters": [parameter.detach().clone() for parameter in held],
            "sharded": any(isinstance(parameter, DTensor) for parameter in module.net.parameters()),
            "reports": watch.reports,
        }
        torch.save(found, folder / f"{case}-{rank}.pt")
    try:
        trainer_of(strategy="ddp").fit(Bare(bert(), plasls), data)
    except armijo.ConfigurationError as error:
        (folder / f"refused-{rank}").write_text(str(error))


if __name__ == "__main__":
    main()
