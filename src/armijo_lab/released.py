"""PLASLS as its released code orders it: the thing under study where one asks what makes components freeze.

In the cyclic phase of the published code the components move one after the other while the search runs. So component l
is searched with the components before it already moved, by their momentum and not yet tested, against the loss from
before they moved; where those moves raise the loss of the batch, no step size can pass. `armijo.paper.PLASLS` searches
first, from w_k, as the paper's equation says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import armijo.paper
from armijo import Status

__all__ = ["ReleasedOrder"]


class ReleasedOrder(armijo.paper.PLASLS):
    """`armijo.paper.PLASLS`, but with the components before the searched one already moved while it is searched.

    Attributes:
        moved_loss: After a search that failed, the loss where it began: the components before the searched one moved,
            this one at η = 0. It is what the line begins with, and f_k is what it was held against. `None` otherwise.
    """

    moved_loss: float | None = None

    def _search_block(
        self, moves: Sequence[Any], places: Sequence[int], objective: Any, interrupts: Any, sign: float
    ) -> None:
        first = places[0]
        self.moved_loss = None
        # The joint steps of the released code move everything at once, as ours do.
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
        """What the commit will move along, from copies of the moments."""
        states = [{key: value.clone() for key, value in state.items()} for state in group.states]
        torch._foreach_add_([state["step"] for state in states], 1)
        return self.direction.commit(group.grads, states, [d.clone() for d in group.directions], group.group)
