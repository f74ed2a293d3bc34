"""Guards against a closure that breaks its contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from armijo.errors import ClosureContractError

__all__ = ["WriteGuard", "parameters_of"]


def parameters_of(groups: Iterable[Mapping[str, Any]]) -> list[torch.Tensor]:
    """The parameters of all groups, in order."""
    return [parameter for group in groups for parameter in group["params"]]


class WriteGuard:
    """Notices writes to parameters and gradients, by torch's counters of in-place writes.

    Args:
        parameters: the parameters to watch, and their gradients.
    """

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self._parameters = parameters
        self._versions = self._current_versions()

    @property
    def written(self) -> bool:
        """Whether anything was written since this guard was made."""
        return self._versions != self._current_versions()

    def check(self) -> None:
        """Raise if a closure has written anything.

        Raises:
            ClosureContractError: parameters or gradients were changed.
        """
        versions = self._current_versions()
        if [parameter for parameter, _ in self._versions] != [parameter for parameter, _ in versions]:
            raise ClosureContractError(
                "The closure changed the parameters. It must only evaluate the loss at the parameters as they are: "
                "move updates and weight clipping behind optimizer.step(), and build embeddings without max_norm."
            )
        if self._versions != versions:
            raise ClosureContractError(
                "The closure changed the gradients, from which the step is to be taken: leave out zero_grad() and "
                "backward(), step() runs both. optimizer.step(lambda: criterion(model(inputs), labels))."
            )

    def _current_versions(self) -> list[tuple[int, int | None]]:
        return [(p._version, None if p.grad is None else p.grad._version) for p in self._parameters]
