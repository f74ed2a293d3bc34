"""One rank of a Trainer's run: torchrun --nproc_per_node=2 trainer_ranks.py FOLDER CASE."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

import armijo
from armijo.integrations.transformers import line_search
from integrations.rows import bert, rows
from integrations.test_transformers import InOrderArmijo, Watching, arguments

CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    # Accumulating, FSDP2 may hold gradients where `grad` does not show them.
    "fsdp2": {
        "fsdp": True,
        "fsdp_config": {"version": 2, "cpu_ram_efficient_loading": False},
        "gradient_accumulation_steps": 2,
    },
}


def main() -> None:
    folder, case = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    given = arguments(folder, per_device_train_batch_size=4, ddp_backend="gloo", ddp_timeout=60, **CASES[case])
    choice = line_search(armijo.PLASLS, n_layer_groups=2)
    trainer = InOrderArmijo(bert(), given, train_dataset=rows(), optimizer_cls_and_kwargs=choice)
    if "fsdp" in CASES[case]:
        # Accelerate shards on accelerators only; what it then does runs on a CPU as well.
        trainer.accelerator.state.distributed_type = DistributedType.FSDP
        trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    watch = Watching(trainer)
    trainer.add_callback(watch)
    trainer.train()
    held = [p.full_tensor() if isinstance(p, DTensor) else p for p in trainer.model.parameters()]
    found = {
        "parameters": [parameter.detach().clone() for parameter in held],
        "sharded": any(isinstance(parameter, DTensor) for parameter in trainer.model.parameters()),
        "losses": [report.loss for report in watch.reports],
        "trials": [[c.trials for c in report.components] for report in watch.reports],
        "step_sizes": [[c.step_size for c in report.components] for report in watch.reports],
    }
    torch.save(found, folder / f"{case}-{os.environ['RANK']}.pt")
    # Left to the end of the interpreter, gloo's threads abort the process now and then (pytorch 179291).
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
