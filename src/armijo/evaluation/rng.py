"""The random number generators that a forward pass may draw from."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["RandomState"]


@dataclass(frozen=True, slots=True)
class RandomState:
    """The state of every global generator: Python's, NumPy's, torch's on the CPU and on each device in use.

    Generators that a program made for itself (`torch.Generator()`, `numpy.random.default_rng()`) cannot be seen; a
    closure that draws from one is not deterministic.
    """

    python: Any
    numpy: Any
    cpu: torch.Tensor
    devices: tuple[tuple[Any, int | None, torch.Tensor], ...]

    @classmethod
    def capture(cls) -> RandomState:
        """The states as they are now. Asks no device to synchronise."""
        # A forward can only draw from NumPy if something imported it; armijo itself never does.
        numpy = sys.modules.get("numpy")
        return cls(
            python=random.getstate(),
            numpy=None if numpy is None else numpy.random.get_state(),
            cpu=torch.get_rng_state(),
            devices=tuple(_device_states()),
        )

    def restore(self) -> None:
        """Put every generator back."""
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        for backend, index, state in self.devices:
            if index is None:
                backend.set_rng_state(state)
            else:
                backend.set_rng_state(state, index)


def _device_states() -> list[tuple[Any, int | None, torch.Tensor]]:
    states: list[tuple[Any, int | None, torch.Tensor]] = []
    for backend in (torch.cuda, torch.xpu):
        # An uninitialised backend has drawn nothing, and asking it for its state would initialise it.
        if backend.is_initialized():
            states.extend((backend, i, backend.get_rng_state(i)) for i in range(backend.device_count()))
    if torch.backends.mps.is_available():
        states.append((torch.mps, None, torch.mps.get_rng_state()))
    return states
