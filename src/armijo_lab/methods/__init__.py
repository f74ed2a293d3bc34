"""Optimizers by name: `parse("plasls:split=projection")` reads a name, and its `build` makes what takes the steps.

`base` defines a step, `row` describes an optimizer, and `parsing` reads its name and arguments. The optimizers are in
`ours` (armijo's line searches), `torch_optimizers`, and `others` (optimizers from other packages). Each of these three
modules ends in a tuple of rows. To add an optimizer, add a row, and a stepper if it steps in its own way.

Importing this package does not import torch: the command line needs the names to print its help.
"""

from armijo_lab.methods.base import FAILURES, Loss, Stepper, StepResult
from armijo_lab.methods.parsing import DEFAULT, NAMES, OURS, ROWS, Method, parse
from armijo_lab.methods.row import MethodRow, Package

__all__ = [
    "DEFAULT",
    "FAILURES",
    "NAMES",
    "OURS",
    "ROWS",
    "Loss",
    "Method",
    "MethodRow",
    "Package",
    "StepResult",
    "Stepper",
    "parse",
]
