"""One decision on all ranks: numbers averaged over the replicas, and failures shared.

Ranks that compare their own losses take different decisions; then they diverge, or wait for each other forever. So
every number that a search compares is the mean over the ranks, reduced together with a flag that says whether the rank
has failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from armijo.errors import ConfigurationError, RankError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["ALONE", "Reduction", "align_gradient", "count_shards", "local_shard"]


@dataclass(frozen=True, slots=True)
class Reduction:
    """The process groups over which the loss is a mean, none on one rank alone, and what is sharded over them.

    Args:
        groups: process groups; with several, as of a mesh with more than one dimension, one after the other.
        sharded: modules under `fully_shard`.
    """

    groups: tuple[Any, ...] = ()
    sharded: tuple[Any, ...] = ()

    @classmethod
    def of_modules(cls, modules: Iterable[Module], given: tuple[Any, ...] | None = None) -> Reduction:
        """Read the process group off wrapped modules: DistributedDataParallel's, or the mesh of sharded parameters.

        Args:
            modules: every module that runs in the forward.
            given: the process groups, if the user named them.

        Raises:
            ConfigurationError: they disagree, or are wrapped in a way that shards parameters out of sight.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return ALONE
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
        from torch.distributed.tensor import DTensor

        found: dict[tuple[int, ...], tuple[Any, ...]] = {}
        sharded: list[Any] = []
        for module in modules:
            if isinstance(module, FullyShardedDataParallel):
                raise ConfigurationError(
                    "FullyShardedDataParallel hides the parameters in flat shards, and no step size can be searched "
                    "for them. Shard with torch.distributed.fsdp.fully_shard(model) instead."
                )
            if isinstance(module, DistributedDataParallel):
                found[(id(module.process_group),)] = (module.process_group,)
            if isinstance(module, FSDPModule):
                sharded.append(module)
            for parameter in module._parameters.values():
                if isinstance(parameter, DTensor):
                    groups = tuple(parameter.device_mesh.get_all_groups())
                    found[tuple(map(id, groups))] = groups
        if given is not None:
            return cls(given, tuple(sharded))
        if len(found) > 1:
            raise ConfigurationError(
                "The modules of this loss are distributed over different process groups, and the loss has to be a mean "
                "over one. Name it: process_group= of the optimizer, or of the Objective."
            )
        return cls(next(iter(found.values()), ()), tuple(sharded))

    @property
    def ranks(self) -> int:
        """How many ranks take the decision together."""
        ranks = 1
        for group in self.groups:
            ranks *= distributed.get_world_size(group)
        return ranks

    def mean(self, numbers: Sequence[float], error: BaseException | None = None) -> list[float]:
        """The mean of each number over the ranks, alike on all of them. Every rank must call it.

        Args:
            numbers: as many on every rank; they do not count where there is an error.
            error: what went wrong on this rank.

        Raises:
            RankError: another rank has failed, or cannot be reached.
            BaseException: `error`, after the others have been told.
        """
        if not self.groups:
            if error is not None:
                raise error
            return list(numbers)
        failed = error is not None
        payload = [float(failed), float(distributed.get_rank() * failed), *(0.0 if failed else n for n in numbers)]
        try:
            total = torch.tensor(payload, dtype=torch.float64, device=self._device())
            for group in self.groups:
                distributed.all_reduce(total, group=group)
            failures, rank, *sums = total.tolist()
        except RuntimeError as trouble:
            if error is not None:
                raise error from None
            raise RankError(
                f"This rank could not exchange its losses with the others: {trouble} One of them has probably ended; "
                "what it wrote last says why."
            ) from trouble
        if error is not None:
            raise error
        if failures:
            who = f"Rank {rank:.0f} has" if failures == 1 else f"{failures:.0f} other ranks have"
            raise RankError(
                f"{who} failed in this step, so it is undone on all {self.ranks}. Look for the first error there."
            )
        return [number / self.ranks for number in sums]

    def reshard(self) -> None:
        """Free gathered parameters: a forward without gradients leaves some, and the next would not see a move."""
        for module in self.sharded:
            module.reshard()

    def _device(self) -> torch.device:
        # NCCL knows no CPU tensors. A group for several kinds of devices names the CPU's backend too.
        backend = str(distributed.get_backend(self.groups[0]))
        return torch.device("cuda" if backend == "nccl" else "xpu" if backend in ("xccl", "ccl") else "cpu")


ALONE = Reduction()
"""Only this rank's loss counts."""


def count_shards(tensor: torch.Tensor) -> int:
    """The number of shards of a tensor over the ranks: 1 if each rank has all of it."""
    parts = 1
    if (spread := _as_dtensor(tensor)) is not None:
        for size, placement in zip(spread.device_mesh.shape, spread.placements, strict=True):
            parts *= size if placement.is_shard() else 1
    return parts


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor; the tensor itself if it is not sharded."""
    spread = _as_dtensor(tensor)
    return tensor if spread is None else spread.to_local()


def align_gradient(grad: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A gradient, placed on the ranks as its parameter is; tensor parallelism leaves some as partial sums."""
    spread, like = _as_dtensor(grad), _as_dtensor(parameter)
    if spread is None or like is None or spread.placements == like.placements:
        return grad
    return spread.redistribute(placements=like.placements)


def _as_dtensor(tensor: torch.Tensor) -> DTensor | None:
    """The tensor, if it is distributed."""
    # Called for every tensor at every step, so plain tensors and parameters leave at once.
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or not distributed.is_available():
        return None
    from torch.distributed.tensor import DTensor

    return tensor if isinstance(tensor, DTensor) else None
