"""Reads `NAME:key=value,…` and builds the optimizer it describes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from armijo_lab.errors import BadInputError
from armijo_lab.methods import others, ours, torch_optimizers
from armijo_lab.methods.row import MethodRow, Value

if TYPE_CHECKING:
    from torch import nn

    from armijo_lab.methods.base import Stepper

__all__ = ["DEFAULT", "NAMES", "OURS", "ROWS", "Method", "parse"]

ROWS: Mapping[str, MethodRow] = {
    row.name: row for row in (*ours.ROWS, *torch_optimizers.ROWS, *ours.PAPER_ROWS, *others.ROWS)
}
"""Every optimizer by its name."""
NAMES: tuple[str, ...] = tuple(ROWS)
"""The names that `--optimizer` takes."""
OURS: tuple[str, ...] = tuple(name for name, row in ROWS.items() if row.searches)
"""The names of armijo's line searches."""
DEFAULT = "adamsls"
"""The optimizer that trains if none is given; docs/choosing.md explains the choice."""


@dataclass(frozen=True)
class Method:
    """An optimizer with its arguments, ready to be built over a model.

    Attributes:
        text: What the user wrote, as in `adam:lr=2e-5,schedule=cosine`.
        name: The name in it, one of `NAMES`.
        arguments: The parsed arguments in it, without defaults.
    """

    text: str
    name: str
    arguments: Mapping[str, Value]

    @property
    def row(self) -> MethodRow:
        """The description of the optimizer."""
        return ROWS[self.name]

    @property
    def searches(self) -> bool:
        """Whether it is one of armijo's line searches."""
        return self.row.searches

    @property
    def resumable(self) -> bool:
        """Whether a checkpoint holds its whole state."""
        return self.row.resumable

    @property
    def distributed(self) -> bool:
        """Whether ranks that share a batch take the same step."""
        return self.row.distributed

    @property
    def settings(self) -> dict[str, Value]:
        """The arguments with the row's defaults; a line search's other settings are the library's defaults."""
        settings = {**self.row.defaults, **self.arguments}
        # A constant learning rate has a warm-up only if one is given.
        if settings.get("schedule") == "constant" and "warmup" not in self.arguments:
            settings["warmup"] = 0.0
        return settings

    @property
    def shown(self) -> dict[str, Value]:
        """The arguments to display: those given, and always the learning rate and its schedule if there are any."""
        always = () if self.searches else ("lr", "schedule")
        return {key: value for key, value in self.settings.items() if key in always or key in self.arguments}

    def build(self, model: nn.Module, total_steps: int) -> Stepper:
        """Build the optimizer over the model's trainable parameters, with its schedule.

        Args:
            model: The model to train.
            total_steps: The number of steps that the schedule spans, ≥ 1.

        Raises:
            BadInputError: The model cannot be split as asked, the optimizer refuses an argument, or the package that
                it comes from is not installed.
        """
        package = self.row.package
        if package is not None and importlib.util.find_spec(package.module) is None:
            raise BadInputError(
                f"The optimizer {self.name} needs the package {package.distribution}, which is not installed; install "
                f"it with: pip install {package.distribution}, or all such packages with: pip install 'armijo[rivals]'."
            )
        try:
            return self.row.build(model, self.settings, total_steps)
        except BadInputError as error:
            raise BadInputError(f"The optimizer {self.text!r} cannot be built: {error}") from error


def parse(text: str) -> Method:
    """Parse `NAME` or `NAME:key=value,key=value`.

    The modules `ours`, `torch_optimizers` and `others` document the arguments of each optimizer.

    Args:
        text: One of `NAMES`, and optionally a colon and arguments. Case and spaces around the name do not matter.

    Raises:
        BadInputError: The name, a key or a value is not valid; the message lists what is.

    Example:
        >>> parse("adam:lr=1e-4").settings
        {'lr': 0.0001, 'schedule': 'cosine', 'weight_decay': 0.0, 'warmup': 0.1}
    """
    name, _, rest = text.partition(":")
    name = name.strip().lower()
    if name not in ROWS:
        raise BadInputError(f"There is no optimizer {name!r}; choose one of {', '.join(NAMES)}.")
    keys = ROWS[name].keys
    arguments: dict[str, Value] = {}
    for item in rest.split(",") if rest.strip() else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise BadInputError(
                f"The optimizer {text!r} cannot be read at {item!r}; write NAME:key=value,key=value, "
                f"where {name} takes the keys {', '.join(keys)}."
            )
        if key not in keys:
            raise BadInputError(f"The optimizer {name} takes no {key!r}; it takes {', '.join(keys)}.")
        if key in arguments:
            raise BadInputError(f"The optimizer {text!r} gives {key!r} twice; give it once.")
        try:
            arguments[key] = keys[key](value)
        except ValueError as error:
            raise BadInputError(f"In the optimizer {text!r}, {key} must be {error}, not {value!r}.") from None
    if "n_groups" in arguments and arguments.get("split", "layer") != "layer":
        raise BadInputError(
            f"The optimizer {text!r} gives n_groups, which counts groups of layers; leave it out, or use split=layer."
        )
    return Method(text, name, arguments)
