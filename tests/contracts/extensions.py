"""Parts that a user might write, each one class: they show what the families can hold, and that it works.

None of them is part of the library. `test_extensions.py` uses them; the contracts of their families test them too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from armijo import (
    Backtracking,
    Criterion,
    Direction,
    Evaluate,
    Guess,
    Line,
    Memory,
    Outcome,
    Search,
    SearchResult,
    Selection,
    Trial,
)

Tensors = list[torch.Tensor]
States = list[dict[str, Any]]


# ----------------------------------------------------------------------------------------------------------- directions


@dataclass(frozen=True)
class HeavyBall(Direction):
    """m ← β·m + g; search along it and apply it. It need not descend."""

    beta: float = 0.9

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"momentum": torch.zeros_like(parameter)}

    def search_direction(self, grads: Tensors, states: States, group: Mapping[str, Any]) -> Tensors:
        return [self.beta * state["momentum"] + grad for grad, state in zip(grads, states, strict=True)]

    def update(self, grads: Tensors, states: States, scratch: Tensors, group: Mapping[str, Any]) -> Tensors:
        for grad, state in zip(grads, states, strict=True):
            state["momentum"].mul_(self.beta).add_(grad)
        return [state["momentum"] for state in states]


@dataclass(frozen=True)
class Lion(Direction):
    """The sign of an interpolated momentum (arXiv 2302.06675). Search along the gradient's sign, which descends."""

    betas: tuple[float, float] = (0.9, 0.99)

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"exp_avg": torch.zeros_like(parameter)}

    def search_direction(self, grads: Tensors, states: States, group: Mapping[str, Any]) -> Tensors:
        return [grad.sign() for grad in grads]

    def update(self, grads: Tensors, states: States, scratch: Tensors, group: Mapping[str, Any]) -> Tensors:
        updates = []
        for grad, state in zip(grads, states, strict=True):
            updates.append(torch.lerp(state["exp_avg"], grad, 1 - self.betas[0]).sign())
            state["exp_avg"].lerp_(grad, 1 - self.betas[1])
        return updates


