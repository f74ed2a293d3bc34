"""The device of a run, from its name."""

from __future__ import annotations

import torch

from armijo_lab.errors import BadInputError

__all__ = ["choose_device"]


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; for `auto` the first of cuda, mps and cpu that is available.

    Raises:
        BadInputError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInputError(f"There is no device {name!r}; choose auto, cpu, cuda, cuda:0 and so on, or mps.") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise BadInputError(
            f"The device {name} is not available here; available: {', '.join(k for k in available if available[k])}."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInputError(f"There is no device {name}; this machine has {torch.cuda.device_count()} CUDA devices.")
    return device
