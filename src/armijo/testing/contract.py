"""A part under test, and what all families share."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from numbers import Real
from typing import Any, NoReturn

import torch

from armijo.errors import ConfigurationError
from armijo.search.memory import Memory, copy_memory, plain_value
from armijo.search.values import Derivatives, Line

__all__ = ["Contract", "as_number", "attributes_of", "check_value", "is_step_size"]

_FOREIGN = "memory_of_another_part"


class Contract:
    """One part under test: calls it, carries its memory, and says which rule is broken.

    Args:
        part: the part.
        family: the family whose contract it is to keep.
        derivatives: the names that lines provide.
    """

    def __init__(self, part: Any, family: str, derivatives: tuple[str, ...]) -> None:
        self.part = part
        self.family = family
        self.derivatives = derivatives
        self.random = random.Random(0)
        self._failure: AssertionError | None = None
        self._first: Memory = {}
        self._kept: Memory = {}

    def fail(self, found: str, remedy: str) -> NoReturn:
        """Raise: what the part did, and what to do instead."""
        self._failure = AssertionError(f"{self.part!r} {found}. {remedy}")
        raise self._failure

    def require(self, holds: bool, found: str, remedy: str) -> None:
        """Fail unless a rule holds."""
        if not holds:
            self.fail(found, remedy)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method that must not raise."""
        try:
            return getattr(self.part, method)(*args)
        except Exception as error:
            if error is self._failure:
                raise
            reads = isinstance(error, ConfigurationError) and "no derivative" in str(error)
            remedy = (
                "If the part is for a direction with other probes, name them: assert_contract(part, derivatives=(...))."
                if reads
                else "A part answers every call that a step makes; see the docstrings of its family's class."
            )
            reason = f"{type(error).__name__}: {error}".rstrip(".")
            try:
                self.fail(f"raised in {method}: {reason}", remedy)
            except AssertionError as failure:
                raise failure from error

    def start_anew(self) -> None:
        """Begin with the first values of what the part remembers."""
        remedy = "It must return a dict: names, with the integer, float or list of numbers to begin with."
        first = self.call("defaults")
        named = isinstance(first, Mapping) and all(isinstance(name, str) for name in first)
        self.require(named, f"returned {first!r} from defaults()", remedy)
        self.require(
            first.keys() == self.call("defaults").keys(),
            "names other things in defaults() when it is called again",
            "The names must stay the same: they are the keys under which checkpoints keep the memory.",
        )
        try:
            self._first = {name: plain_value(name, value, value) for name, value in first.items()}
        except ConfigurationError as error:
            self.fail(f"has defaults() that cannot be remembered: {str(error).rstrip('.')}", remedy)
        self._kept = copy_memory(self._first)

    def open_memory(self) -> Memory:
        """The memory of the next step, among that of other parts."""
        return {**copy_memory(self._kept), _FOREIGN: 0.25}

    def close_memory(self, memory: Memory) -> None:
        """Check what a step has written, and keep it for the next one."""
        undeclared = sorted(map(str, memory.keys() - self._first.keys() - {_FOREIGN}))
        self.require(
            not undeclared,
            f"wrote {', '.join(undeclared)} to memory, which defaults() does not name",
            "Name everything that the part remembers in defaults(), with a first value.",
        )
        self.require(
            memory.get(_FOREIGN) == 0.25 and self._first.keys() <= memory.keys(),
            "removed names from memory, or changed one of another part",
            "The dict may hold the memory of other parts: write under your own names and remove none.",
        )
        try:
            self._kept = {name: plain_value(name, memory[name], first) for name, first in self._first.items()}
        except ConfigurationError as error:
            self.fail(f"wrote to memory what cannot be remembered: {str(error).rstrip('.')}", "Write plain numbers.")

    def line(self, loss: float, slope: float, longest: float = torch.finfo(torch.float32).max) -> Line:
        """A line that provides all derivatives: of either sign, and 0, as before the first step."""
        values = (0.0, 1e-9, 0.5, -0.5, 1e6, -1e6)
        found = {name: slope * self.random.choice(values) for name in self.derivatives}
        return Line(loss, slope, abs(loss) * 2**-24, longest, Derivatives(found))

    def lines(self, count: int) -> Iterator[Line]:
        """Lines as training meets them, mostly: losses of either sign and 0, slopes from 1e-8 on."""
        for k in range(count):
            loss = (2.0 * 0.95**k + 0.5 * self.random.random(), -3.0, 0.0, 1e6)[max(0, k % 11 - 7)]
            yield self.line(loss, 1e-8 if k % 13 == 12 else 10 ** self.random.uniform(-4, 3))


def as_number(value: object) -> float:
    """A step size as `LineSearch` reads it: a number, or a tensor of one element; NaN for anything else."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else math.nan
    return float(value) if isinstance(value, Real) else math.nan


def is_step_size(value: object) -> bool:
    """Whether the value can be a first step size."""
    return 0 < as_number(value) < math.inf


def attributes_of(part: object) -> dict[str, Any]:
    """The attributes of a part, without those that it computes from them once."""
    attributes = getattr(part, "__dict__", {})
    derived = {name for name in attributes if isinstance(getattr(type(part), name, None), cached_property)}
    return {name: value for name, value in attributes.items() if name not in derived}


def check_value(contract: Contract) -> None:
    """Check that a part is hashable, frozen, and equal to its copy from pickle."""
    part = contract.part
    frozen = "Write @dataclass(frozen=True) above its class, and keep tuples instead of lists and dicts"
    try:
        hash(part)
    except Exception as error:
        contract.fail(f"cannot be hashed: {error}", f"{frozen}: parts are values, and may be default arguments.")
    try:
        twin = pickle.loads(pickle.dumps(part))
    except Exception as error:
        contract.fail(
            f"cannot be pickled: {str(error).rstrip('.')}",
            "Checkpoints and other processes copy parts in this way: define the class at the top level of a module, "
            "and keep no functions, locks or files in its fields.",
        )
    equal = "does not equal its own copy from pickle"
    contract.require(_equal(twin, part), equal, f"{frozen}: parts with equal fields are equal.")
    names = [field.name for field in fields(part)] if is_dataclass(part) else [*getattr(part, "__dict__", {})]
    for name in names:
        try:
            setattr(part, name, getattr(part, name))
        except Exception:
            continue
        contract.fail(f"lets its attribute {name} be set", f"{frozen}: it must not change between steps.")


def _equal(part: object, other: object) -> bool:
    try:
        return bool(part == other) and hash(part) == hash(other)
    except Exception:
        return False
