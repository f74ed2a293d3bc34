"""The contracts of criteria, guesses and searches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from armijo.families import is_number
from armijo.search.base import CriterionSearch
from armijo.search.memory import Memory, copy_memory
from armijo.search.values import Line, Outcome, Status, Trial
from armijo.testing.contract import Contract, as_number, is_step_size

__all__ = ["check_criterion", "check_guess", "check_search"]

MOST_TRIALS = 1000
"""A search that evaluates more than this on one line counts as endless."""

# ----------------------------------------------------------------------------------------------------------- criteria


def check_criterion(contract: Contract) -> None:
    """Check that violations are numbers and that no step is too long where the loss falls as predicted."""
    # Powers of two, so that nothing is rounded.
    lengths = [2.0**k for k in range(-20, 11)]
    for loss, slope in ((1.0, 1.0), (-4.0, 8.0), (0.0, 2.0**-6), (2.0**10, 2.0**10)):
        line = contract.line(loss, slope)
        for step_size in lengths:
            trial = Trial(step_size, loss - step_size * slope)
            contract.require(
                _violation(contract, line, trial, contract.open_memory()) <= 1e-12 * (abs(loss) + step_size * slope),
                f"calls the step of {trial} too long, although the loss falls as the slope of {line} says",
                "Answer 0; where a step is too short, a negative number, with two_sided = True in the class.",
            )
    for k, line in enumerate(contract.lines(60)):
        memory = contract.open_memory()
        for loss in (math.inf, math.nan):
            contract.require(
                _violation(contract, line, Trial(0.1, loss), memory) == math.inf,
                f"does not answer inf for a trial with the loss {loss}",
                "Such a trial never suffices: math.inf if math.isnan(excess) else max(0.0, excess).",
            )
        falling = (Trial(length, line.loss - length * line.slope) for length in lengths)
        contract.require(
            any(_violation(contract, line, trial, copy_memory(memory)) <= 0 for trial in falling),
            f"calls every step too long after {k} searches, although the loss falls as the slope of {line} says",
            "Check what it remembers: no search could succeed any more.",
        )
        found = None if k % 10 == 9 else _find_trial(contract, line, memory)
        contract.call("remember", line, found, memory)
        contract.close_memory(memory)


def _violation(contract: Contract, line: Line, trial: Trial, memory: Memory) -> float:
    answer = contract.call("violation", line, trial, memory)
    contract.require(
        is_number(answer) and not math.isnan(answer),
        f"answered {answer!r} for {trial}",
        "A violation is a number and not NaN: 0 if the trial suffices, > 0 if the step is too long.",
    )
    contract.require(
        answer >= 0 or bool(getattr(contract.part, "two_sided", False)),
        f"answered {answer} for {trial}, which means too short",
        "Answer max(0.0, ...), or set two_sided = True in the class.",
    )
    return float(answer)


def _find_trial(contract: Contract, line: Line, memory: Memory) -> Trial | None:
    """Search a parabola, as a step would."""
    curvature, step_size = line.slope * 10 ** contract.random.uniform(-1, 2), 0.5
    for _ in range(40):
        loss = line.loss - step_size * line.slope + 0.5 * curvature * step_size**2
        trial = Trial(step_size, loss)
        violation = _violation(contract, line, trial, memory)
        if violation == 0:
            return trial
        step_size *= 0.7 if violation > 0 else 1.6
    return None


# ------------------------------------------------------------------------------------------------------------ guesses


def check_guess(contract: Contract) -> None:
    """Check that a guess returns finite step sizes > 0."""
    step_size = _initial_step_size(contract)
    for k, line in enumerate(contract.lines(300)):
        memory = contract.open_memory()
        step_size = _next(contract, step_size, line, memory)
        if k % 3 == 0:
            # The search finds something, or nothing.
            step_size = min(step_size, 10 ** contract.random.uniform(-4, 0))
            trial = None if k % 15 == 0 else Trial(step_size, line.loss - 0.5 * step_size * line.slope)
            contract.call("remember", line, trial, memory)
        contract.close_memory(memory)
    for step_size in (1e-12, 1e-6, 1.0, 1e6):
        for line in contract.lines(26):
            _next(contract, step_size, line, contract.open_memory())


def _initial_step_size(contract: Contract) -> float:
    initial = contract.call("initial_step_size")
    contract.require(
        is_step_size(initial),
        f"returned {initial!r} from initial_step_size",
        "It must be a finite number > 0, for instance 0.1.",
    )
    return float(initial)


def _next(contract: Contract, step_size: float, line: Line, memory: Memory) -> float:
    before = copy_memory(memory)
    expected = contract.call("expected", step_size, memory)
    contract.require(
        (expected is None or is_step_size(expected)) and memory == before,
        f"returned {expected!r} from expected, or wrote to memory there",
        "It returns what next is going to return, where that is known without the line, or None, and writes nothing.",
    )
    found = contract.call("next", step_size, line, memory)
    contract.require(
        is_step_size(found),
        f"returned {found!r} from next, after the step size {step_size:g} and on {line}",
        "It must be a finite number > 0, whatever the line: min(max(guess, 0.1 * step_size), 10 * step_size).",
    )
    return float(found)


# ----------------------------------------------------------------------------------------------------------- searches

_Loss = Callable[[float], float]


def check_search(contract: Contract) -> None:
    """Check the outcomes of searches, on lines that end well and badly."""
    run = _SearchRun(contract)
    for k, line in enumerate(contract.lines(72)):
        run.search(*_landscape(line, k % 9))
    for slope, loss in ((0.0, 1.0), (1e-12, 0.0), (0.0, 0.0)):
        run.search(contract.line(loss, slope), lambda _, loss=loss: loss)
    for k, descends in enumerate(contract.lines(6)):
        line = replace(descends, slope=-descends.slope)
        climbs = _climbing(line) if k % 2 else _only_at_start(line, math.inf)
        outcome = run.search(line, climbs)
        contract.require(
            outcome.step_size == 0 or run.evaluations == 0,
            f"moves by {outcome.step_size} on {line}, along which the loss rises",
            "Where line.slope < 0, return Outcome(0.0, Status.ASCENT): 0 means that the component stays.",
        )


def _climbing(line: Line) -> _Loss:
    return lambda step_size: line.loss + abs(line.slope * step_size)


def _only_at_start(line: Line, elsewhere: float) -> _Loss:
    return lambda step_size: line.loss if step_size == 0 else elsewhere


def _landscape(line: Line, kind: int) -> tuple[Line, _Loss]:
    """A line, and the loss along it: parabolas, a fall without end, an edge, and lines where nothing can succeed."""
    if kind < 4:
        curvature = line.slope * 10.0 ** (2 * kind - 2)
        return line, lambda x: line.loss - line.slope * x + 0.5 * curvature * x * x
    if kind == 4:
        return replace(line, longest=0.5), lambda x: line.loss - line.slope * x
    if kind == 5:
        return line, lambda x: line.loss - line.slope * x if x < 1e-3 else math.inf
    if kind == 6:
        return line, _only_at_start(line, math.inf)
    if kind == 7:
        return replace(line, longest=0.25), _climbing(line)
    # The loss does not repeat itself either.
    return line, lambda _: line.loss + 1.0


class _SearchRun:
    """Searches one line after the other, as steps do: with the memory carried and every trial written down."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.evaluations = 0
        self._step_size = _initial_step_size(contract)

    def search(self, line: Line, loss_at: _Loss) -> Outcome:
        contract, memory = self.contract, self.contract.open_memory()
        first = contract.call("first_step_size", self._step_size, line, memory)
        contract.require(
            is_step_size(first),
            f"returned {first!r} from first_step_size, after the step size {self._step_size:g} and on {line}",
            "A first step size is a finite number > 0, whatever the line.",
        )
        first, judged, trials = min(as_number(first), line.longest), copy_memory(memory), []
        self._check_outcome("without_search", line, contract.call("without_search", line, first), [], judged)
        outcome = contract.call("search", line, first, self._evaluate(line, loss_at, trials), memory)
        contract.close_memory(memory)
        self._check_outcome("search", line, outcome, trials, judged)
        self._step_size = as_number(outcome.step_size) or self._step_size
        return outcome

    def _evaluate(self, line: Line, loss_at: _Loss, trials: list[Trial]) -> Callable[..., float]:
        contract, calls = self.contract, iter(range(MOST_TRIALS))

        def evaluate(step_size: float, along: str | None = None) -> float:
            step_size = float(step_size)
            self.evaluations += 1
            contract.require(
                next(calls, None) is not None,
                f"evaluates more than {MOST_TRIALS} trials on {line}",
                "Give up after a number of trials: return Outcome(0.0, Status.EXHAUSTED).",
            )
            contract.require(
                math.isfinite(step_size), f"tries the step size {step_size}", "A trial needs a finite step size."
            )
            if along is not None:
                # Read for its sentence, should the name be unknown.
                return line.loss + 0.1 * line.derivatives[along]
            contract.require(
                step_size <= line.longest,
                f"tries the step size {step_size}, beyond the longest allowed on {line}",
                "Try min(step_size, line.longest): max_step_size and the parameters' number format set this bound.",
            )
            trials.append(Trial(step_size, loss_at(step_size)))
            return trials[-1].loss

        return evaluate

    def _check_outcome(self, method: str, line: Line, outcome: Any, trials: Sequence[Trial], memory: Memory) -> None:
        require = self.contract.require
        require(
            isinstance(outcome, Outcome) and isinstance(outcome.status, Status),
            f"returned {outcome!r} from {method}",
            "It must return an Outcome with a Status.",
        )
        require(
            outcome.status is not Status.NONFINITE,
            f"returned the status nonfinite from {method}",
            "That is for a loss that is not finite at the start of a step; return Status.EXHAUSTED.",
        )
        step_size = as_number(outcome.step_size)
        require(
            0 <= step_size <= line.longest,
            f"returned the step size {outcome.step_size!r} from {method} on {line}",
            "It must be a finite number: 0 to stay, and at most line.longest.",
        )
        losses = {trial.step_size: trial.loss for trial in trials}
        accepted = outcome.status is Status.ACCEPTED
        require(
            not accepted or (step_size > 0 and step_size in losses),
            f"accepted the step size {step_size}, which it did not evaluate",
            "ACCEPTED is for a trial > 0; otherwise return Outcome(0.0, Status.EXHAUSTED).",
        )
        require(
            outcome.loss == losses[step_size] if accepted else outcome.loss in (None, losses.get(step_size)),
            f"returned the loss {outcome.loss} with {outcome.status} at the step size {step_size}",
            "Outcome.loss is what evaluate(step_size) returned, or None where nothing was evaluated there.",
        )
        require(
            step_size == 0 or losses.get(step_size) != math.inf,
            f"moves by {step_size}, where its trial has found an infinite loss",
            "Return Outcome(0.0, Status.EXHAUSTED): 0 means that the component stays.",
        )
        if accepted and isinstance(self.contract.part, CriterionSearch):
            violation = self.contract.part.criterion.violation(line, Trial(step_size, losses[step_size]), memory)
            require(
                violation <= 0,
                f"accepted the step size {step_size}, which its criterion calls too long",
                "Accept only where violation(step_size, loss) is 0, or negative at line.longest.",
            )
