"""Checks of what an optimizer is given: parts, parameters, groups, and saved states.

Every check runs before anything is changed, and its error says what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from numbers import Real
from typing import Any

import torch

from armijo.directions.base import Direction
from armijo.errors import ConfigurationError
from armijo.search.memory import plain_value

__all__ = ["FORMAT", "SHARED", "check_group", "check_params", "check_parts", "check_state", "check_values"]

FORMAT = 2
"""The format of a saved state. It counts up when states of the version before can no longer be read."""

SHARED = ("format", "steps", "forwards")
"""Optimizer-wide numbers, alike in every group: `state` and `param_groups` are all that checkpoints, deep copies and
Accelerate's `prepare` carry."""

# Name, lower bound, and whether the bound itself is excluded.
_RANGES = (
    ("lr", 0.0, False),
    ("weight_decay", 0.0, False),
    ("step_size", 0.0, True),
    ("max_step_size", 0.0, True),
)


# The methods of each family of parts, and the class to derive a new member from.
_FAMILIES = {
    "direction": (
        "armijo.Direction",
        ("defaults", "validate", "moments", "search_direction", "update", "record_step", "probes"),
    ),
    "search": ("armijo.Search", ("initial_step_size", "defaults", "first_step_size", "search")),
    "selection": ("armijo.Selection", ("defaults", "blocks", "remember", "merged", "moved_before")),
    "merging": ("armijo.Merging", ("defaults", "propose")),
    "partition": ("armijo.Partition", ("components",)),
}


def check_parts(parts: Mapping[str, object]) -> None:
    """Check that each part is an instance that has the methods of its family.

    Args:
        parts: the parts by their families' names.

    Raises:
        ConfigurationError: one is a class, or lacks a method.
    """
    for family, part in parts.items():
        base, methods = _FAMILIES[family]
        if isinstance(part, type):
            raise ConfigurationError(f"{family} is the class {part.__name__}; pass an instance: {part.__name__}(...).")
        missing = [method for method in methods if not callable(getattr(part, method, None))]
        if missing:
            raise ConfigurationError(
                f"{family} is {part!r}, which has no method {', '.join(missing)}. Derive its class from {base}, which "
                "has defaults for what a simple part does not need."
            )


def check_params(params: object, name: str) -> None:
    """Check what a constructor was given as `params`.

    Raises:
        ConfigurationError: It is a module, or a list that holds an iterator: two slips that torch explains badly.
    """
    if isinstance(params, torch.nn.Module):
        raise ConfigurationError(
            f"{name} takes parameters, and was given a module. Pass model.parameters(), or, for a step size per "
            'component, armijo.split(model, by="layer").'
        )
    if isinstance(params, list | tuple) and any(isinstance(item, Iterator) for item in params):
        raise ConfigurationError(
            f"{name} was given a list that holds an iterator, as in [model.parameters()]. Pass model.parameters() "
            'itself, or a group: [{"params": model.parameters()}].'
        )


def check_group(
    group: Mapping[str, Any], first: Mapping[str, Any], direction: Direction, memory: Mapping[str, Any]
) -> None:
    """Check the values of a parameter group.

    Args:
        group: The group, complete.
        first: The optimizer's first group, which may be the same.
        direction: Checks its own hyperparameters.
        memory: What the parts remember, with its first values.

    Raises:
        ConfigurationError: A value is out of its range, a parameter is complex, or the group would climb where the
            first descends.
    """
    check_values(group, direction, memory)
    for parameter in group["params"]:
        if parameter.is_complex():
            raise ConfigurationError(
                "armijo does not optimize complex parameters. Hold the real and imaginary parts as a real "
                "parameter and combine them with torch.view_as_complex in the forward pass."
            )
    if not isinstance(group["maximize"], bool):
        raise ConfigurationError(f"maximize is {group['maximize']!r}; it must be True or False.")
    if group["maximize"] != first["maximize"]:
        raise ConfigurationError(
            "One group maximizes and another minimizes, but a line search judges one loss. Use an optimizer for "
            "each, or negate the part of the loss that is to grow."
        )


def check_values(group: Mapping[str, Any], direction: Direction, memory: Mapping[str, Any]) -> None:
    """Check the values of a parameter group that users and schedulers may change between steps.

    Args:
        group: The group, complete.
        direction: Checks its own hyperparameters.
        memory: What the parts remember, with its first values.

    Raises:
        ConfigurationError: One is out of its range.
    """
    if not isinstance(group["component"], str) or not group["component"]:
        raise ConfigurationError(
            f'A group\'s "component" is {group["component"]!r}; it must be a non-empty string, the label of the '
            "step size that the group shares."
        )
    for key, low, strict in _RANGES:
        value = _number(group[key])
        if value is None or math.isnan(value) or value < low or (strict and value == low):
            bound = "more than" if strict else "at least"
            freeze = " To freeze a group, set its lr to 0." if strict else ""
            raise ConfigurationError(f"{key} is {group[key]}; it must be {bound} {low:g}.{freeze}")
        if key != "max_step_size" and math.isinf(value):
            raise ConfigurationError(f"{key} is infinite; it must be a finite number.")
    for key in memory:
        plain_value(key, group[key], memory[key])
    direction.validate(group)


