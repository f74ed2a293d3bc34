"""Check a part of your own against the contract of its family."""

from __future__ import annotations

import copy
import math
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any, NoReturn

import torch

from armijo.components.merging import Merge, Merging
from armijo.components.partition import Partition
from armijo.components.selection import Selection
from armijo.directions.base import Direction, ParameterState, Tensors
from armijo.directions.gradient import GradientDirection
from armijo.errors import ConfigurationError
from armijo.evaluation.rng import RandomState
from armijo.families import check_part, is_number, is_whole
from armijo.optimizer import LineSearch
from armijo.search.backtracking import Backtracking
from armijo.search.base import CriterionSearch, Search
from armijo.search.bracketing import Bracketing
from armijo.search.criteria import Criterion
from armijo.search.guesses import Guess
from armijo.search.memory import Memory, copy_memory, plain_value
from armijo.search.values import Derivatives, Line, Outcome, SearchResult, Status, Trial

__all__ = ["assert_contract"]

MOST_TRIALS = 1000
"""A search that evaluates more than this on one line counts as endless."""

LONGEST_UPDATE = 3.0
"""How many times as long as the search direction an update may be, once a constant gradient has filled the momentum."""

_BASES: dict[str, type] = {
    "criterion": Criterion,
    "guess": Guess,
    "search": Search,
    "selection": Selection,
    "merging": Merging,
    "partition": Partition,
    "direction": Direction,
}
_FOREIGN = "memory_of_another_part"


def assert_contract(part: object, *, derivatives: Sequence[str] = ("last_step",)) -> None:
    """Check that a part keeps the contract of its family; it takes a fraction of a second.

    The contract holds what `LineSearch` relies on and what the family's class promises, and nothing beyond: a part that
    keeps it works in every optimizer. It does not tell whether the part is a good one. The part is called as a step
    calls it: with memory that is carried from step to step, on lines that end well and badly, and at last in a
    `LineSearch` on a small problem. Equal parts get equal calls, and global random generators end where they began.

    - Every part: frozen, hashable, equal to its copy from pickle, and unchanged by use. `defaults()` names the same
      plain numbers and lists each time; nothing else is written to `memory`.
    - Criterion: a number, never NaN; negative only with `two_sided`; `inf` where the loss is NaN or infinite. While the
      memory is fresh, no step is too long on a line that falls as its slope says; later, not every step is.
    - Guess: finite step sizes > 0, whatever the line, from a slope of 1e-8 on.
    - Search: a finite first step size > 0, on any line; an `Outcome` after at most 1000 evaluations, none of them
      beyond `line.longest`, and without any from `without_search`. It accepts only what it evaluated, with the loss
      there. It moves to no infinite loss, and not on a line that climbs, unless it is a search that evaluates nothing
      at all.
    - Selection: blocks of existing places, none twice in one block, also after merges and when groups are added; what
      has moved before a block lies outside it.
    - Merging: None, or a `Merge` of two existing places into a finite step size > 0.
    - Partition: every group in exactly one component, components and groups in ascending order, distinct labels.
    - Direction: moments of the parameter's shape and dtype, all zero; a search phase that writes nothing; updates that
      write the moments in place; ⟨g, d⟩ > 0 at the first gradient and ≥ 0 after any commits; updates at most three
      times as long as the search direction; finite answers to zero gradients; stable probes.

    Args:
        part: an instance of a class that derives from its family's class, such as `armijo.Criterion`. A part of
            several families is checked against each.
        derivatives: the names that `Line.derivatives` has and that a search may evaluate along: those of the probes of
            the direction that the part is for. Without meaning for directions.

    Raises:
        AssertionError: names the part, what it did and what to do instead.

    Examples:
        >>> import armijo
        >>> assert_contract(armijo.Armijo(0.1))
    """
    families = _families_of(part)
    generators = RandomState.capture()
    try:
        # A part that draws from a global generator draws the same each time.
        random.seed(0)
        torch.default_generator.manual_seed(0)
        for family in families:
            contract = _Contract(part, family, tuple(derivatives))
            _check_value(contract)
            before = _attributes(part)
            if family not in ("partition", "direction"):
                contract.start_anew()
            _CHECKS[family](contract)
            _check_in_line_search(contract)
            contract.require(
                _attributes(part) == before,
                "changed its own attributes while it was used",
                "A part is frozen: name what it remembers in defaults() and write it to memory.",
            )
    finally:
        generators.restore()


