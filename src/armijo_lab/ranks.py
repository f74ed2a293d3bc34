"""The processes that share the rows of a run: one alone, or several that torchrun has started.

A step is taken on the same rows however many there are: each rank computes the loss of its share, and gradients, losses
and so the decisions of a line search are means over the ranks.
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

__all__ = ["ALONE", "Ranks", "joined", "started"]


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of a run.

    Attributes:
        rank: Which it is, from 0; the first alone writes.
        size: How many there are, ≥ 1.
        local: Which it is on its machine: the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """This rank's device, where all ranks were given the same: its own GPU.

        Raises:
            BadInputError: There is none for it.
        """
        if self.size == 1 or device.type == "cpu":
            return device
        if device.type != "cuda":
            raise BadInputError(f"Several processes share a run on CPUs or CUDA devices, not on {device.type}.")
        if device.index is not None:
            raise BadInputError(f"{device} is one GPU, and each process of a run needs one of its own; say cuda.")
        if self.local >= torch.cuda.device_count():
            raise BadInputError(
                f"Each process of a run needs a GPU of its own, and there are {torch.cuda.device_count()} for at least "
                f"{self.local + 1} of them; start fewer processes, or say --device cpu."
            )
        own = torch.device("cuda", self.local)
        torch.cuda.set_device(own)
        return own

    def wrap(self, model: nn.Module, device: torch.device, unused: bool) -> nn.Module:
        """The model as it is called in a step: its backward pass averages the gradients over the ranks.

        Args:
            model: What is trained.
            device: Where it lies.
            unused: Whether a backward pass leaves some of its parameters without a gradient.
        """
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=unused)

    def agree(self, model: nn.Module) -> None:
        """Give all ranks the buffers of the first: each has seen other rows. Every rank must call it."""
        for buffer in model.buffers() if self.size > 1 else ():
            distributed.broadcast(buffer, 0)

    def share(self, places: Sequence[int]) -> Sequence[int]:
        """Those of some rows that are this rank's."""
        return places[self.rank :: self.size]

    def mean(self, number: float) -> float:
        """The mean over the ranks. Every rank must call it."""
        return number if self.size == 1 else self._sum(number) / self.size

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank. Every rank must call it."""
        return flag if self.size == 1 else self._sum(float(flag)) > 0

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, in their order. Every rank must call it."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    @staticmethod
    def _sum(number: float) -> float:
        total = torch.tensor(number, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.item()


ALONE = Ranks()
"""A run in one process."""


def started() -> Ranks:
    """What torchrun says of this process; `ALONE` where it did not start it."""
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        return ALONE
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """While it lasts the ranks can exchange numbers; it begins when all have come."""
    ranks = started()
    if ranks.size == 1:
        yield ranks
        return
    # Numbers that decide something are the CPU's, also where gradients go from GPU to GPU.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()
