"""Partitions: which parameter groups share a step size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from armijo.errors import ConfigurationError
from armijo.families import is_whole

__all__ = ["ByLabel", "Component", "Partition", "Together"]


@dataclass(frozen=True, slots=True)
class Component:
    """The parameter groups that share one step size.

    Args:
        label: its name, the value of `group["component"]`.
        groups: the indices into `param_groups` of its groups, in order, at least one.
    """

    label: str
    groups: tuple[int, ...]


class Partition(Protocol):
    """From the labels of all parameter groups to the components, in the order of their places."""

    def components(self, labels: Sequence[str]) -> tuple[Component, ...]:
        """Every index of `labels` in exactly one component."""
        ...


def check_components(partition: Partition, components: Any, n: int) -> tuple[Component, ...]:
    """What a partition made of n parameter groups, checked.

    Raises:
        ConfigurationError: a group is in no component or in two, groups or components are out of order, or a label is
            no string or occurs twice.
    """
    kinds = isinstance(components, tuple | list) and all(
        isinstance(each, Component) and isinstance(each.label, str) and each.label and isinstance(each.groups, tuple)
        for each in components
    )
    flat = [index for each in components for index in each.groups] if kinds else []
    if (
        not kinds
        or not all(is_whole(index) for index in flat)
        or sorted(flat) != list(range(n))
        or len({each.label for each in components}) < len(components)
        or any(not each.groups or list(each.groups) != sorted(each.groups) for each in components)
        or [each.groups[0] for each in components] != sorted(each.groups[0] for each in components)
    ):
        raise ConfigurationError(
            f"{partition!r} made {components!r} of {n} parameter groups. It must return a tuple of Component with "
            f"labels of their own; each group, 0..{n - 1}, lies in exactly one, and components and their groups ascend."
        )
    return tuple(components)


@dataclass(frozen=True, slots=True)
class ByLabel:
    """Groups with one label are one component; components stand in the order in which their labels first appear.

    Examples:
        >>> [component.groups for component in ByLabel().components(["head", "body", "head"])]
        [(0, 2), (1,)]
    """

    def components(self, labels: Sequence[str]) -> tuple[Component, ...]:
        """One component for each distinct label."""
        places: dict[str, list[int]] = {}
        for index, label in enumerate(labels):
            places.setdefault(label, []).append(index)
        return tuple(Component(label, tuple(groups)) for label, groups in places.items())


@dataclass(frozen=True, slots=True)
class Together:
    """All groups are one component, whatever their labels: one step size for the whole model.

    Args:
        label: the name of that component in reports.
    """

    label: str = "all"

    def components(self, labels: Sequence[str]) -> tuple[Component, ...]:
        """One component of all groups."""
        return (Component(self.label, tuple(range(len(labels)))),)
