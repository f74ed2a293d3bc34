"""One step, from top to bottom: baseline, lines, search, decide, commit, report.

The *search phase* (baseline to decide) computes everything and writes nothing of the optimizer's: an exception leaves
parameters, moments, generators, buffers and numbers as they were. The *commit* evaluates and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from armijo.components.merging import Merge
from armijo.errors import ConfigurationError
from armijo.evaluation.objective import Closure, Objective
from armijo.evaluation.reduction import Reduction
from armijo.interrupts import Interrupts
from armijo.observers.report import ComponentReport, SearchReport, StepReport
from armijo.search.memory import Memory, ScratchMemory, copy_memory, plain_value
from armijo.search.values import Derivatives, Outcome, SearchResult, Status, Trial
from armijo.snapshot import Snapshot, Tensors
from armijo.step.baseline import evaluate_baseline
from armijo.step.guards import WriteGuard, parameters_of
from armijo.step.lines import ComponentLine, compute_lines

if TYPE_CHECKING:
    from armijo.optimizer import LineSearch

__all__ = ["StepResult", "take_step"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What `take_step` returns.

    Args:
        loss: the loss at the start of the step, detached, shape (); this rank's own.
        report: what the step did.
        reduction: the ranks that took it together.
    """

    loss: torch.Tensor
    report: StepReport
    reduction: Reduction


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about one component after the search.

    Args:
        step_size: η to keep after the step.
        applied: η to move with; 0 to stay.
        status: how its search ended.
        trials: how many trials its search took.
        trial_loss: the loss at the accepted step size, if one was accepted.
    """

    step_size: float
    applied: float
    status: Status
    trials: int = 0
    trial_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the commit writes.

    Args:
        decisions: one for each component, by place.
        memory: what selection and merging remember.
        searches: what was searched, in order.
        merge: the components that become one, if any.
    """

    decisions: tuple[Decision, ...]
    memory: Memory
    searches: tuple[SearchResult, ...] = ()
    merge: Merge | None = None


def take_step(
    optimizer: LineSearch, closure: Closure | Objective, interrupts: Interrupts, reduction: Reduction
) -> StepResult:
    """Take one step.

    Args:
        optimizer: the optimizer whose groups and state are read, and written in the commit.
        closure: what `step` was given.
        interrupts: lets Ctrl-C interrupt evaluations and nothing else.
        reduction: the ranks of the step before.
    """
    baseline = evaluate_baseline(optimizer, closure, interrupts, reduction)
    objective = baseline.objective
    # Known from here on, so that a later closure that fails before it reaches the model can still tell the others.
    optimizer._reduction = objective.reduction
    with torch.no_grad():
        try:
            lines = compute_lines(optimizer, objective)
            plan = _decide(optimizer, lines, _search(optimizer, lines, objective, interrupts))
        except BaseException:
            baseline.undo()
            raise
        if plan.decisions[0].status is Status.NONFINITE:
            # The generators go on, or the same masks would meet the next batch; what the forward wrote into buffers
            # may be as broken as its loss.
            objective.restore_before_baseline(generators=False)
        else:
            objective.restore_after_baseline()
            _commit(optimizer, lines, plan)
        objective.close()
        forwards = optimizer.param_groups[0]["forwards"] + objective.evaluations
        _write_to_all(optimizer, {"forwards": forwards})
        # Under one outer autocast region the next forward would find the low-precision weights of this step.
        torch.clear_autocast_cache()
    return StepResult(baseline.loss, _report(optimizer, objective, lines, plan), objective.reduction)


# --------------------------------------------------------------------------------------------------------------- search


def _search(
    optimizer: LineSearch, lines: Sequence[ComponentLine], objective: Objective, interrupts: Interrupts
) -> Plan:
    """Search the blocks that are selected; every other component keeps its first step size."""
    first_group = optimizer.param_groups[0]
    memory = copy_memory(first_group, {**optimizer.selection.defaults(), **optimizer.merging.defaults()})
    numbers = (number for each in lines for number in (each.line.loss, each.line.slope))
    if not all(math.isfinite(number) for number in numbers):
        return Plan(tuple(Decision(each.previous, 0.0, Status.NONFINITE) for each in lines), memory)
    decisions = [Decision(each.first, each.first, Status.UNSEARCHED) for each in lines]
    searches: list[SearchResult] = []
    selected = optimizer.selection.blocks([each.line for each in lines], first_group["steps"], memory)
    for block in _checked_blocks(optimizer, selected, len(lines)):
        moved = {
            place: (decisions[place].applied, lines[place].preview_updates(optimizer.direction))
            for place in optimizer.selection.moved_before(block)
        }
        start = {place: decisions[place] for place in block}
        # What an earlier block of this step found is where a later one starts; what has failed stays.
        if any(decision.applied > 0 for decision in start.values()):
            result, decided = _search_block(optimizer, lines, start, moved, objective, interrupts)
            searches.append(result)
            for place, decision in decided.items():
                decisions[place] = decision
    optimizer.selection.remember(searches, memory)
    return Plan(tuple(decisions), memory, tuple(searches))


