"""Memory: the named plain numbers that a part keeps from step to step.

Parts are frozen values. A part that needs to remember something declares it in `defaults()`, for instance
`{"mean_decrease": 0.0}`. The numbers lie in the optimizer's parameter groups, where every checkpoint finds them. During
a step the part reads and writes a copy, a dict; what it wrote counts from the moment the step is committed, and is
forgotten if the step is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Protocol

from armijo.errors import ConfigurationError

__all__ = ["Memory", "Remembers", "combine_memory", "copy_memory", "is_memory_value"]

Memory = dict[str, Any]
"""Numbers, or lists of numbers, by name."""


class Remembers(Protocol):
    """A part with memory."""

    def defaults(self) -> Memory:
        """The numbers to remember, by names that no other part uses, with their first values."""
        ...


def combine_memory(*parts: Remembers) -> Memory:
    """The memory of several parts in one dict.

    Raises:
        ConfigurationError: if two parts use one name, or a value is neither a number nor a list of numbers.
    """
    combined: Memory = {}
    for part in parts:
        for name, value in part.defaults().items():
            if name in combined:
                raise ConfigurationError(
                    f"Two parts of the optimizer remember {name!r}, the second is {part!r}. Give one of them another "
                    "name in its defaults()."
                )
            if not is_memory_value(value, value):
                raise ConfigurationError(
                    f"{part!r} remembers {name} = {value!r}. Checkpoints keep numbers and lists of numbers only."
                )
            combined[name] = value
    return combined


def copy_memory(source: Mapping[str, Any], names: Mapping[str, Any]) -> Memory:
    """The values of `names` in `source`, as a copy that may be written to."""
    return {name: list(source[name]) if isinstance(source[name], list) else source[name] for name in names}


def is_memory_value(value: object, default: object) -> bool:
    """Whether a value is of the kind of its default: a list of numbers, an integer, or any real number."""
    if isinstance(default, list):
        return isinstance(value, list) and all(isinstance(item, Real) for item in value)
    return isinstance(value, int if isinstance(default, int) else Real)