def _families_of(part: object) -> list[str]:
    """The families of a part: those of the classes it derives from, else the one whose methods it has."""
    if isinstance(part, type):
        raise AssertionError(f"{part.__name__} is a class. Pass an instance: assert_contract({part.__name__}(...)).")
    derived = [family for family, base in _BASES.items() if base in type(part).__mro__]
    if derived:
        return derived
    for family in _BASES:
        try:
            check_part(family, part, "assert_contract")
        except ConfigurationError:
            continue
        return [family]
    raise AssertionError(
        f"{part!r} is no part. Derive its class from that of its family: "
        f"{', '.join(f'armijo.{base.__name__}' for base in _BASES.values())}."
    )


class _Contract:
    """One part under test: calls it, carries its memory, and says which rule is broken.

    Args:
        part: the part.
        family: the family whose contract it is to keep.
        derivatives: the names that lines provide.
    """

    def __init__(self, part: Any, family: str, derivatives: tuple[str, ...]) -> None:
        self.part = part
        self.family = family
        self.derivatives = derivatives
        self.random = random.Random(0)
        self._failure: AssertionError | None = None
        self._first: Memory = {}
        self._kept: Memory = {}

    def fail(self, found: str, remedy: str) -> NoReturn:
        """Raise: what the part did, and what to do instead."""
        self._failure = AssertionError(f"{self.part!r} {found}. {remedy}")
        raise self._failure

    def require(self, holds: bool, found: str, remedy: str) -> None:
        """Fail unless a rule holds."""
        if not holds:
            self.fail(found, remedy)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method that must not raise."""
        try:
            return getattr(self.part, method)(*args)
        except Exception as error:
            if error is self._failure:
                raise
            reads = isinstance(error, ConfigurationError) and "no probe" in str(error)
            remedy = (
                "If the part is for a direction with other probes, name them: assert_contract(part, derivatives=(...))."
                if reads
                else "A part answers every call that a step makes; see the docstrings of its family's class."
            )
            reason = f"{type(error).__name__}: {error}".rstrip(".")
            try:
                self.fail(f"raised in {method}: {reason}", remedy)
            except AssertionError as failure:
                raise failure from error

    def start_anew(self) -> None:
        """Begin with the first values of what the part remembers."""
        remedy = "It must return a dict: names, with the integer, float or list of numbers to begin with."
        first = self.call("defaults")
        named = isinstance(first, Mapping) and all(isinstance(name, str) for name in first)
        self.require(named, f"returned {first!r} from defaults()", remedy)
        self.require(
            first.keys() == self.call("defaults").keys(),
            "names other things in defaults() when it is called again",
            "The names must stay the same: they are the keys under which checkpoints keep the memory.",
        )
        try:
            self._first = {name: plain_value(name, value, value) for name, value in first.items()}
        except ConfigurationError as error:
            self.fail(f"has defaults() that cannot be remembered: {str(error).rstrip('.')}", remedy)
        self._kept = copy_memory(self._first)

    def open_memory(self) -> Memory:
        """The memory of the next step, among that of other parts."""
        return {**copy_memory(self._kept), _FOREIGN: 0.25}

    def close_memory(self, memory: Memory) -> None:
        """Check what a step has written, and keep it for the next one."""
        undeclared = sorted(map(str, memory.keys() - self._first.keys() - {_FOREIGN}))
        self.require(
            not undeclared,
            f"wrote {', '.join(undeclared)} to memory, which defaults() does not name",
            "Name everything that the part remembers in defaults(), with a first value.",
        )
        self.require(
            memory.get(_FOREIGN) == 0.25 and self._first.keys() <= memory.keys(),
            "removed names from memory, or changed one of another part",
            "The dict may hold the memory of other parts: write under your own names and remove none.",
        )
        try:
            self._kept = {name: plain_value(name, memory[name], first) for name, first in self._first.items()}
        except ConfigurationError as error:
            self.fail(f"wrote to memory what cannot be remembered: {str(error).rstrip('.')}", "Write plain numbers.")

    def line(self, loss: float, slope: float, longest: float = torch.finfo(torch.float32).max) -> Line:
        """A line that provides all derivatives: of either sign, and 0, as before the first step."""
        values = (0.0, 1e-9, 0.5, -0.5, 1e6, -1e6)
        found = {name: slope * self.random.choice(values) for name in self.derivatives}
        return Line(loss, slope, abs(loss) * 2**-24, longest, Derivatives(found))

    def lines(self, count: int) -> Iterator[Line]:
        """Lines as training meets them, mostly: losses of either sign and 0, slopes from 1e-8 on."""
        for k in range(count):
            loss = (2.0 * 0.95**k + 0.5 * self.random.random(), -3.0, 0.0, 1e6)[max(0, k % 11 - 7)]
            yield self.line(loss, 1e-8 if k % 13 == 12 else 10 ** self.random.uniform(-4, 3))


# --------------------------------------------------------------------------------------------------------- every part


def _attributes(part: object) -> dict[str, Any]:
    """The attributes of a part, without those that it computes from them once."""
    attributes = getattr(part, "__dict__", {})
    derived = {name for name in attributes if isinstance(getattr(type(part), name, None), cached_property)}
    return {name: value for name, value in attributes.items() if name not in derived}


def _check_value(contract: _Contract) -> None:
    part = contract.part
    frozen = "Write @dataclass(frozen=True) above its class, and keep tuples instead of lists and dicts"
    try:
        hash(part)
    except Exception as error:
        contract.fail(f"cannot be hashed: {error}", f"{frozen}: parts are values, and may be default arguments.")
    try:
        twin = pickle.loads(pickle.dumps(part))
    except Exception as error:
        contract.fail(
            f"cannot be pickled: {str(error).rstrip('.')}",
            "Checkpoints and other processes copy parts in this way: define the class at the top level of a module, "
            "and keep no functions, locks or files in its fields.",
        )
    equal = "does not equal its own copy from pickle"
    contract.require(_equal(twin, part), equal, f"{frozen}: parts with equal fields are equal.")
    names = [field.name for field in fields(part)] if is_dataclass(part) else [*getattr(part, "__dict__", {})]
    for name in names:
        try:
            setattr(part, name, getattr(part, name))
        except Exception:
            continue
        contract.fail(f"lets its attribute {name} be set", f"{frozen}: it must not change between steps.")


def _equal(part: object, other: object) -> bool:
    try:
        return bool(part == other) and hash(part) == hash(other)
    except Exception:
        return False


def _number(value: object) -> float:
    """A step size as `LineSearch` reads it: a number, or a tensor of one element; NaN for anything else."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else math.nan
    return float(value) if isinstance(value, Real) else math.nan