def _search_block(
    optimizer: LineSearch,
    lines: Sequence[ComponentLine],
    start: Mapping[int, Decision],
    moved: Mapping[int, tuple[float, Tensors]],
    objective: Objective,
    interrupts: Interrupts,
) -> tuple[SearchResult, dict[int, Decision]]:
    """One search: the components of a block move with one scalar over given ratios.

    Of the other components those in `moved` have moved already, and the rest stay at w_k.
    """
    block = {place: lines[place] for place in start}
    first = max(decision.applied for decision in start.values())
    ratios = {place: decision.applied / first for place, decision in start.items()}
    reach = min(each.reach for each in block.values())
    one = next(iter(block.values()))
    line = replace(
        one.line,
        slope=sum((ratios[place] * each.line.slope for place, each in block.items()), 0.0),
        longest=min([reach, *(each.cap / ratios[place] for place, each in block.items() if ratios[place] > 0)]),
        derivatives=Derivatives(
            {name: sum((each.line.derivatives[name] for each in block.values()), 0.0) for name in one.line.derivatives}
        ),
    )
    trials: list[Trial] = []

    def scaled(step_size: float) -> dict[int, float]:
        # The ratios respect the caps already, up to a rounding error.
        return {place: min(ratios[place] * step_size, each.cap) for place, each in block.items()}

    with Snapshot({place: lines[place].parameters for place in (*block, *moved)}) as snapshot:
        evaluate_at = _evaluator(optimizer, objective, interrupts, snapshot)

        def evaluate(step_size: float, along: str | None = None) -> float:
            step_size = float(step_size)
            if math.isnan(step_size):
                raise ConfigurationError(f"{optimizer.search!r} tried the step size NaN; trials need a number.")
            loss = math.inf
            if abs(step_size) <= reach:
                sizes = scaled(step_size) if along is None else dict.fromkeys(block, step_size)
                moves = {place: (sizes[place], each.vectors(along)) for place, each in block.items()}
                loss = evaluate_at({**moved, **moves})
            if along is None:
                trials.append(Trial(step_size, loss))
            return loss

        memory = ScratchMemory(one.memory)
        outcome = _checked_outcome(optimizer, optimizer.search.search(line, first, evaluate, memory), trials)
    written = memory.written
    decided: dict[int, Decision] = {}
    for place, step_size in scaled(outcome.step_size).items():
        each, n_trials = block[place], start[place].trials + len(trials)
        each.memory.update(copy_memory(written, written))
        if step_size > 0:
            decided[place] = Decision(step_size, step_size, outcome.status, n_trials, outcome.loss)
        elif outcome.step_size == 0:
            decided[place] = Decision(each.previous, 0.0, outcome.status, n_trials)
    return SearchResult(tuple(block), line, first, outcome, tuple(trials)), decided


def _evaluator(
    optimizer: LineSearch, objective: Objective, interrupts: Interrupts, snapshot: Snapshot
) -> Callable[[Mapping[int, tuple[float, Tensors]]], float]:
    """A function that moves the parameters and returns the loss there, `inf` where it is not finite."""
    parameters = parameters_of(optimizer.param_groups)
    sign = -1.0 if optimizer.param_groups[0]["maximize"] else 1.0

    def evaluate(moves: Mapping[int, tuple[float, Tensors]]) -> float:
        def move_and_evaluate() -> list[float]:
            snapshot.move(moves)
            guard = WriteGuard(parameters)
            loss = objective.local_trial(interrupts.interruptible)
            guard.check()
            return [loss]

        (loss,) = objective.mean_over_ranks(move_and_evaluate)
        return sign * loss if math.isfinite(loss) else math.inf

    return evaluate


def _checked_blocks(optimizer: LineSearch, selected: Any, n: int) -> tuple[tuple[int, ...], ...]:
    try:
        blocks = tuple(tuple(block) for block in selected)
    except TypeError:
        raise ConfigurationError(
            f"{optimizer.selection!r} selected {selected!r}. It must return a tuple of blocks, each a tuple of places, "
            "for instance ((0, 1),)."
        ) from None
    for block in blocks:
        if not block or len(set(block)) != len(block) or not set(block) <= set(range(n)):
            raise ConfigurationError(
                f"{optimizer.selection!r} selected the block {block}. A block is a tuple of places in 0..{n - 1}, at "
                "least one, and no place occurs twice in it."
            )
    return blocks


def _checked_outcome(optimizer: LineSearch, outcome: Any, trials: Sequence[Trial]) -> Outcome:
    if not isinstance(outcome, Outcome) or not isinstance(outcome.status, Status):
        raise ConfigurationError(f"{optimizer.search!r} returned {outcome!r}; it must return an Outcome with a Status.")
    step_size = float(outcome.step_size)
    if not 0 <= step_size < math.inf:
        raise ConfigurationError(
            f"{optimizer.search!r} found the step size {step_size}. It must be a finite number, 0 to stay."
        )
    if outcome.status is Status.ACCEPTED and all(trial.step_size != step_size for trial in trials):
        raise ConfigurationError(f"{optimizer.search!r} accepted the step size {step_size}, which it did not evaluate.")
    if outcome.status is Status.NONFINITE:
        raise ConfigurationError(
            f"{optimizer.search!r} returned the status nonfinite, which is for the start of a step; return exhausted."
        )
    return replace(outcome, step_size=step_size)


