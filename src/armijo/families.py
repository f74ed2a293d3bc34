"""The families of parts: which methods each needs, and the kinds of numbers that parts take."""

from __future__ import annotations

from numbers import Integral, Real

from armijo.errors import ConfigurationError

__all__ = ["check_part", "inherits", "is_number", "is_whole"]

# The class to derive a new member from, and the methods that are called.
_FAMILIES = {
    "direction": (
        "armijo.Direction",
        (
            *("defaults", "validate", "moments", "search_direction", "update", "record_step", "probes"),
            *("past_gradients", "updates_along_search", "kernel"),
        ),
    ),
    "search": (
        "armijo.Search",
        ("initial_step_size", "defaults", "first_step_size", "expected_step_size", "search", "without_search"),
    ),
    "criterion": ("armijo.Criterion", ("defaults", "violation", "remember")),
    "guess": ("armijo.Guess", ("initial_step_size", "defaults", "next", "expected", "remember")),
    "selection": (
        "armijo.Selection",
        ("defaults", "due", "expected_block", "blocks", "remember", "merged", "moved_before"),
    ),
    "merging": ("armijo.Merging", ("defaults", "propose")),
    "partition": ("armijo.Partition", ("components",)),
}


def check_part(family: str, part: object, owner: str) -> None:
    """Check that a part is an instance that has the methods of its family.

    Args:
        family: the name of the family, and of the argument.
        part: the part.
        owner: the class that was given the part.

    Raises:
        ConfigurationError: it is a class, or lacks a method.
    """
    base, methods = _FAMILIES[family]
    if isinstance(part, type):
        raise ConfigurationError(
            f"The {family} of {owner} is the class {part.__name__}; pass an instance: {part.__name__}(...)."
        )
    missing = [method for method in methods if not callable(getattr(part, method, None))]
    if missing:
        raise ConfigurationError(
            f"The {family} of {owner} is {part!r}, which has no method {', '.join(missing)}. Derive its class from "
            f"{base}, which has defaults for what a simple part does not need."
        )


def inherits(part: object, owner: type, *methods: str) -> bool:
    """Whether the part takes all of the methods as `owner` has them: what `owner` says of them holds for it too."""
    return all(getattr(type(part), method) is getattr(owner, method) for method in methods)


def is_number(value: object) -> bool:
    """Whether the value is a real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether the value is an integer; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)