def _is_step_size(value: object) -> bool:
    """Whether the value can be a first step size."""
    return 0 < _number(value) < math.inf


# ----------------------------------------------------------------------------------------------------------- criteria


def _check_criterion(contract: _Contract) -> None:
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


def _violation(contract: _Contract, line: Line, trial: Trial, memory: Memory) -> float:
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


def _find_trial(contract: _Contract, line: Line, memory: Memory) -> Trial | None:
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


def _check_guess(contract: _Contract) -> None:
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


def _initial_step_size(contract: _Contract) -> float:
    initial = contract.call("initial_step_size")
    contract.require(
        _is_step_size(initial),
        f"returned {initial!r} from initial_step_size",
        "It must be a finite number > 0, for instance 0.1.",
    )
    return float(initial)


def _next(contract: _Contract, step_size: float, line: Line, memory: Memory) -> float:
    found = contract.call("next", step_size, line, memory)
    contract.require(
        _is_step_size(found),
        f"returned {found!r} from next, after the step size {step_size:g} and on {line}",
        "It must be a finite number > 0, whatever the line: min(max(guess, 0.1 * step_size), 10 * step_size).",
    )
    return float(found)


# ----------------------------------------------------------------------------------------------------------- searches

_Loss = Callable[[float], float]


def _check_search(contract: _Contract) -> None:
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

    def __init__(self, contract: _Contract) -> None:
        self.contract = contract
        self.evaluations = 0
        self._step_size = _initial_step_size(contract)

    def search(self, line: Line, loss_at: _Loss) -> Outcome:
        contract, memory = self.contract, self.contract.open_memory()
        first = contract.call("first_step_size", self._step_size, line, memory)
        contract.require(
            _is_step_size(first),
            f"returned {first!r} from first_step_size, after the step size {self._step_size:g} and on {line}",
            "A first step size is a finite number > 0, whatever the line.",
        )
        first, judged, trials = min(_number(first), line.longest), copy_memory(memory), []
        self._check_outcome("without_search", line, contract.call("without_search", line, first), [], judged)
        outcome = contract.call("search", line, first, self._evaluate(line, loss_at, trials), memory)
        contract.close_memory(memory)
        self._check_outcome("search", line, outcome, trials, judged)
        self._step_size = _number(outcome.step_size) or self._step_size
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
        step_size = _number(outcome.step_size)
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


