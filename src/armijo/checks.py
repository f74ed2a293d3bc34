"""Checks of what an optimizer is given: parts, parameters, groups, and saved states.

Every check runs before anything is changed, and its error says what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from numbers import Real
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from armijo.directions.base import Direction
from armijo.errors import ConfigurationError
from armijo.search.memory import plain_value

__all__ = [
    "FORMAT",
    "SHARED",
    "check_group",
    "check_maximize",
    "check_moments",
    "check_params",
    "check_state",
    "check_values",
]

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


def check_params(params: object, name: str) -> None:
    """Check what a constructor was given as `params`.

    Raises:
        ConfigurationError: it is a module, or a list that holds an iterator; torch's errors for both say little.
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
        group: the group, complete.
        first: the optimizer's first group, which may be the same.
        direction: checks its own hyperparameters.
        memory: what the parts remember, with its first values.

    Raises:
        ConfigurationError: a value is out of its range, a parameter is complex or occurs twice, or the group would
            climb where the first descends.
    """
    check_values(group, direction, memory)
    for parameter in group["params"]:
        if parameter.is_complex():
            raise ConfigurationError(
                "armijo does not optimize complex parameters. Hold the real and imaginary parts as a real "
                "parameter and combine them with torch.view_as_complex in the forward pass."
            )
    names = group.get("param_names", range(len(group["params"])))
    seen: dict[int, object] = {}
    for name, parameter in zip(names, group["params"], strict=True):
        if id(parameter) in seen:
            raise ConfigurationError(
                f"A group holds one parameter twice, as {seen[id(parameter)]} and {name}, and would move it twice. "
                "Pass each parameter once; model.parameters() leaves out what is tied."
            )
        seen[id(parameter)] = name
    check_maximize(group, first)


def check_maximize(group: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Check that a group climbs or descends as the first one does.

    Raises:
        ConfigurationError: it does not, or `maximize` is no bool.
    """
    if not isinstance(group["maximize"], bool):
        raise ConfigurationError(f"maximize is {group['maximize']!r}; it must be True or False.")
    if group["maximize"] != first["maximize"]:
        raise ConfigurationError(
            "One group maximizes and another minimizes, but a line search judges one loss. Use an optimizer for "
            "each, or negate the part of the loss that is to grow."
        )


def check_moments(direction: Direction, parameters: Sequence[torch.Tensor]) -> None:
    """Check the fresh moments of a group's smallest parameter.

    Raises:
        ConfigurationError: they are not tensors of the parameter's shape, by names other than "step".
    """
    shaped = [parameter for parameter in parameters if not is_lazy(parameter)]
    if not shaped:
        return
    parameter = min(shaped, key=lambda each: each.numel())
    moments = direction.moments(parameter)
    if not isinstance(moments, Mapping) or not all(
        isinstance(name, str)
        and name != "step"
        and isinstance(moment, torch.Tensor)
        and moment.shape == parameter.shape
        for name, moment in moments.items()
    ):
        raise ConfigurationError(
            f"{direction!r}.moments returned {moments!r} for a parameter of the shape {tuple(parameter.shape)}. It "
            'must return a dict of tensors of that shape, by names other than "step", which counts steps.'
        )


def check_values(group: Mapping[str, Any], direction: Direction, memory: Mapping[str, Any]) -> None:
    """Check the values of a parameter group that users and schedulers may change between steps.

    Args:
        group: the group, complete.
        direction: checks its own hyperparameters.
        memory: what the parts remember, with its first values.

    Raises:
        ConfigurationError: one is out of its range.
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
    alike: Iterable[str],
    name: str,
) -> None:
    """Check a state, as `state_dict` returns it, before it is loaded.

    Args:
        saved: the state.
        groups: the optimizer's own groups.
        needed: the keys that every group must have.
        direction: knows the moments of a parameter.
        memory: what the parts remember, with its first values.
        alike: what of it is one for the optimizer.
        name: the optimizer's name, for errors.

    Raises:
        ConfigurationError: it is damaged, of a later version, or that of another optimizer or other parameters.
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
            for key in alike:
                if repr(group.get(key)) != repr(saved_groups[0].get(key)):  # NaN equals itself here
                    raise ConfigurationError(f"{key} is {group.get(key)!r}; it must be alike in every group.")
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
        expected = {"step", *direction.moments(parameter.new_empty([0] * parameter.ndim))}
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
            # Infinity is legal: the square of a large gradient overflows. Sharded tensors would need all ranks.
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
