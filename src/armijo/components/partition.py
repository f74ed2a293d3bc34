"""Partitions: which parameter groups share a step size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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