# ------------------------------------------------------------------------------- selections, mergings and partitions


def _check_selection(contract: _Contract) -> None:
    for n in range(1, 13):
        contract.start_anew()
        size = n
        for step in range(3 * n + 6):
            memory = contract.open_memory()
            loss, sign = contract.random.choice([0.0, 1.0, 0.97**step]), contract.random.choice([-1.0, 0.0, 1.0, 1.0])
            lines = [replace(line, loss=loss, slope=sign * line.slope) for line in contract.lines(size)]
            blocks = _blocks(contract, lines, step, memory)
            contract.call("remember", _searches(contract, lines, blocks), step, memory)
            if size > 1 and step in (n + 1, 2 * n + 2):
                size -= 1
                contract.call("merged", size, memory)
            elif step == 3 * n:
                size += 1  # add_param_group
            contract.close_memory(memory)


def _blocks(contract: _Contract, lines: Sequence[Line], step: int, memory: Memory) -> list[tuple[int, ...]]:
    selected, places = contract.call("blocks", lines, step, memory), set(range(len(lines)))
    where = f"at step {step} of {len(lines)} components"
    try:
        blocks = [tuple(block) for block in selected]
    except TypeError:
        contract.fail(
            f"selected {selected!r} {where}",
            "Return a tuple of blocks, each a tuple of places: ((0, 1),); () for none.",
        )
    for block in blocks:
        contract.require(
            bool(block) and all(map(is_whole, block)) and len(set(block)) == len(block) and set(block) <= places,
            f"selected the block {block} {where}",
            f"A block holds places in 0..{len(lines) - 1}, at least one, and none twice. Merges and new groups change "
            "their number.",
        )
        answer = contract.call("moved_before", block)
        moved = tuple(answer) if isinstance(answer, Iterable) else (None,)
        contract.require(
            all(map(is_whole, moved)) and set(moved) <= places - set(block),
            f"returned {answer!r} from moved_before({block}) {where}",
            f"It returns a tuple of places in 0..{len(lines) - 1} outside the block.",
        )
    return blocks


def _searches(
    contract: _Contract, lines: Sequence[Line], blocks: Sequence[tuple[int, ...]]
) -> tuple[SearchResult, ...]:
    """What a step tells a selection: searches that ended in any way, of blocks in which something may move."""
    results: list[SearchResult] = []
    stays: set[int] = set()
    for block in blocks:
        if set(block) <= stays:
            continue
        line, first = replace(lines[block[0]], slope=sum(lines[place].slope for place in block)), 0.1
        trial = Trial(contract.random.choice([first, 0.5 * first]), line.loss - 0.01)
        outcome, trials = contract.random.choice(
            [
                (Outcome(trial.step_size, Status.ACCEPTED, trial.loss), (trial,)),
                (Outcome(trial.step_size, Status.ACCEPTED, trial.loss), (Trial(2 * first, math.inf), trial)),
                (Outcome(0.0, Status.EXHAUSTED), (Trial(first, math.inf), Trial(0.0, line.loss))),
                (Outcome(first, Status.SKIPPED), ()),
                (Outcome(first, Status.UNSEARCHED), ()),
                (Outcome(0.0, Status.ASCENT), ()),
            ]
        )
        stays = stays - set(block) if outcome.step_size else stays | set(block)
        results.append(SearchResult(block, line, first, outcome, trials))
    return tuple(results)