def check_state(
    saved: object,
    groups: Sequence[Mapping[str, Any]],
    needed: Set[str],
    direction: Direction,
    memory: Mapping[str, Any],
    name: str,
) -> None:
    """Check a state, as `state_dict` returns it, before it is loaded.

    Args:
        saved: The state.
        groups: The optimizer's own groups.
        needed: The keys that every group must have.
        direction: Knows the moments of a parameter.
        memory: What the parts remember, with its first values.
        name: The optimizer's name, for errors.

    Raises:
        ConfigurationError: It is damaged, of a later version, or that of another optimizer or other parameters.
    """
    if not (
        isinstance(saved, Mapping)
        and isinstance(saved.get("state"), Mapping)
        and isinstance(saved.get("param_groups"), Sequence)
        and all(isinstance(group, Mapping) and _are_keys(group.get("params")) for group in saved["param_groups"])
    ):
        raise ConfigurationError(
            f"This is not a state of {name}: it needs the keys 'state' and 'param_groups' that state_dict() writes. "
            "Load what optimizer.state_dict() returned, or an older checkpoint if this one is damaged."
        )
    saved_groups = saved["param_groups"]
    formats = (group.get("format", FORMAT) for group in saved_groups)
    other = next((number for number in formats if not isinstance(number, int) or number != FORMAT), None)
    if other is not None:
        raise ConfigurationError(
            f"This state has the format {other}, and this version of armijo reads the format {FORMAT}. Load it with "
            "the version of armijo that wrote it."
        )
    for group in saved_groups:
        missing = sorted(needed - group.keys())
        if missing:
            raise ConfigurationError(
                f"This is not a state of {name}: its groups lack {', '.join(missing)}. Load it into the kind of "
                "optimizer that it was saved from."
            )
    sizes, own_sizes = ([len(group["params"]) for group in each] for each in (saved_groups, groups))
    if sizes != own_sizes:
        raise ConfigurationError(
            f"This state has {_sizes(sizes)}, and this optimizer {_sizes(own_sizes)}. Build the optimizer over the "
            "same parameters, split in the same way, as the one that was saved."
        )
    try:
        for group, own in zip(saved_groups, groups, strict=True):
            check_group({**memory, **group, "params": own["params"]}, saved_groups[0], direction, memory)
            for key in SHARED:
                if not isinstance(group[key], int) or group[key] < 0 or group[key] != saved_groups[0][key]:
                    raise ConfigurationError(f"{key} is {group[key]!r}; it must be a count, alike in every group.")
        _check_moments(saved["state"], saved_groups, groups, direction, name)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # whatever a value of the wrong kind raises
        reason = str(error) if isinstance(error, ConfigurationError) else f"{type(error).__name__}, {error}."
        raise ConfigurationError(
            f"The state cannot be loaded into this {name}, which is as it was: {reason} If the file is damaged, load "
            "an older one."
        ) from error


def _check_moments(
    state: Mapping[Any, Any],
    saved_groups: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    direction: Direction,
    name: str,
) -> None:
    parameters = {
        key: parameter
        for group, own in zip(saved_groups, groups, strict=True)
        for key, parameter in zip(group["params"], own["params"], strict=True)
    }
    for key, entry in state.items():
        if key not in parameters:
            raise ConfigurationError(f"it holds moments of a parameter {key!r} that is in none of its groups.")
        parameter = parameters[key]
        expected = {"step", *direction.moments(parameter.new_empty(0))}
        if not isinstance(entry, Mapping) or entry.keys() != expected:
            kept = ", ".join(sorted(map(str, entry))) if isinstance(entry, Mapping) else type(entry).__name__
            raise ConfigurationError(
                f"for parameter {key} it holds {kept or 'nothing'}, where {name} keeps {', '.join(sorted(expected))}."
            )
        step = _number(entry["step"])
        if step is None or not 0 <= step < math.inf:
            raise ConfigurationError(f"the step count of parameter {key} is {entry['step']!r}.")
        for moment in expected - {"step"}:
            tensor = entry[moment]
            if not isinstance(tensor, torch.Tensor) or tensor.shape != parameter.shape:
                shape = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise ConfigurationError(
                    f"{moment} of parameter {key} has the shape {shape}, and the parameter {tuple(parameter.shape)}."
                )
            if not tensor.is_floating_point():
                raise ConfigurationError(f"{moment} of parameter {key} holds no real numbers but {tensor.dtype}.")
            # Infinity is sound: the square of a large gradient overflows. Sharded tensors would ask all ranks.
            if type(tensor) is torch.Tensor and not tensor.is_meta and bool(tensor.isnan().any()):
                raise ConfigurationError(f"{moment} of parameter {key} holds NaN.")


def _number(value: Any) -> float | None:
    """A number, or a tensor of one element, as a float; None for everything else."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, Real) else None  # NumPy's numbers are real ones too


def _are_keys(params: object) -> bool:
    # Distributed checkpoints name parameters, others number them.
    return isinstance(params, Sequence) and all(isinstance(key, int | str) for key in params)


def _sizes(sizes: Sequence[int]) -> str:
    shown = ", ".join(map(str, sizes[:8])) + (", …" if len(sizes) > 8 else "")
    return f"{len(sizes)} group{'s' if len(sizes) != 1 else ''} of {shown} parameters"
