"""Parts that break one rule of their contract each: `test_testing.py` shows that `assert_contract` catches them.

Most derive from a part of the library that keeps all rules, so that nothing else is wrong with them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import armijo
from armijo import Component, Evaluate, Line, Memory, Merge, Outcome, Status, Trial

Tensors = list[torch.Tensor]
States = list[dict[str, Any]]
Group = Mapping[str, Any]


# --------------------------------------------------------------------------------------------------------- every part


@dataclass(frozen=True)
class HasList(armijo.Growth):
    factors: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class HasFunction(armijo.Growth):
    function: Callable[[float], float] = lambda step_size: step_size


class EqualByIdentity(armijo.Selection):
    def blocks(self, lines: Sequence[Line], step: int, memory: Memory) -> tuple[tuple[int, ...], ...]:
        return (tuple(range(len(lines))),)


@dataclass(unsafe_hash=True)
class Mutable(armijo.Guess):
    initial: float = 0.1

    def initial_step_size(self) -> float:
        return self.initial

    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        return step_size


class CountsItself(armijo.Growth):
    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        self.calls = getattr(self, "calls", 0) + 1
        return step_size


class CachesAConstant(armijo.Growth):
    """Not broken: what a part computes from its fields may be kept."""

    @functools.cached_property
    def constant(self) -> float:
        return self.factor**2

    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        return step_size * self.constant


class OtherProbe(armijo.Growth):
    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        return step_size if line.derivatives["curvature"] > 0 else 2 * step_size


class DividesByLoss(armijo.Growth):
    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        return step_size * (1 + abs(1 / line.loss))


# ------------------------------------------------------------------------------------------------------------- memory


class DefaultsAreAList(armijo.Growth):
    def defaults(self) -> Any:
        return ["last"]


_numbers = itertools.count()


class DefaultsChange(armijo.Growth):
    def defaults(self) -> Memory:
        return {f"last{next(_numbers)}": 0.0}


class DefaultsHoldTensor(armijo.Growth):
    def defaults(self) -> Memory:
        return {"last": torch.zeros(())}


class _Remembers(armijo.Growth):
    def defaults(self) -> Memory:
        return {"last": 0.0}


class WritesUndeclared(_Remembers):
    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        memory["lust"] = 1.0
        return step_size


class ClearsMemory(_Remembers):
    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        memory.clear()
        memory["last"] = 1.0
        return step_size


class RemovesItsName(_Remembers):
    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        del memory["last"]
        return step_size


class WritesTensor(_Remembers):
    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        memory["last"] = torch.ones(())
        return step_size


class WritesFloatForInteger(armijo.Jointly):
    def defaults(self) -> Memory:
        return {"gap": 1}

    def remember(self, searches: Any, step: int, memory: Memory) -> None:
        memory["gap"] *= 1.5


class ReservedName(armijo.Growth):
    def defaults(self) -> Memory:
        return {"lr": 1.0}


class BreaksAtTheSecondStep(_Remembers):
    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        last, memory["last"] = memory["last"], line.slope
        return step_size if last == 0 else -step_size


# ----------------------------------------------------------------------------------------------------------- criteria


class LowersTheLossByATenth(armijo.Armijo):
    """A short step is called too long."""

    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        return max(0.0, trial.loss - line.loss + 0.1) if math.isfinite(trial.loss) else math.inf


class WrongSign(armijo.Armijo):
    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        if not math.isfinite(trial.loss):
            return math.inf
        return max(0.0, line.loss - self.c * trial.step_size * line.slope - trial.loss)


class MaximumSwallowsNaN(armijo.Armijo):
    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        return max(0.0, trial.loss - line.loss + self.c * trial.step_size * line.slope)


class AcceptsInfinity(armijo.Armijo):
    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        return 0.0


class ClosesInTheEnd(armijo.Armijo):
    def defaults(self) -> Memory:
        return {"n": 0}

    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        return math.inf if memory["n"] > 20 else armijo.Armijo.violation(self, line, trial, memory)

    def remember(self, line: Line, trial: Trial | None, memory: Memory) -> None:
        memory["n"] += 1


class ForgetsThatNothingWasFound(armijo.Armijo):
    def defaults(self) -> Memory:
        return {"last": 0.0}

    def remember(self, line: Line, trial: Trial | None, memory: Memory) -> None:
        memory["last"] = trial.loss  # type: ignore[union-attr]


class AnswersYes(armijo.Armijo):
    def violation(self, line: Line, trial: Trial, memory: Memory) -> Any:
        return armijo.Armijo.violation(self, line, trial, memory) > 0


class AnswersNaN(armijo.Armijo):
    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        return trial.loss - line.loss + self.c * trial.step_size * line.slope if trial.loss > line.loss else math.nan


class TooShortUnannounced(armijo.Goldstein):
    two_sided = False


# ------------------------------------------------------------------------------------------------------------ guesses


class StartsAtZero(armijo.Growth):
    def initial_step_size(self) -> float:
        return 0.0


class Polyak(armijo.Growth):
    """f/S, which is not positive where the loss is not."""

    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        return line.loss / line.slope


class GrowsWithoutEnd(armijo.Growth):
    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        memory["growth"] *= 1e4
        return step_size * memory["growth"]

    def defaults(self) -> Memory:
        return {"growth": 1.0}


# ----------------------------------------------------------------------------------------------------------- searches


class ClimbsToo(armijo.Backtracking):
    def search(self, line: Line, first: float, evaluate: Evaluate, memory: Memory) -> Outcome:
        return Outcome(first, Status.SKIPPED) if line.slope < 0 else super().search(line, first, evaluate, memory)


class NoFirstStep(armijo.Backtracking):
    def first_step_size(self, step_size: float, line: Line, memory: Memory) -> Any:
        return None if line.slope < 0 else step_size


class NeverGivesUp(armijo.Backtracking):
    def find(self, line: Any, first: Any, evaluate: Any, violation: Any, memory: Any) -> Outcome:
        while violation(first, loss := evaluate(first)) > 0:
            first *= 0.9
        return Outcome(first, Status.ACCEPTED, loss)


class TriesNaN(armijo.Backtracking):
    def find(self, line: Any, first: Any, evaluate: Any, violation: Any, memory: Any) -> Outcome:
        evaluate(math.nan)
        return super().find(line, first, evaluate, violation, memory)


class TriesBeyond(armijo.Backtracking):
    def find(self, line: Any, first: Any, evaluate: Any, violation: Any, memory: Any) -> Outcome:
        evaluate(2 * max(first, 0.5))
        return super().find(line, first, evaluate, violation, memory)


class ReturnsANumber(armijo.FixedStep):
    def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> Any:
        return first


class ReturnsAString(armijo.FixedStep):
    def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> Any:
        return Outcome(first, "unsearched")  # type: ignore[arg-type]


class ReturnsNonfinite(armijo.FixedStep):
    def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> Outcome:
        return Outcome(0.0, Status.NONFINITE)


class MovesWithoutEnd(armijo.FixedStep):
    def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> Outcome:
        return Outcome(math.inf, Status.UNSEARCHED)


class MovesBack(armijo.FixedStep):
    def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> Outcome:
        return Outcome(-first, Status.UNSEARCHED)


class AcceptsWithoutSearch(armijo.Backtracking):
    def without_search(self, line: Line, first: float) -> Outcome:
        return Outcome(first, Status.ACCEPTED, line.loss)


class NumberWithoutSearch(armijo.Backtracking):
    def without_search(self, line: Line, first: float) -> Any:
        return first


class AcceptsUntried(armijo.FixedStep):
    def search(self, line: Any, first: float, evaluate: Any, memory: Any) -> Outcome:
        return Outcome(first, Status.ACCEPTED)


class AcceptsWithoutTheLoss(armijo.Backtracking):
    def find(self, line: Any, first: Any, evaluate: Any, violation: Any, memory: Any) -> Outcome:
        found = super().find(line, first, evaluate, violation, memory)
        return Outcome(found.step_size, found.status)


class MovesToInfinity(armijo.Backtracking):
    def find(self, line: Any, first: Any, evaluate: Any, violation: Any, memory: Any) -> Outcome:
        if violation(first, loss := evaluate(first)) == 0:
            return Outcome(first, Status.ACCEPTED, loss)
        return Outcome(first, Status.EXHAUSTED, loss)


class IgnoresItsCriterion(armijo.Backtracking):
    def find(self, line: Any, first: Any, evaluate: Any, violation: Any, memory: Any) -> Outcome:
        loss = evaluate(first)
        return Outcome(first, Status.ACCEPTED, loss) if loss < math.inf else Outcome(0.0, Status.EXHAUSTED)


# ------------------------------------------------------------------------------- selections, mergings and partitions


class SelectsANumber(armijo.Jointly):
    def blocks(self, lines: Any, step: int, memory: Any) -> Any:
        return len(lines)


class SelectsPlacesOnly(armijo.Jointly):
    def blocks(self, lines: Any, step: int, memory: Any) -> Any:
        return tuple(range(len(lines)))


class Twice(armijo.Jointly):
    def blocks(self, lines: Any, step: int, memory: Any) -> Any:
        return ((0, 0),)


class EmptyBlock(armijo.Jointly):
    def blocks(self, lines: Any, step: int, memory: Any) -> Any:
        return () if step % 2 else ((),)


class FloatPlaces(armijo.Jointly):
    def blocks(self, lines: Any, step: int, memory: Any) -> Any:
        return tuple((float(place),) for place in range(len(lines)))


class ForgetsMerges(armijo.Cycle):
    """A cycle that takes the number of components at its first step for that of all steps."""

    def defaults(self) -> Memory:
        return {"cycle_place": 0, "n": 0}

    def blocks(self, lines: Any, step: int, memory: Any) -> Any:
        memory["n"] = memory["n"] or len(lines)
        return ((step % memory["n"],),)

    def merged(self, n: int, memory: Memory) -> None:
        return


class ForgetsNewGroups(armijo.Jointly):
    def defaults(self) -> Memory:
        return {"counts": []}

    def blocks(self, lines: Any, step: int, memory: Any) -> Any:
        memory["counts"] = memory["counts"] or [0] * len(lines)
        for place in range(len(lines)):
            memory["counts"][place] += 1
        return ((0,),)


class MovesBeforeItself(armijo.EachAlone):
    def moved_before(self, block: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(range(block[0] + 1))


class ExpectsASearch(armijo.Cycle):
    def remember(self, searches: Any, step: int, memory: Memory) -> None:
        assert all(search.trials for search in searches)


class MergesBackwards(armijo.NeverMerge):
    def propose(self, step_sizes: Any, memory: Any) -> Merge:
        return Merge(1, 0, 1.0)


class MergesIntoNothing(armijo.NeverMerge):
    def propose(self, step_sizes: Any, memory: Any) -> Merge | None:
        return Merge(0, 1, min(step_sizes) - 1e-13) if len(step_sizes) > 1 else None


class MergesAPair(armijo.NeverMerge):
    def propose(self, step_sizes: Any, memory: Any) -> Any:
        return (0, 1, 0.1) if len(step_sizes) > 1 else None


class MergesOneTooMany(armijo.NeverMerge):
    """It believes that the number of components never changes."""

    def defaults(self) -> Memory:
        return {"n": 0}

    def propose(self, step_sizes: Any, memory: Any) -> Merge | None:
        memory["n"] = memory["n"] or len(step_sizes)
        return Merge(0, memory["n"] - 1, 0.1) if memory["n"] > 1 else None


class NoComponents(armijo.Together):
    def components(self, labels: Sequence[str]) -> Any:
        return labels


class LeavesOneOut(armijo.ByLabel):
    def components(self, labels: Sequence[str]) -> Any:
        return armijo.ByLabel().components(labels[:-1] or labels)


class LastFirst(armijo.ByLabel):
    def components(self, labels: Sequence[str]) -> Any:
        return armijo.ByLabel().components(labels)[::-1]


class AlwaysTheSameLabel(armijo.ByLabel):
    def components(self, labels: Sequence[str]) -> Any:
        return tuple(Component("all", (index,)) for index in range(len(labels)))


class ByTurns(armijo.ByLabel):
    def components(self, labels: Sequence[str]) -> Any:
        kind = armijo.ByLabel() if next(_numbers) % 2 else armijo.Together()
        return kind.components(labels)


# --------------------------------------------------------------------------------------------------------- directions


@dataclass(frozen=True)
class _Momentum(armijo.Direction):
    """Keeps all rules: the gradient is searched, and an average is applied."""

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"m": torch.zeros_like(parameter)}

    def search_direction(self, grads: Tensors, states: States, group: Group) -> Tensors:
        return [grad.clone() for grad in grads]

    def update(self, grads: Tensors, states: States, scratch: Tensors, group: Group) -> Tensors:
        for grad, state in zip(grads, states, strict=True):
            state["m"].lerp_(grad, 0.1)
        return [state["m"] for state in states]


class Momentum(_Momentum):
    """Not broken."""


class SumOfGradients(_Momentum):
    def update(self, grads: Tensors, states: States, scratch: Tensors, group: Group) -> Tensors:
        for grad, state in zip(grads, states, strict=True):
            state["m"].mul_(0.9).add_(grad)
        return [state["m"] for state in states]


class SearchesAlongAverage(_Momentum):
    def search_direction(self, grads: Tensors, states: States, group: Group) -> Tensors:
        return [torch.lerp(state["m"], grad, 0.1) for grad, state in zip(grads, states, strict=True)]


class Uphill(_Momentum):
    def search_direction(self, grads: Tensors, states: States, group: Group) -> Tensors:
        return [-grad for grad in grads]


class MomentsAreATensor(_Momentum):
    def moments(self, parameter: torch.Tensor) -> Any:
        return torch.zeros_like(parameter)


class CountsInStep(_Momentum):
    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"m": torch.zeros_like(parameter), "step": torch.zeros_like(parameter)}


class FactoredMoments(_Momentum):
    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"m": torch.zeros_like(parameter), "rows": parameter.new_zeros(parameter.shape[:1])}


class MomentsAreOnes(_Momentum):
    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"m": torch.ones_like(parameter)}


class MomentsAreFloat32(_Momentum):
    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"m": torch.zeros_like(parameter, dtype=torch.float32)}


@functools.cache
def _zeros(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


class SharedMoments(_Momentum):
    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"m": _zeros(parameter.shape, parameter.dtype)}


class ReservedHyperparameter(_Momentum):
    def defaults(self) -> dict[str, Any]:
        return {"lr": 0.1}


class ScalesUpdatesAfterwards(_Momentum):
    def record_step(self, states: States, updates: Tensors, step_size: float) -> None:
        for update in updates:
            update.mul_(0.5)


class ClipsGradients(_Momentum):
    def update(self, grads: Tensors, states: States, scratch: Tensors, group: Group) -> Tensors:
        for grad in grads:
            grad.clamp_(-0.1, 0.1)
        return super().update(grads, states, scratch, group)


class WritesInTheSearchPhase(_Momentum):
    def search_direction(self, grads: Tensors, states: States, group: Group) -> Tensors:
        for grad, state in zip(grads, states, strict=True):
            state["m"].lerp_(grad, 0.1)
        return [grad.clone() for grad in grads]


class WritesGradientsInTheSearchPhase(_Momentum):
    def search_direction(self, grads: Tensors, states: States, group: Group) -> Tensors:
        return [grad.mul_(0.5) for grad in grads]


class SearchesAlongItsMoment(_Momentum):
    """The sign of the last gradient that was not zero, kept and returned itself."""

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"m": torch.zeros_like(parameter)}

    def search_direction(self, grads: Tensors, states: States, group: Group) -> Tensors:
        return [state["m"] for state in states]


class ProbesAfterTheFirstStep(_Momentum):
    def probes(self, states: States, group: Group) -> dict[str, Tensors]:
        return {"m": [state["m"] for state in states]} if states and states[0]["step"] > 0 else {}


class OneProbeForAll(_Momentum):
    def probes(self, states: States, group: Group) -> dict[str, Tensors]:
        return {"m": [state["m"] for state in states[:1]]}


class OneTensor(_Momentum):
    def search_direction(self, grads: Tensors, states: States, group: Group) -> Any:
        return torch.cat([grad.reshape(-1) for grad in grads])


class FlatUpdates(_Momentum):
    def update(self, grads: Tensors, states: States, scratch: Tensors, group: Group) -> Tensors:
        return [grad.reshape(-1) for grad in grads]


class Normalised(_Momentum):
    def search_direction(self, grads: Tensors, states: States, group: Group) -> Tensors:
        return [grad / grad.norm() for grad in grads]


class ReplacesItsMoments(_Momentum):
    def update(self, grads: Tensors, states: States, scratch: Tensors, group: Group) -> Tensors:
        for grad, state in zip(grads, states, strict=True):
            state["m"] = torch.lerp(state["m"], grad, 0.1)
        return [state["m"] for state in states]


class AddsToTheState(_Momentum):
    def record_step(self, states: States, updates: Tensors, step_size: float) -> None:
        for state in states:
            state["last"] = torch.tensor(step_size)


class CountsSteps(_Momentum):
    def update(self, grads: Tensors, states: States, scratch: Tensors, group: Group) -> Tensors:
        for state in states:
            state["step"] += 1
        return super().update(grads, states, scratch, group)


class ExpectsUpdates(_Momentum):
    def record_step(self, states: States, updates: Tensors, step_size: float) -> None:
        for state, update in zip(states, updates, strict=True):
            state["m"].copy_(update)


# ------------------------------------------------------------------------------------------------------- two families


@dataclass(frozen=True)
class CriterionAndGuess(armijo.Criterion, armijo.Guess):
    """It keeps the contract of criteria and breaks that of guesses."""

    def initial_step_size(self) -> float:
        return 0.1

    def violation(self, line: Line, trial: Trial, memory: Memory) -> float:
        return armijo.Armijo().violation(line, trial, memory)

    def next(self, step_size: float, line: Line, memory: Memory) -> float:
        return -step_size


@dataclass(frozen=True)
class DerivesFromNothing:
    """Not broken: a part is known by its methods too."""

    def defaults(self) -> Memory:
        return {}

    def propose(self, step_sizes: Sequence[float], memory: Memory) -> Merge | None:
        return None


# ------------------------------------------------------------------------------------------------ what only saves time


class DueByNumber(armijo.Jointly):
    def due(self, loss: Callable[[], float], step: int, memory: Memory) -> bool:
        return step % 2  # type: ignore[return-value]


class ExpectsAnother(armijo.Jointly):
    """It expects all components, and searches the steepest alone."""

    def expected_block(self, n: int, step: int, memory: Memory) -> tuple[int, ...] | None:
        return tuple(range(n))

    def blocks(self, lines: Sequence[Line], step: int, memory: Memory) -> tuple[tuple[int, ...], ...]:
        return ((max(range(len(lines)), key=lambda place: lines[place].slope),),)


class CountsWhatItIsAsked(armijo.Jointly):
    def defaults(self) -> Memory:
        return {"asked": 0}

    def expected_block(self, n: int, step: int, memory: Memory) -> tuple[int, ...] | None:
        memory["asked"] += 1
        return None


class ExpectsNothing(armijo.Growth):
    def expected(self, step_size: float, memory: Memory) -> float | None:
        return 0.0


class ClaimsToStay(armijo.AdamDirection):
    def updates_along_search(self, group: Group) -> bool:
        return True


class KeepsTheKernel(armijo.AdamDirection):
    def search_direction(self, grads: Tensors, states: States, group: Group) -> Tensors:
        return [direction / 2 for direction in super().search_direction(grads, states, group)]

    def kernel(self, parameters: Tensors, grads: Tensors, states: States, group: Group, workspace: Any) -> Any:
        return armijo.AdamDirection().kernel(parameters, grads, states, group, workspace)