def _check_merging(contract: _Contract) -> None:
    for n in range(1, 13):
        contract.start_anew()
        sizes = [10 ** contract.random.uniform(-14, 0) if n % 2 else 1e-13 for _ in range(n)]
        for step in range(3 * n + 6):
            memory = contract.open_memory()
            merge = contract.call("propose", list(sizes), memory)
            contract.close_memory(memory)
            if merge is not None:
                whole = isinstance(merge, Merge) and isinstance(merge.kept, int) and isinstance(merge.absorbed, int)
                contract.require(
                    whole and 0 <= merge.kept < merge.absorbed < len(sizes) and _is_step_size(merge.step_size),
                    f"proposed {merge!r} for the step sizes {sizes}",
                    f"Return None, or a Merge with 0 ≤ kept < absorbed < {len(sizes)} and a finite step size > 0.",
                )
                sizes[merge.kept] = float(merge.step_size)
                del sizes[merge.absorbed]
            sizes = [max(1e-30, size * 10 ** contract.random.uniform(-1, 0.9)) for size in sizes]
            if step % 7 == 6:
                sizes.append(0.1)  # add_param_group


def _check_partition(contract: _Contract) -> None:
    draws = [[contract.random.choice("abc") for _ in range(n)] for n in range(1, 9)]
    for labels in (["head"], ["body.0", "body.1", "head", "body.0"], ["head", "body", "body"], *draws):
        answer, where = contract.call("components", labels), f"for the labels {labels}"
        try:
            components = [(component.label, tuple(component.groups)) for component in answer]
        except (TypeError, AttributeError):
            contract.fail(f"returned {answer!r} {where}", "Return a tuple of armijo.Component(label, groups).")
        groups = [indices for _, indices in components]
        contract.require(
            sorted(index for indices in groups for index in indices) == list(range(len(labels))) and all(groups),
            f"makes the components {groups} {where}",
            f"Each group, 0..{len(labels) - 1}, lies in exactly one component, and no component is empty.",
        )
        contract.require(
            groups == sorted(groups) and all(indices == tuple(sorted(indices)) for indices in groups),
            f"makes the components {groups} {where}",
            "Order the groups in each component, and the components by their first group: a merged component stays at "
            "the place of its first.",
        )
        names = [label for label, _ in components]
        contract.require(
            all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names),
            f"labels its components {names} {where}",
            "Reports and merged groups name components by their labels: distinct strings, and none empty.",
        )
        contract.require(
            tuple(contract.call("components", list(labels))) == tuple(answer),
            f"makes other components when it is asked again {where}",
            "It is asked several times a step: the answer depends on the labels alone.",
        )


# --------------------------------------------------------------------------------------------------------- directions

_SHAPES = ((3, 4), (5,), ())


def _randn(seed: int, scale: float = 1.0) -> Tensors:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return [scale * torch.randn(s, generator=generator, dtype=torch.float64, device="cpu") for s in _SHAPES]


