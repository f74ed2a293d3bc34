"""Memory: the named plain numbers that a part keeps from step to step.

Parts are frozen values. A part that needs to remember something declares it in `defaults()`, for instance
`{"mean_decrease": 0.0}`. The numbers lie in the optimizer's parameter groups, where every checkpoint finds them. During
a step the part reads and writes a copy, a dict; what it wrote counts from the moment the step is committed, and is
forgotten if the step is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, Protocol, Self

from armijo.errors import ConfigurationError

__all__ = ["Memory", "Remembers", "ScratchMemory", "combine_memory", "copy_memory", "plain_value"]

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
        defaults: Any = part.defaults()
        if not isinstance(defaults, Mapping) or not all(isinstance(name, str) for name in defaults):
            raise ConfigurationError(
                f"{part!r}.defaults() returned {defaults!r}. It must return a dict: names, with the integer, float or "
                "list of numbers to begin with."
            )
        for name, value in defaults.items():
            if name in combined:
                raise ConfigurationError(
                    f"Two parts of the optimizer remember {name!r}, the second is {part!r}. Give one of them another "
                    "name in its defaults()."
                )
            try:
                combined[name] = plain_value(name, value, value)
            except ConfigurationError as error:
                raise ConfigurationError(f"{part!r} cannot be used: {error}") from None
    return combined


def copy_memory(source: Mapping[str, Any], names: Iterable[str] | None = None) -> Memory:
    """The values of `names` in `source`, or all of them, as a copy that may be written to."""
    names = source if names is None else names
    return {name: list(source[name]) if isinstance(source[name], list) else source[name] for name in names}


def plain_value(name: str, value: Any, default: Any) -> Any:
    """A value to remember, as Python's own float, int or list: NumPy's cannot be loaded with `weights_only=True`.

    Raises:
        ConfigurationError: the value is not of the kind of its default.
    """
    if isinstance(default, list):
        if isinstance(value, list) and all(isinstance(item, Real) for item in value):
            return [int(item) if isinstance(item, Integral) else float(item) for item in value]
        raise ConfigurationError(f"{name} is {value!r}; it must be a list of numbers, as in defaults().")
    if isinstance(default, Integral) and isinstance(value, Integral):
        return int(value)
    if isinstance(default, Real) and not isinstance(default, Integral) and isinstance(value, Real):
        return float(value)
    if isinstance(default, Integral) and isinstance(value, Real):
        raise ConfigurationError(
            f"{name} is {value!r}, where defaults() has the integer {default}; write {default}.0 there."
        )
    raise ConfigurationError(
        f"{name} is {value!r}; numbers and lists of numbers can be remembered, of the kind in defaults(). Of a tensor "
        "keep float(tensor)."
    )


class ScratchMemory(dict[str, Any]):
    """A copy of what is remembered, for one search: it knows what the search has written.

    Args:
        values: the values to begin with.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(copy_memory(values))
        self._lists = {name: list(value) for name, value in values.items() if isinstance(value, list)}
        self._written: set[str] = set()

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self._written.add(name)

    def update(self, *args: Any, **values: Any) -> None:
        """Write several values."""
        for name, value in dict(*args, **values).items():
            self[name] = value

    def __ior__(self, values: Any) -> Self:  # type: ignore[override, misc]
        self.update(values)
        return self

    def setdefault(self, name: str, default: Any = None) -> Any:
        """The value of that name, written if there is none."""
        if name not in self:
            self[name] = default
        return self[name]

    @property
    def written(self) -> Memory:
        """The values that were written, lists that were changed in place included."""
        return {
            name: value
            for name, value in self.items()
            if name in self._written or (name in self._lists and value != self._lists[name])
        }
