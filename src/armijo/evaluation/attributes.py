"""What a forward may change besides parameters under search and buffers: counters, hidden states, teachers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import torch
from torch.nn import Module

__all__ = ["changed_attributes", "fingerprint_attributes"]

Fingerprints = dict[tuple[int, str], tuple[str, Any]]

_MODULE = frozenset(vars(Module()))
"""What torch keeps in every module."""


def fingerprint_attributes(modules: Iterable[Module], searched: Iterable[torch.Tensor]) -> Fingerprints:
    """A mark of each attribute that a forward might change; equal marks mean that it was surely not changed.

    Numbers and small NumPy arrays count by value, tensors by identity and torch's count of in-place writes, containers
    by length and, if they are short, by what they hold. Torch's own modules, wrappers included, keep books that do not
    matter here.

    Args:
        modules: the modules that ran.
        searched: parameters that the search itself moves.
    """
    own = set(map(id, searched))
    marks: Fingerprints = {}
    for module in modules:
        kind = type(module)
        for name, parameter in module._parameters.items():
            # Gathered shards are other tensors each time.
            if type(parameter) is torch.nn.Parameter and id(parameter) not in own:
                marks[id(module), name] = (f"{kind.__name__}.{name}", parameter._version)
        if kind.__module__.split(".")[0] == "torch":
            continue
        for name, value in vars(module).items():
            if name not in _MODULE and (mark := _mark(value)) is not None:
                marks[id(module), name] = (f"{kind.__name__}.{name}", mark)
    return marks


def changed_attributes(before: Fingerprints, after: Fingerprints) -> list[str]:
    """The names, class and attribute, of what has changed or is new."""
    changed = [name for key, (name, mark) in after.items() if key not in before or before[key][1] != mark]
    return list(dict.fromkeys(changed))


class _Identity:
    """Equal if it holds the same object, which it keeps alive: a new tensor may have the address of a dead one."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self._value is other._value

    __hash__ = None  # type: ignore[assignment]


def _mark(value: Any, depth: int = 0) -> Any:
    if isinstance(value, torch.Tensor):
        return _Identity(value), None if value.is_inference() else value._version
    if isinstance(value, Number | str):
        return value
    if isinstance(value, Mapping | Sequence | Collection):
        # Longer than this it is data rather than state; what lies in shorter ones counts too.
        items = list(value.values() if isinstance(value, Mapping) else value) if len(value) < 32 and depth < 3 else []
        return len(value), [_mark(item, depth + 1) for item in items]
    if hasattr(value, "__array_interface__"):
        return value.shape, value.tobytes() if value.nbytes < 2**16 else b""
    return None