def _check_direction(contract: _Contract) -> None:
    with torch.no_grad():
        for dtype in (torch.float64, torch.float32):
            for shape in (*_SHAPES, (0,)):
                _check_moments(contract, torch.zeros(shape, dtype=dtype, device="cpu"))
        # Every fourth gradient is short and opposes those before it: it shows a search along the momentum.
        run = _DirectionRun(contract)
        for k in range(12):
            run.step(_randn(k // 4, -0.1 if k % 4 == 3 else 1.0), applied=0.0 if k == 5 else 0.1)
        run.stay()
        run.step(_randn(0, 0.0))
        _DirectionRun(contract).step(_randn(0, 0.0))
        run = _DirectionRun(contract)
        gradients, ratio = _randn(1), 1.0
        for _ in range(50):
            ratio = run.step(gradients)
        contract.require(
            ratio <= LONGEST_UPDATE,
            f"applies an update {ratio:.3g} times as long as the direction it searches along, after 50 equal gradients",
            "The step size is found for the length of the search direction: make the momentum an average, "
            "(1 - β)·g + β·m, not a sum.",
        )


def _check_moments(contract: _Contract, parameter: torch.Tensor) -> None:
    moments, again = (contract.call("moments", parameter) for _ in range(2))
    contract.require(
        isinstance(moments, Mapping)
        and all(isinstance(name, str) and name != "step" for name in moments)
        and all(isinstance(moment, torch.Tensor) for moment in moments.values()),
        f"returned {moments!r} from moments",
        'It must return a dict of tensors, by names other than "step", which counts steps.',
    )
    contract.require(
        all(
            (m.shape, m.dtype, m.device) == (parameter.shape, parameter.dtype, parameter.device)
            for m in moments.values()
        )
        and not any(moment.any() for moment in moments.values()),
        f"has other moments than zeros like the parameter, of the shape {tuple(parameter.shape)} and {parameter.dtype}",
        "Write torch.zeros_like(parameter): a moment has the parameter's shape, dtype and device, and is all zero.",
    )
    contract.require(
        moments.keys() == again.keys() and not any(moments[name] is again[name] for name in moments),
        "returns the same tensors from moments when it is called again",
        "Make new tensors at each call: every parameter has its own.",
    )


class _DirectionRun:
    """Steps of one direction from fresh moments, as `LineSearch` makes them."""

    def __init__(self, contract: _Contract) -> None:
        self.contract = contract
        parameters = _randn(99)
        try:
            self._group = LineSearch(parameters, direction=contract.part).param_groups[0]
        except ConfigurationError as error:
            contract.fail(f"is refused by LineSearch: {str(error).rstrip('.')}", "The error says what to change.")
        self._states: list[ParameterState] = [
            {"step": torch.tensor(0.0, dtype=torch.float32, device="cpu"), **contract.call("moments", parameter)}
            for parameter in parameters
        ]
        self._held = [dict(state) for state in self._states]
        self._probes = tuple(contract.call("probes", [], self._group))

    def step(self, grads: Tensors, applied: float = 0.1) -> float:
        """One step; returns ‖u‖/‖d‖, 1 where d vanishes."""
        contract, kept = self.contract, [grad.clone() for grad in grads]
        directions = self._search_phase(grads)
        lengths = [_norm(directions)]
        for state in self._states:
            state["step"] += 1
        counts = [float(state["step"]) for state in self._states]
        updates = contract.call("update", grads, self._states, directions, self._group)
        self._check_tensors("update", updates)
        lengths.append(_norm(updates))
        applied_updates = [update.clone() for update in updates]
        contract.call("record_step", self._states, updates, applied)
        contract.require(
            all(map(torch.equal, updates, applied_updates)),
            "changes the updates in record_step",
            "They are applied after it; write to the states alone.",
        )
        contract.require(
            all(map(torch.equal, grads, kept)),
            "changes the gradients in update",
            "Work on new tensors, or on scratch where that does not hold the gradients themselves.",
        )
        self._check_states(counts)
        return lengths[1] / lengths[0] if lengths[0] > 0 else 1.0

    def stay(self) -> None:
        """A step in which no parameter has a gradient."""
        self.contract.call("record_step", self._states, [], 0.0)
        self._check_states([float(state["step"]) for state in self._states])

    def _search_phase(self, grads: Tensors) -> Tensors:
        contract, states, fresh = self.contract, self._states, not float(self._states[0]["step"])
        kept = [grad.clone() for grad in grads]
        before = [{name: moment.clone() for name, moment in state.items()} for state in states]
        numbers = dict(self._group)
        directions = contract.call("search_direction", grads, states, self._group)
        probes = contract.call("probes", states, self._group)
        contract.require(
            numbers == self._group
            and all(state.keys() == old.keys() for state, old in zip(states, before, strict=True))
            and all(torch.equal(s[name], old[name]) for s, old in zip(states, before, strict=True) for name in old)
            and all(map(torch.equal, grads, kept)),
            "writes moments, gradients or the group in search_direction or probes",
            "Work on new tensors there and write the moments in update: a step may be abandoned after the search.",
        )
        self._check_tensors("search_direction", directions)
        stored = {id(moment) for state in states for moment in state.values()}
        contract.require(
            not any(id(direction) in stored for direction in directions),
            "returns a moment itself from search_direction",
            "Return new tensors or the gradients: update may overwrite them.",
        )
        contract.require(
            isinstance(probes, Mapping) and tuple(probes) == self._probes,
            f"has other probes than {self._probes}, which probes([], group) names",
            "The names of the probes must be the same at each step and for each group.",
        )
        for vectors in probes.values():
            self._check_tensors("probes", vectors)
        slope = sum(float((grad * direction).sum()) for grad, direction in zip(grads, directions, strict=True))
        size = _norm(grads) * _norm(directions)
        contract.require(
            slope > 0 or not (fresh and _norm(grads)),
            f"does not descend along its first search direction: ⟨g, d⟩ = {slope:.3g}",
            "Search along the gradient or the preconditioned gradient; the optimizer steps to w - η·d.",
        )
        contract.require(
            slope >= -1e-12 * size,
            f"climbs after {int(states[0]['step'])} steps: ⟨g, d⟩ = {slope:.3g} for a short gradient that opposes "
            "earlier ones",
            "Search along the preconditioned gradient, and put the momentum into update alone.",
        )
        return directions

    def _check_tensors(self, method: str, tensors: Any) -> None:
        contract = self.contract
        listed = isinstance(tensors, list | tuple) and all(isinstance(tensor, torch.Tensor) for tensor in tensors)
        contract.require(
            listed and [tuple(tensor.shape) for tensor in tensors] == list(_SHAPES),
            f"returned {[tuple(t.shape) for t in tensors] if listed else type(tensors).__name__} from {method}, for "
            f"gradients of the shapes {list(_SHAPES)}",
            "It must return a list with one tensor of the same shape for each gradient.",
        )
        contract.require(
            all(bool(tensor.isfinite().all()) for tensor in tensors),
            f"returned NaN or infinity from {method}",
            "Keep it finite where gradients are zero, for instance by an eps in the denominator.",
        )

    def _check_states(self, counts: list[float]) -> None:
        names = {name for held in self._held for name in held}
        self.contract.require(
            all(state.keys() == held.keys() for state, held in zip(self._states, self._held, strict=True))
            and all(
                state[name] is held[name] for state, held in zip(self._states, self._held, strict=True) for name in held
            ),
            f"replaces, adds or removes tensors of the state {sorted(names)}",
            "Write them in place, state[name].copy_(...), and name all of them in moments: anything else is lost.",
        )
        self.contract.require(
            [float(state["step"]) for state in self._states] == counts,
            'writes "step" in the state',
            "The optimizer counts the steps; keep a count of your own as a moment.",
        )


def _norm(tensors: Tensors) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


# ----------------------------------------------------------------------------------------------------- the whole step


@dataclass(frozen=True)
class _Probing(GradientDirection):
    """Gradient descent that offers its last step as each of the probes."""

    names: tuple[str, ...]

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"probe {name}": torch.zeros_like(parameter) for name in self.names}

    def record_step(self, states: list[ParameterState], updates: Tensors, step_size: float) -> None:
        for state, update in zip(states, updates, strict=False):
            for name in self.names:
                state[f"probe {name}"].copy_(update * step_size)

    def probes(self, states: list[ParameterState], group: Mapping[str, Any]) -> dict[str, Tensors]:
        return {name: [state[f"probe {name}"] for state in states] for name in self.names}


def _check_in_line_search(contract: _Contract) -> None:
    """Some steps of a `LineSearch` with the part; a parameter lacks a gradient for a while, and a state is loaded."""
    parameters = [weight.requires_grad_() for weight in _randn(7)]
    groups = [
        {"params": [weight], "component": label}
        for weight, label in zip(parameters, ("body", "head", "body"), strict=True)
    ]
    parts: dict[str, Any] = {"direction": _Probing(contract.derivatives), contract.family: contract.part}
    if contract.family == "criterion":
        two_sided = getattr(contract.part, "two_sided", False)
        parts["search"] = (Bracketing if two_sided else Backtracking)(criterion=parts.pop("criterion"))
    elif contract.family == "guess":
        parts["search"] = Backtracking(guess=parts.pop("guess"))
    try:
        optimizer = LineSearch(groups, **parts)
        optimizer._observers.clear()  # nothing of this is to be logged
        optimizer._warned = True
        for k in range(12):
            used = parameters[:-1] if k in (5, 6) else parameters
            targets = _randn(20 + k, 0.3)

            def closure(used: Tensors = used, targets: Tensors = targets) -> torch.Tensor:
                terms = [(w - t).square().log1p().sum() for w, t in zip(used, targets, strict=False)]
                return torch.stack(terms).sum()

            with torch.enable_grad():
                optimizer.step(closure)
            if k == 8:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    except Exception as error:
        contract.fail(
            f"does not work in LineSearch: {type(error).__name__}: {str(error).rstrip('.')}",
            "The error says what to change.",
        )


_CHECKS: dict[str, Callable[[_Contract], None]] = {
    "criterion": _check_criterion,
    "guess": _check_guess,
    "search": _check_search,
    "selection": _check_selection,
    "merging": _check_merging,
    "partition": _check_partition,
    "direction": _check_direction,
}
