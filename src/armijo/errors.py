"""Every error that armijo raises on purpose.

Each is a sentence that names what was wrong and what to do instead. All derive from `ArmijoError`, and from the
built-in that a torch user would expect to catch.
"""

from __future__ import annotations

__all__ = [
    "ArmijoError",
    "ClosureContractError",
    "ConfigurationError",
    "MissingClosureError",
    "RankError",
    "SplitError",
]


class ArmijoError(Exception):
    """Base of all errors raised by armijo."""


class ConfigurationError(ArmijoError, ValueError):
    """A constructor argument or a parameter group cannot be used as given."""


class SplitError(ArmijoError, ValueError):
    """A model cannot be split into components in the way that was asked for."""


class MissingClosureError(ArmijoError, TypeError):
    """`step()` was called without a way to evaluate the loss."""


class ClosureContractError(ArmijoError, RuntimeError):
    """A closure did something other than return the scalar loss at the current parameters."""


class RankError(ArmijoError, RuntimeError):
    """Another rank of a distributed run failed in this step, or cannot be reached; nothing was changed here."""