@dataclass(frozen=True)
class AdaBelief(Direction):
    """Adam with the variance of the gradient in place of its second moment (arXiv 2010.07468)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"exp_avg": torch.zeros_like(parameter), "exp_avg_var": torch.zeros_like(parameter)}

    def _moments(self, grad: torch.Tensor, state: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        mean = torch.lerp(state["exp_avg"], grad, 1 - self.betas[0])
        return mean, torch.lerp(state["exp_avg_var"], (grad - mean) ** 2 + self.eps, 1 - self.betas[1])

    def search_direction(self, grads: Tensors, states: States, group: Mapping[str, Any]) -> Tensors:
        found = []
        for grad, state in zip(grads, states, strict=True):
            variance = self._moments(grad, state)[1] / (1 - self.betas[1] ** (float(state["step"]) + 1))
            found.append(grad / (variance.sqrt() + self.eps))
        return found

    def update(self, grads: Tensors, states: States, scratch: Tensors, group: Mapping[str, Any]) -> Tensors:
        updates = []
        for grad, state in zip(grads, states, strict=True):
            mean, variance = self._moments(grad, state)
            state["exp_avg"].copy_(mean)
            state["exp_avg_var"].copy_(variance)
            t = float(state["step"])
            denominator = (variance / (1 - self.betas[1] ** t)).sqrt() + self.eps
            updates.append(mean / (1 - self.betas[0] ** t) / denominator)
        return updates


# --------------------------------------------------------------------------------------------------- parts with memory


@dataclass(frozen=True)
class LargestOfTheLast(Criterion):
    """The decrease is measured from the largest of the last losses (Grippo, Lampariello, Lucidi 1986): a list."""

    c: float = 0.1
    window: int = 5

    def defaults(self) -> Memory:
        return {"last_losses": []}

    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        reference = max([line.loss, *memory["last_losses"]])
        excess = trial.loss - (reference - self.c * trial.step_size * line.slope)
        return math.inf if math.isnan(excess) else max(0.0, excess)

    def remember(self, line: Line, trial: Trial | None, memory: Memory) -> None:
        memory["last_losses"] = [*memory["last_losses"], line.loss][-self.window :]


@dataclass(frozen=True)
class BarzilaiBorwein(Guess):
    """η = ⟨s, s⟩/⟨s, y⟩ from numbers alone: η_k²·S_k/(η_k·S_k - ⟨g_{k+1}, v⟩) with the last step v = -s = η_k·g_k.

    Needs `KeepLastStep(GradientDirection())`, with lr = 1.
    """

    initial: float = 0.1
    largest: float = 10.0

    def initial_step_size(self) -> float:
        return self.initial

    def defaults(self) -> Memory:
        return {"last_slope": 0.0}

    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        promised = step_size * memory["last_slope"]
        change = promised - line.derivatives["last_step"]
        guess = step_size * promised / change if change > 0 else step_size
        memory["last_slope"] = line.slope
        return min(max(guess, 0.1 * step_size), 10 * step_size, self.largest)


@dataclass(frozen=True)
class LearnedRatios(Guess):
    """A component's step size grows while the new batch still descends along its last step, and shrinks otherwise.

    ⟨g_{k+1}, v_k⟩/(η_k·⟨g_k, d_k⟩) needs no forward pass; with `Jointly` the step sizes keep these ratios.
    """

    initial: float = 0.1
    rate: float = 0.1

    def initial_step_size(self) -> float:
        return self.initial

    def defaults(self) -> Memory:
        return {"slope_before": 0.0}

    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        promised, memory["slope_before"] = step_size * memory["slope_before"], line.slope
        if promised <= 0:
            return step_size
        kept = max(-1.0, min(1.0, line.derivatives["last_step"] / promised))
        return step_size * math.exp(self.rate * kept)


@dataclass(frozen=True)
class JudgedByNextBatch(Search):
    """One trial ahead, one look back: the new batch at the point before the last step judges that step.

    R = (f_{k+1}(w_k) - f_{k+1}(w_{k+1}))/(η_k·S_k) is the last step's gain on a batch that it has not seen. Needs
    `KeepLastStep` around a direction whose update is what it searches along.
    """

    inner: Backtracking = Backtracking()  # noqa: RUF009 (frozen)

    def initial_step_size(self) -> float:
        return self.inner.initial_step_size()

    def defaults(self) -> Memory:
        return {**self.inner.defaults(), "promised": 0.0, "mean_gain": 0.5}

    def first_step_size(self, step_size: float, line: Line, memory: Memory) -> float:
        return self.inner.first_step_size(step_size, line, memory)

    def search(self, line: Line, first: float, evaluate: Evaluate, memory: Memory) -> Outcome:
        if memory["promised"] > 0:
            before = evaluate(-1.0, along="last_step")
            memory["mean_gain"] = 0.7 * memory["mean_gain"] + 0.3 * (before - line.loss) / memory["promised"]
        outcome = self.inner.search(line, first if memory["mean_gain"] > 0.05 else 0.5 * first, evaluate, memory)
        memory["promised"] = outcome.step_size * line.slope
        return outcome


@dataclass(frozen=True)
class WhileLossRose(Selection):
    """Search only where the loss is above that of the step before."""

    def defaults(self) -> Memory:
        return {"loss_before": math.inf}

    def blocks(self, lines: Sequence[Line], step: int, memory: Memory) -> tuple[tuple[int, ...], ...]:
        loss, before = lines[0].loss, memory["loss_before"]
        memory["loss_before"] = loss
        return (tuple(range(len(lines))),) if step == 0 or loss > before else ()


@dataclass(frozen=True)
class AloneThenTogether(Selection):
    """Each component alone, then all of them with the step sizes that were found: a joint safeguard."""

    def blocks(self, lines: Sequence[Line], step: int, memory: Memory) -> tuple[tuple[int, ...], ...]:
        places = range(len(lines))
        return (*((place,) for place in places), tuple(places))


@dataclass(frozen=True)
class OnDemand(Selection):
    """Wait twice as long after each search that accepted its first trial, up to `longest` steps; else search again."""

    longest: int = 16

    def defaults(self) -> Memory:
        return {"gap": 1, "waited": 0}

    def blocks(self, lines: Sequence[Line], step: int, memory: Memory) -> tuple[tuple[int, ...], ...]:
        memory["waited"] += 1
        return (tuple(range(len(lines))),) if step == 0 or memory["waited"] >= memory["gap"] else ()

    def remember(self, searches: Sequence[SearchResult], step: int, memory: Memory) -> None:
        for search in searches:
            at_once = search.outcome.step_size == search.first_step_size
            memory.update(waited=0, gap=min(2 * memory["gap"], self.longest) if at_once else 1)


def by_shape(name: str, parameter: torch.nn.Parameter) -> str:
    """A splitting rule: matrices and vectors."""
    return "matrices" if parameter.ndim > 1 else "vectors"