# --------------------------------------------------------------------------------------------------------------- decide


def _decide(optimizer: LineSearch, lines: Sequence[ComponentLine], plan: Plan) -> Plan:
    """Everything that can still raise, before anything is written: step sizes that fit, merging, memory."""
    if plan.decisions[0].status is Status.NONFINITE:
        return plan
    for each, decision in zip(lines, plan.decisions, strict=True):
        for group in each.groups:
            distance = group.lr * decision.applied
            if distance > min((torch.finfo(p.dtype).max for p in group.parameters), default=math.inf):
                raise ConfigurationError(
                    f"The step size {distance:.3g} of component {each.component.label!r} is more than its parameters' "
                    "number format can hold. Cap it with max_step_size."
                )
    merge = optimizer.merging.propose([decision.step_size for decision in plan.decisions], plan.memory)
    if merge is not None:
        whole = isinstance(merge, Merge) and isinstance(merge.kept, int) and isinstance(merge.absorbed, int)
        if not (whole and 0 <= merge.kept < merge.absorbed < len(lines) and 0 < merge.step_size < math.inf):
            raise ConfigurationError(
                f"{optimizer.merging!r} proposed {merge!r}. It must be a Merge with places 0 ≤ kept < absorbed < "
                f"{len(lines)} and a finite step size > 0."
            )
        merge = replace(merge, step_size=float(merge.step_size))
        optimizer.selection.merged(len(lines) - 1, plan.memory)
    declared = optimizer.memory_defaults
    for memory in (plan.memory, *(each.memory for each in lines)):
        for name, value in memory.items():
            if name not in declared:
                raise ConfigurationError(f"A part remembered {name} = {value!r}, a name that no defaults() declares.")
            memory[name] = plain_value(name, value, declared[name])
    return replace(plan, merge=merge)


# --------------------------------------------------------------------------------------------------------------- commit


def _commit(optimizer: LineSearch, lines: Sequence[ComponentLine], plan: Plan) -> None:
    """Write moments, parameters and numbers. Nothing of the parameters' size is allocated."""
    for each, decision in zip(lines, plan.decisions, strict=True):
        for group in each.groups:
            group.group["step_size"] = decision.step_size
            group.group.update(copy_memory(each.memory, each.memory))
            if not group.parameters:
                continue
            optimizer.state.update(group.kept)
            torch._foreach_add_([state["step"] for state in group.states], 1)
            updates = optimizer.direction.update(group.grads, group.states, group.directions, group.group)
            distance = group.lr * decision.applied
            optimizer.direction.record_step(group.states, updates, distance)
            if distance == 0:
                continue
            if group.weight_decay != 0:
                torch._foreach_mul_(group.parameters, 1 - distance * group.weight_decay)
            torch._foreach_add_(group.parameters, updates, alpha=-distance)
    if plan.merge is not None:
        kept, absorbed = lines[plan.merge.kept], lines[plan.merge.absorbed]
        for group in (*kept.groups, *absorbed.groups):
            group.group["component"] = kept.component.label
            group.group["step_size"] = plan.merge.step_size
            group.group.update(copy_memory(kept.memory, kept.memory))
    _write_to_all(optimizer, {**plan.memory, "steps": optimizer.param_groups[0]["steps"] + 1})


def _write_to_all(optimizer: LineSearch, numbers: Memory) -> None:
    for group in optimizer.param_groups:
        group.update(copy_memory(numbers, numbers))


# --------------------------------------------------------------------------------------------------------------- report


def _report(optimizer: LineSearch, objective: Objective, lines: Sequence[ComponentLine], plan: Plan) -> StepReport:
    shared = optimizer.param_groups[0]
    nonfinite = plan.decisions[0].status is Status.NONFINITE
    merges: tuple[tuple[str, str], ...] = ()
    if plan.merge is not None:
        merges = ((lines[plan.merge.kept].component.label, lines[plan.merge.absorbed].component.label),)
    return StepReport(
        step=shared["steps"] + (1 if nonfinite else 0),
        loss=objective.value(),
        components=tuple(
            ComponentReport(
                label=each.component.label,
                status=decision.status,
                step_size=decision.step_size,
                slope=each.line.slope,
                trials=decision.trials,
                trial_loss=decision.trial_loss,
            )
            for each, decision in zip(lines, plan.decisions, strict=True)
        ),
        searches=tuple(
            SearchReport(
                components=tuple(lines[place].component.label for place in search.block),
                status=search.outcome.status,
                first_step_size=search.first_step_size,
                step_size=search.outcome.step_size,
                slope=search.line.slope,
                trials=search.trials,
            )
            for search in plan.searches
        ),
        merges=merges,
        forwards=objective.evaluations,
        total_forwards=shared["forwards"],
    )
