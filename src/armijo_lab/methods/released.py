"""PLASLS with the order of updates of its released code, which a study compares with the paper's equation.

In the cyclic phase of the released code, components are updated one after the other while the search runs. When
component l is searched, the components before it have already moved along their momentum, untested, and the trials are
compared with the loss from before they moved. If those moves raise the loss of the batch, no step size can pass.
`armijo.paper.PLASLS` searches first, from w_k, as in the paper's equation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import armijo.paper
from armijo import Status

__all__ = ["ReleasedOrder"]


class ReleasedOrder(armijo.paper.PLASLS):
    """`armijo.paper.PLASLS`, but each search starts after the components before the searched one have moved.

    Attributes:
        moved_loss: After a search that failed: the loss at its starting point, with the components before the searched
            one moved and the searched one at η = 0. The search compared its trials with f_k instead. `None` otherwise.
    """

    moved_loss: float | None = None

    def _search_block(
        self, moves: Sequence[Any], places: Sequence[int], objective: Any, interrupts: Any, sign: float
    ) -> None:
        first = places[0]
        self.moved_loss = None
        # In a joint step the released code moves everything at once, as the library does.
        if len(places) > 1 or first == 0:
            super()._search_block(moves, places, objective, interrupts, sign)
            return
        groups = [(move.step_size, group) for move in moves[:first] for group in move.groups if group.parameters]
        parameters = [parameter for _, group in groups for parameter in group.parameters]
        start = [parameter.detach().clone() for parameter in parameters]
        try:
            for step_size, group in groups:
                torch._foreach_add_(group.parameters, self._applied(group), alpha=-step_size)
            super()._search_block(moves, places, objective, interrupts, sign)
            if moves[first].outcome.status is Status.EXHAUSTED:
                self.moved_loss = objective.trial(interrupts.let_through)
        finally:
            if parameters:
                torch._foreach_copy_(parameters, start)

    def _applied(self, group: Any) -> list[torch.Tensor]:
        """Return the direction that the commit will apply, computed on copies of the moments."""
        states = [{key: value.clone() for key, value in state.items()} for state in group.states]
        torch._foreach_add_([state["step"] for state in states], 1)
        return self.direction.commit(group.grads, states, [d.clone() for d in group.directions], group.group)
