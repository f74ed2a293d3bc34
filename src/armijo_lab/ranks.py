"""The processes that share the rows of a run: one process, or several started by torchrun.

A step uses the same rows with any number of ranks: each rank computes the loss of its share, and gradients, losses and
therefore the decisions of a line search are means over the ranks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from armijo_lab.errors import BadInputError

__all__ = ["ALONE", "Ranks", "current_ranks", "process_group"]


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of this process among the processes of a run.

    Attributes:
        rank: The rank of this process, from 0; only the first writes files.
        size: The number of processes, ≥ 1.
        local: Its rank on its machine, which is the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this rank writes the files."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return this rank's device: with several ranks and CUDA, its own GPU.

        Raises:
            BadInputError: There is no device for it.
        """
        if self.size == 1 or device.type == "cpu":
            return device
        if device.type != "cuda":
            raise BadInputError(f"Several processes share a run on CPUs or CUDA devices, not on {device.type}.")
        if device.index is not None:
            raise BadInputError(f"{device} is one GPU, and each process of a run needs its own; use cuda.")
        if self.local >= torch.cuda.device_count():
            raise BadInputError(
                f"Each process of a run needs a GPU of its own, and there are {torch.cuda.device_count()} for at least "
                f"{self.local + 1} of them; start fewer processes, or use --device cpu."
            )
        gpu = torch.device("cuda", self.local)
        torch.cuda.set_device(gpu)
        return gpu

    def wrap(self, model: nn.Module, device: torch.device, unused: bool) -> nn.Module:
        """Return the model to call in a step, whose backward pass averages the gradients over the ranks.

        Args:
            model: The model to train.
            device: Its device.
            unused: Whether a backward pass leaves some of its parameters without a gradient.
        """
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=unused)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of the first rank to all, since each saw other rows. Every rank must call it."""
        for buffer in model.buffers() if self.size > 1 else ():
            distributed.broadcast(buffer, 0)

    def share(self, indices: Sequence[int]) -> Sequence[int]:
        """Return this rank's part of some row indices."""
        return indices[self.rank :: self.size]

    def mean(self, number: float) -> float:
        """Return the mean over the ranks. Every rank must call it."""
        return number if self.size == 1 else self._sum(number) / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Every rank must call it."""
        return flag if self.size == 1 else self._sum(float(flag)) > 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in order of rank. Every rank must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    @staticmethod
    def _sum(number: float) -> float:
        total = torch.tensor(number, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.item()


ALONE = Ranks()
"""A run in one process."""


def current_ranks() -> Ranks:
    """Read this process's ranks from torchrun's environment; `ALONE` where torchrun did not start it."""
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        return ALONE
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Initialize torch.distributed for the context, which starts once all ranks have joined."""
    ranks = current_ranks()
    if ranks.size == 1:
        yield ranks
        return
    # Losses and flags are exchanged between CPUs, also where gradients go from GPU to GPU.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()
