"""One step, from top to bottom: baseline, lines, search, decide, commit, report.

The *search phase* (baseline to decide) computes everything and writes nothing of the optimizer's: an exception leaves
parameters, moments, generators, buffers and numbers as they were. The *commit* evaluates and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from armijo.components.merging import Merge
from armijo.directions.base import Workspace
from armijo.errors import ConfigurationError
from armijo.evaluation.objective import Closure, Objective
from armijo.evaluation.reduction import Reduction
from armijo.interrupts import Interrupts
from armijo.observers.report import ComponentReport, SearchReport, StepReport
from armijo.search.memory import Memory, ScratchMemory, copy_memory, plain_value
from armijo.search.values import SearchResult, Status, Trial
from armijo.snapshot import Ray, Snapshot
from armijo.step.answers import (
    checked_blocks,
    checked_due,
    checked_expected,
    checked_merge,
    checked_moved_before,
    checked_outcome,
)
from armijo.step.baseline import evaluate_baseline
from armijo.step.block import Block, Decision
from armijo.step.guards import (
    EARLY_STEPS,
    WriteGuard,
    check_ranks_hold_the_same,
    check_trials_differ,
    gradients_aside,
    parameters_of,
)
from armijo.step.lines import ComponentLine, Moves, compute_lines, largest_number, loss_sign
from armijo.step.warnings import (
    warn_about_backward,
    warn_about_half_precision,
    warn_about_other_ranks,
    warn_about_schedulers,
    watch_attributes,
)

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
    optimizer._watch.begin(parameters_of(optimizer.param_groups))
    baseline = evaluate_baseline(optimizer, closure, interrupts, reduction)
    objective = baseline.objective
    # Known from here on, so that a later closure that fails before it reaches the model can still tell the others.
    optimizer._reduction = objective.reduction
    objective.differentiates |= optimizer._differentiates
    if not optimizer._warned:
        optimizer._warned = True
        warn_about_half_precision(optimizer.param_groups, baseline.loss)
        warn_about_other_ranks(objective.reduction)
        warn_about_backward(baseline.ran_backward)
    if not optimizer._warned_of_schedulers:
        optimizer._warned_of_schedulers = warn_about_schedulers(optimizer.param_groups)

    def value() -> float:
        return loss_sign(optimizer) * objective.value()

    with torch.no_grad(), Snapshot(optimizer._copies) as snapshot:
        try:
            if objective.reduction.groups and _is_first(optimizer):
                check_ranks_hold_the_same(objective, parameters_of(optimizer.param_groups))
            memory = _selection_memory(optimizer)
            steps, n = optimizer.param_groups[0]["steps"], len(optimizer.components)
            due = checked_due(optimizer, optimizer.selection.due(value, steps, memory))
            block = checked_expected(optimizer, optimizer.selection.expected_block(n, steps, memory), n) if due else ()
            slopes_needed = due or getattr(optimizer.search, "every_step", False)
            lines = compute_lines(optimizer, objective, snapshot, slopes_needed, due, block)
            parameters = parameters_of(optimizer.param_groups)
            aside = gradients_aside(objective, parameters) if baseline.ran_backward else nullcontext()
            with aside as drop_gradients, watch_attributes(objective, parameters, first=_is_first(optimizer)):
                evaluate_at = _Evaluator(optimizer, objective, interrupts, drop_gradients, snapshot)
                plan = _search(optimizer, lines, due, memory, evaluate_at)
            plan = _decide(optimizer, lines, plan)
        except BaseException:
            baseline.undo()
            optimizer._workspace = Workspace()
            raise
        if plan.decisions[0].status is Status.NONFINITE:
            # The generators go on, or the same masks would meet the next batch; what the forward wrote into buffers
            # may be as broken as its loss.
            objective.restore_before_baseline(generators=False)
            optimizer._workspace = Workspace()
        else:
            objective.restore_after_baseline()
            _commit(optimizer, lines, plan, snapshot)
        objective.close()
        optimizer._differentiates = objective.differentiates
        forwards = optimizer.param_groups[0]["forwards"] + objective.evaluations
        _write_to_all(optimizer, {"forwards": forwards})
        # Under one outer autocast region the next forward would find the low-precision weights of this step.
        torch.clear_autocast_cache()
    optimizer._watch.end(parameters_of(optimizer.param_groups))
    return StepResult(baseline.loss, _report(optimizer, objective, lines, plan), objective.reduction)


# --------------------------------------------------------------------------------------------------------------- search


def _is_first(optimizer: LineSearch) -> bool:
    return optimizer.param_groups[0]["steps"] == 0


@dataclass(frozen=True, slots=True)
class _Evaluator:
    """Evaluates trials.

    Args:
        optimizer: whose parameters are under search.
        objective: the loss.
        interrupts: lets Ctrl-C interrupt the closure.
        drop_gradients: drops what a closure that runs backward passes has left.
        snapshot: moves the parameters.
    """

    optimizer: LineSearch
    objective: Objective
    interrupts: Interrupts
    drop_gradients: Callable[[], None] | None
    snapshot: Snapshot

    def __call__(self, moves: Moves) -> float:
        """Move the parameters and return the loss there, to be minimized; `inf` where it is not finite."""

        def move_and_evaluate() -> list[float]:
            self.snapshot.move(moves)
            guard = WriteGuard(parameters_of(self.optimizer.param_groups))
            loss = self.objective.local_trial(self.interrupts.interruptible)
            guard.check(gradients=self.drop_gradients is None)
            if self.drop_gradients is not None:
                self.drop_gradients()
            return [loss]

        (loss,) = self.objective.mean_over_ranks(move_and_evaluate)
        return loss_sign(self.optimizer) * loss if math.isfinite(loss) else math.inf


def _selection_memory(optimizer: LineSearch) -> Memory:
    """A copy of what selection and merging remember."""
    names = [*optimizer.selection.defaults(), *optimizer.merging.defaults()]
    return copy_memory(optimizer.param_groups[0], names)


def _search(
    optimizer: LineSearch, lines: Sequence[ComponentLine], due: bool, memory: Memory, evaluate_at: _Evaluator
) -> Plan:
    """Search the blocks that are selected, if a search is due; every other component keeps its first step size."""
    if not all(each.finite for each in lines):
        return Plan(tuple(Decision(each.previous, 0.0, Status.NONFINITE) for each in lines), memory)
    found: dict[int, Decision] = {}
    searches: list[SearchResult] = []
    steps = optimizer.param_groups[0]["steps"]
    selected = optimizer.selection.blocks([each.line for each in lines], steps, memory) if due else ()
    for places in checked_blocks(optimizer, selected, len(lines)):
        # What an earlier block of this step found is where a later one starts; a component that stays, stays.
        first = {place: found[place].applied if place in found else lines[place].first for place in places}
        if not any(first.values()):
            continue
        moved: dict[int, tuple[float, Ray]] = {}
        for place in checked_moved_before(optimizer, places, len(lines)):
            applied = found.get(place, _unsearched(optimizer, lines[place])).applied
            evaluate_at.snapshot.save(lines[place].parameters)
            moved |= lines[place].preview_moves(applied, optimizer.direction)
        block = Block.of(lines, first)
        result = _search_block(optimizer, block, moved, evaluate_at)
        searches.append(result)
        step_sizes = block.step_sizes(result.outcome.step_size)
        for place in places:
            found[place] = _decide_component(lines[place], step_sizes[place], found.get(place), result)
    optimizer.selection.remember(searches, steps, memory)
    decisions = (found.get(place, _unsearched(optimizer, each)) for place, each in enumerate(lines))
    return Plan(tuple(decisions), memory, tuple(searches))


def _unsearched(optimizer: LineSearch, each: ComponentLine) -> Decision:
    """What becomes of a component that is in no block."""
    outcome = checked_outcome(optimizer, optimizer.search.without_search(each.line, each.first), [])
    if each.failed_searches and outcome.status is Status.UNSEARCHED:
        # Its step size is the one that the last search has rejected.
        outcome = replace(outcome, step_size=0.0, status=Status.EXHAUSTED)
    return Decision(outcome.step_size or each.previous, outcome.step_size, outcome.status)


def _search_block(
    optimizer: LineSearch,
    block: Block,
    moved: Moves,
    evaluate_at: _Evaluator,
) -> SearchResult:
    """One search. Of the groups outside the block those in `moved` have moved, and the rest stay at w_k.

    The parameters are left at the last trial, where the commit may want them.
    """
    trials: list[Trial] = []
    memory = ScratchMemory(next(iter(block.members.values())).memory)
    searching = True
    for each in block.members.values():
        evaluate_at.snapshot.save(each.parameters)

    def evaluate(step_size: float, along: str | None = None) -> float:
        if not searching:
            raise RuntimeError("evaluate() was called after its search; a search evaluates before it returns.")
        try:
            step_size = float(step_size)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            step_size = math.nan
        if math.isnan(step_size):
            raise ConfigurationError(f"{optimizer.search!r} tried a step size that is NaN or no number.")
        if along is None and block.line.longest < step_size <= block.reach:
            raise ConfigurationError(
                f"{optimizer.search!r} tried the step size {step_size}; the longest allowed here is line.longest, "
                f"{block.line.longest}."
            )
        loss = math.inf
        if abs(step_size) <= block.reach:
            loss = evaluate_at({**moved, **block.moves(step_size, along)})
        if along is None:
            trials.append(Trial(step_size, loss))
            if optimizer.param_groups[0]["steps"] < EARLY_STEPS:
                check_trials_differ(block.line, trials, evaluate_at.snapshot)
        return loss

    try:
        outcome = optimizer.search.search(block.line, block.first, evaluate, memory)
    finally:
        searching = False
    outcome = checked_outcome(optimizer, outcome, trials)
    if moved and outcome.status is Status.NONDETERMINISTIC:
        # At η = 0 the others have moved all the same, so that loss is not f_k.
        outcome = replace(outcome, status=Status.EXHAUSTED)
    for each in block.members.values():
        each.memory.update(copy_memory(memory.written))
    return SearchResult(tuple(block.members), block.line, block.first, outcome, tuple(trials))


def _decide_component(each: ComponentLine, step_size: float, before: Decision | None, result: SearchResult) -> Decision:
    """What a search has decided about a component, after an earlier search of the same step or none."""
    outcome = result.outcome
    trials = len(result.trials) + (before.trials if before else 0)
    if step_size > 0:
        return Decision(step_size, step_size, outcome.status, trials, outcome.loss)
    if before and outcome.step_size > 0:
        # An earlier search of this step found nothing for it, and it was no part of this one.
        return replace(before, trials=trials)
    # It stays, and keeps the step size from before the search.
    return Decision(before.step_size if before else each.previous, 0.0, outcome.status, trials)


# --------------------------------------------------------------------------------------------------------------- decide


def _decide(optimizer: LineSearch, lines: Sequence[ComponentLine], plan: Plan) -> Plan:
    """Everything that can still raise, before anything is written: step sizes that fit, merging, memory."""
    if plan.decisions[0].status is Status.NONFINITE:
        return plan
    for each, decision in zip(lines, plan.decisions, strict=True):
        for group in each.groups:
            distance = group.lr * decision.applied
            if distance > largest_number(group.parameters):
                raise ConfigurationError(
                    f"The step size {distance:.3g} of component {each.component.label!r} is more than its parameters' "
                    "number format can hold. Cap it with max_step_size."
                )
            shrink = distance * group.weight_decay
            if shrink > 1:
                raise ConfigurationError(
                    f"With the step size {distance:.3g} and the weight decay {group.weight_decay:g} the parameters of "
                    f"component {each.component.label!r} would be multiplied by {1 - shrink:.3g}. Take a smaller "
                    "weight_decay, or cap the step size with max_step_size."
                )
            if group.new:
                group.check_update(optimizer.direction)
    merge = optimizer.merging.propose([decision.step_size for decision in plan.decisions], plan.memory)
    merge = checked_merge(optimizer, merge, len(lines))
    if merge is not None:
        optimizer.selection.merged(len(lines) - 1, plan.memory)
    declared = optimizer.memory_defaults
    for memory in (plan.memory, *(each.memory for each in lines)):
        for name, value in memory.items():
            if name not in declared:
                raise ConfigurationError(f"A part remembered {name} = {value!r}, a name that no defaults() declares.")
            memory[name] = plain_value(name, value, declared[name])
    return replace(plan, merge=merge)


# --------------------------------------------------------------------------------------------------------------- commit


def _commit(optimizer: LineSearch, lines: Sequence[ComponentLine], plan: Plan, snapshot: Snapshot) -> None:
    """Write moments, parameters and numbers. Nothing of the parameters' size is allocated."""
    # Parameters may share memory, so every group is where it starts from before the first one moves.
    as_tested = {
        index: snapshot.is_at(index, decision.applied, group.kernel)
        for each, decision in zip(lines, plan.decisions, strict=True)
        for index, group in zip(each.component.groups, each.groups, strict=True)
        if group.kernel.stays and group.lr == 1 and group.weight_decay == 0
    }
    starts = {index: snapshot.keep(index) for index, stays in as_tested.items() if stays}
    snapshot.restore()
    for each, decision in zip(lines, plan.decisions, strict=True):
        for index, group in zip(each.component.groups, each.groups, strict=True):
            group.group["step_size"] = decision.step_size
            group.group["failed_searches"] = decision.failed_searches(each.failed_searches)
            group.group.update(copy_memory(each.memory))
            if group.idle:
                optimizer.direction.record_step(group.idle, [], 0.0)
            if not group.parameters:
                continue
            optimizer.state.update(group.kept)
            torch._foreach_add_([state["step"] for state in group.states], 1)
            if index in starts:
                group.kernel.commit_moments(group.parameters, starts[index], decision.applied)
            else:
                group.kernel.commit(group.parameters, group.lr * decision.applied, group.weight_decay)
    if plan.merge is not None:
        kept, absorbed = lines[plan.merge.kept], lines[plan.merge.absorbed]
        for group in (*kept.groups, *absorbed.groups):
            group.group["component"] = kept.component.label
            group.group["step_size"] = plan.merge.step_size
            group.group["failed_searches"] = kept.groups[0].group["failed_searches"]
            group.group.update(copy_memory(kept.memory))
    _write_to_all(optimizer, {**plan.memory, "steps": optimizer.param_groups[0]["steps"] + 1})


def _write_to_all(optimizer: LineSearch, numbers: Memory) -> None:
    for group in optimizer.param_groups:
        group.update(copy_memory(numbers))


# --------------------------------------------------------------------------------------------------------------- report


def _report(optimizer: LineSearch, objective: Objective, lines: Sequence[ComponentLine], plan: Plan) -> StepReport:
    shared, sign = optimizer.param_groups[0], loss_sign(optimizer)
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
                trial_loss=None if decision.trial_loss is None else sign * decision.trial_loss,
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
                trials=tuple(Trial(trial.step_size, sign * trial.loss) for trial in search.trials),
            )
            for search in plan.searches
        ),
        merges=merges,
        forwards=objective.evaluations,
        total_forwards=shared["forwards"],
    )
