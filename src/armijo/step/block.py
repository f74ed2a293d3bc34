"""A block: the components that one search moves together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from armijo.search.values import Derivatives, Line, Status
from armijo.step.lines import ComponentLine, Moves

__all__ = ["Block", "Decision"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about one component.

    Args:
        step_size: η to keep after the step.
        applied: η to move with; 0 to stay.
        status: how its search ended.
        trials: how many trials its searches took.
        trial_loss: the loss at the accepted step size, if one was accepted.
    """

    step_size: float
    applied: float
    status: Status
    trials: int = 0
    trial_loss: float | None = None

    def failed_searches(self, before: int) -> int:
        """How many searches of the component have failed since the last one that did not."""
        if self.status is Status.ACCEPTED:
            return 0
        return before + (self.trials > 0 and self.applied == 0)


@dataclass(frozen=True, slots=True)
class Block:
    """Components that move together: component l by η·r_l·d_l.

    Args:
        members: the components, by place.
        ratios: r_l in [0, 1], the component's first step size in units of the largest one, by place.
        first: η to try first, the largest first step size of the components.
        line: the line to search, with the slope Σ_l r_l·S_l.
        reach: the largest η that the parameters' number formats can hold.
    """

    members: Mapping[int, ComponentLine]
    ratios: Mapping[int, float]
    first: float
    line: Line
    reach: float

    @classmethod
    def of(cls, lines: Sequence[ComponentLine], first_step_sizes: Mapping[int, float]) -> Block:
        """The block of some places, each with its first step size; at least one is not 0."""
        members = {place: lines[place] for place in first_step_sizes}
        first = max(first_step_sizes.values())
        ratios = {place: step_size / first for place, step_size in first_step_sizes.items()}
        reach = min(each.reach for each in members.values())
        one = next(iter(members.values())).line
        caps = [each.cap / ratios[place] for place, each in members.items() if ratios[place] > 0]
        line = replace(
            one,
            slope=sum((ratios[place] * each.line.slope for place, each in members.items()), 0.0),
            # Dividing by the ratio may leave a cap one rounding error below the first step size.
            longest=min(reach, max(first, min(caps))),
            derivatives=Derivatives(
                {name: sum((each.line.derivatives[name] for each in members.values()), 0.0) for name in one.derivatives}
            ),
        )
        return cls(members, ratios, first, line, reach)

    def step_sizes(self, step_size: float) -> dict[int, float]:
        """The step size of each component, by place."""
        # The ratios respect the caps already, up to a rounding error.
        return {place: min(self.ratios[place] * step_size, each.cap) for place, each in self.members.items()}

    def moves(self, step_size: float, along: str | None) -> Moves:
        """How far and along what each component's groups move."""
        sizes = self.step_sizes(step_size) if along is None else dict.fromkeys(self.members, step_size)
        return {
            key: move for place, each in self.members.items() for key, move in each.moves(sizes[place], along).items()
        }
