"""The description of one optimizer, and the parsers of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from armijo_lab.methods.base import Stepper

__all__ = [
    "Build",
    "Keys",
    "MethodRow",
    "Package",
    "Parser",
    "Value",
    "choice",
    "fraction",
    "integer",
    "number",
    "positive",
    "trainable_parameters",
]

Value = str | float | int
"""The value of an argument."""

Parser = Callable[[str], Value]
"""Reads the text of an argument; its `ValueError` completes the sentence "the argument must be …"."""

Keys = Mapping[str, Parser]
"""The arguments that an optimizer takes, by name, in the order in which error messages list them."""

Build = Callable[["nn.Module", dict[str, Any], int], "Stepper"]
"""Builds a stepper from the model, the settings (which it may change) and the number of steps the schedule spans."""


class Package(NamedTuple):
    """The package that an optimizer comes from.

    Attributes:
        module: What is imported.
        distribution: What is installed with pip.
    """

    module: str
    distribution: str


@dataclass(frozen=True)
class MethodRow:
    """Everything the laboratory knows about one optimizer.

    Attributes:
        name: What the user types.
        keys: A parser for each argument.
        build: Builds the stepper. Import torch and the package in it, not at the top of the module. It raises
            `BadInputError` with the reason if the model or a setting does not fit.
        defaults: The values of arguments that the user does not give; empty if the library's defaults apply.
        package: The package that the optimizer needs besides torch and armijo; `None` for none.
        searches: Whether it is one of armijo's line searches.
        resumable: Whether a checkpoint of `Stepper.state_dict` holds the optimizer's whole state; false if that is not
            established.
        distributed: Whether ranks that share a batch take the same step. An optimizer that reads the loss of its own
            rank's rows does not.
    """

    name: str
    keys: Keys
    build: Build
    defaults: Mapping[str, Value] = field(default_factory=dict)
    package: Package | None = None
    searches: bool = False
    resumable: bool = True
    distributed: bool = True


def _read_float(text: str) -> float:
    """Return the number, or NaN if the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def number(low: float, high: float = math.inf) -> Parser:
    """Make a parser of finite numbers between `low` and `high`, both included."""

    def parse_number(text: str) -> float:
        value = _read_float(text)
        if not (low <= value <= high and math.isfinite(value)):
            limit = "" if high == math.inf else f" and at most {high:g}"
            raise ValueError(f"a number of at least {low:g}{limit}")
        return value

    return parse_number


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    value = _read_float(text)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError("a number above 0")
    return value


def fraction(text: str) -> float:
    """Parse a number of at least 0 and below 1."""
    value = _read_float(text)
    if not 0 <= value < 1:
        raise ValueError("a number of at least 0 and below 1")
    return value


def integer(low: int) -> Callable[[str], int]:
    """Make a parser of whole numbers of at least `low`."""

    def parse_integer(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise ValueError(f"a whole number of at least {low}")
        return int(text)

    return parse_integer


def choice(*choices: str) -> Parser:
    """Make a parser that accepts only the given words, at least two."""

    def parse_choice(text: str) -> str:
        if text not in choices:
            raise ValueError(" or ".join((", ".join(choices[:-1]), choices[-1])))
        return text

    return parse_choice


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the model that require gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
