"""Only of the library's own parts: what they do beyond the contract that `test_testing.py` checks them against."""

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import armijo
from armijo.components.merging import MergeNeighbours, MergeSmallest
from armijo.components.selection import Cycle, Every
from armijo.errors import ConfigurationError
from armijo.search.backtracking import Backtracking, FixedStep, PaperBacktracking
from armijo.search.base import Search
from armijo.search.bracketing import Bracketing
from armijo.search.criteria import Armijo, Goldstein
from armijo.search.guesses import Growth
from armijo.search.values import Derivatives, Line, Outcome, SearchResult, Status, Trial
from contracts.extensions import AloneThenTogether, LargestOfTheLast, OnDemand
from contracts.members import CRITERIA, GUESSES, MERGINGS, PARTITIONS, SEARCHES, SELECTIONS

DECREASING = [*CRITERIA, LargestOfTheLast()]
SEARCHING_ALL = [*SELECTIONS, AloneThenTogether(), OnDemand(4)]
TRYING = [search for search in SEARCHES if not isinstance(search, FixedStep)]

positive = st.floats(1e-6, 1e6)


class Never(armijo.Selection):
    """Search nothing, and let the guess have its way."""

    def blocks(self, lines: Any, step: int, memory: Any) -> tuple[tuple[int, ...], ...]:
        return ()


every = pytest.mark.parametrize


def named(part: object) -> str:
    return repr(part)


def run(search: Search, line: Line, first: float, evaluate: Callable[[float], float]) -> tuple[Outcome, list[Trial]]:
    """Search as a step does: with the memory's first values, and every trial written down."""
    trials: list[Trial] = []

    def recorded(step_size: float, along: str | None = None) -> float:
        assert along is None
        trials.append(Trial(step_size, evaluate(step_size)))
        return trials[-1].loss

    return search.search(line, first, recorded, search.defaults()), trials


@every("criterion", DECREASING, ids=named)
@given(slope=positive, curvature=positive, start=st.floats(-1e3, 1e3))
def test_a_quadratics_minimiser_suffices_and_a_short_step_is_never_too_long(
    criterion: Any, slope: float, curvature: float, start: float
) -> None:
    line = Line(start, slope)
    for share in (1.0, 1e-3):
        step_size = share * slope / curvature
        loss = start - slope * step_size + 0.5 * curvature * step_size**2
        rounding = 8 * math.ulp(abs(start) + abs(loss) + slope * step_size)
        violation = criterion.violation(line, Trial(step_size, loss), criterion.defaults())
        assert violation <= rounding
        if share == 1.0 or not criterion.two_sided:
            assert violation >= -rounding


@every("criterion", DECREASING, ids=named)
def test_no_decrease_violates(criterion: Any) -> None:
    assert criterion.violation(Line(1.0, 1.0), Trial(0.1, 1.0), criterion.defaults()) > 0


@every("criterion", DECREASING, ids=named)
def test_only_a_two_sided_criterion_calls_a_step_too_short(criterion: Any) -> None:
    # The loss falls as the slope says, without end: every step but an infinite one is too short.
    violation = criterion.violation(Line(1.0, 1.0), Trial(1e-3, 1.0 - 1e-3), criterion.defaults())
    assert violation < 0 if criterion.two_sided else violation == 0


@every("kind", [Backtracking, PaperBacktracking])
def test_a_search_that_only_shrinks_refuses_a_two_sided_criterion(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"only shortens steps.*Use Bracketing"):
        kind(Goldstein())


@every("c", [0, 1, -0.1, math.nan])
def test_armijo_refuses_a_constant_out_of_range(c: float) -> None:
    with pytest.raises(ConfigurationError, match="0 < c < 1"):
        Armijo(c)
    with pytest.raises(ConfigurationError, match=r"0 < c < 0\.5"):
        Goldstein(c)


@every("search", SEARCHES, ids=named)
@given(curvature=st.floats(1e-4, 1e7), first=st.floats(1e-4, 10))
def test_an_accepted_step_size_was_evaluated_and_satisfies_the_criterion(
    search: Any, curvature: float, first: float
) -> None:
    line = Line(1.0, 1.0)
    outcome, trials = run(search, line, first, lambda step_size: 1.0 - step_size + 0.5 * curvature * step_size**2)
    if outcome.status is Status.ACCEPTED:
        assert Trial(outcome.step_size, outcome.loss) in trials
        assert search.criterion.violation(line, Trial(outcome.step_size, outcome.loss), search.defaults()) == 0
        assert outcome.step_size > 0
        assert outcome.step_size <= first or search.lengthens
    else:
        assert outcome.loss is None


@every("search", [search for search in TRYING if search.lengthens], ids=named)
def test_a_step_that_is_too_short_at_the_longest_allowed_is_accepted(search: Any) -> None:
    line = Line(1.0, 1.0, longest=0.5)
    outcome, trials = run(search, line, 0.1, lambda step_size: 1 - step_size)
    assert outcome.status is Status.ACCEPTED
    assert max(trial.step_size for trial in trials) <= line.longest
    if search.criterion.two_sided:
        assert outcome.step_size == line.longest


@every("search", TRYING, ids=named)
def test_a_search_that_cannot_succeed_ends(search: Any) -> None:
    outcome, trials = run(search, Line(1.0, 1.0), 0.1, lambda step_size: 1.0 if step_size == 0 else math.inf)
    assert outcome.status is Status.EXHAUSTED
    assert search.max_trials <= len(trials) <= search.max_trials + 1


@every("search", TRYING, ids=named)
@every("line", [Line(0.0, 1.0), Line(1.0, 0.0), Line(1.0, 9e-9)])
def test_nothing_is_evaluated_where_there_is_nothing_to_search(search: Any, line: Line) -> None:
    step_size = 0.1 if isinstance(search, PaperBacktracking) else 0.0
    assert search.search(line, 0.1, pytest.fail, search.defaults()) == Outcome(step_size, Status.SKIPPED)


@every("search", TRYING, ids=named)
@every("line", [Line(1.0, -1.0), Line(1.0, -1e-12), Line(0.0, -1.0)])
def test_a_line_that_does_not_descend_is_not_searched_and_nothing_moves(search: Any, line: Line) -> None:
    assert search.search(line, 0.1, pytest.fail, search.defaults()) == Outcome(0.0, Status.ASCENT)


@every("search", [Backtracking(), Bracketing()], ids=named)
def test_the_step_size_rests_where_the_slope_vanishes(search: Any) -> None:
    assert search.first_step_size(0.5, Line(1.0, 9e-9), {}) == 0.5
    assert search.first_step_size(0.5, Line(1.0, 1.0), {}) == 0.5 * 2 ** (1 / 500)
    assert PaperBacktracking().first_step_size(0.5, Line(1.0, 0.0), {}) == 0.5 * 2 ** (1 / 500)


@every("search", [Backtracking(), Bracketing()], ids=named)
def test_a_loss_that_does_not_repeat_is_reported(search: Any) -> None:
    outcome, trials = run(search, Line(1.0, 1.0), 0.1, lambda step_size: 2.0)
    assert outcome == Outcome(0.0, Status.NONDETERMINISTIC)
    assert len(trials) == 26


def test_backtracking_gives_up_where_rounding_would_decide() -> None:
    lucky = Line(loss=0.7, slope=1e-6, resolution=0.7 * 2**-24)
    tried: list[float] = []

    def evaluate(step_size: float) -> float:
        tried.append(step_size)
        return 0.7 if step_size == 0 or step_size > 1e-6 else 0.7 - 2**-24

    outcome, _ = run(Backtracking(), lucky, 0.1, evaluate)
    assert (outcome.step_size, outcome.status) == (0.0, Status.EXHAUSTED)
    assert all(step_size * lucky.slope >= lucky.resolution for step_size in tried[:-1])
    assert run(PaperBacktracking(max_trials=200), lucky, 0.1, evaluate)[0].step_size < 1e-6


@every("edge", [10.0**-k for k in range(1, 9)])
def test_backtracking_is_short_from_far_away_and_lands_near_the_edge(edge: float) -> None:
    outcome, trials = run(
        Backtracking(), Line(1.0, 1.0), 0.1, lambda step_size: 1 - step_size if step_size <= edge else math.inf
    )
    assert outcome.status is Status.ACCEPTED
    assert len(trials) <= 22
    assert 0.9**3 * edge <= outcome.step_size <= edge


def test_backtracking_tries_what_the_papers_search_tries_first() -> None:
    for search in (Backtracking(), PaperBacktracking()):
        _, trials = run(search, Line(1.0, 1.0), 0.1, lambda step_size: 1.0 if step_size > 0.091 else 0.0)
        assert [trial.step_size for trial in trials] == [0.1, 0.1 * 0.9]


@every("bad", [{"shrink": 0}, {"shrink": 1}, {"max_trials": 0}, {"shrink": math.nan}])
@every("kind", [Backtracking, PaperBacktracking])
def test_searches_refuse_numbers_out_of_range(kind: Any, bad: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        kind(**bad)


def test_bracketing_lengthens_then_bisects_on_the_logarithm() -> None:
    # Too short below 3, too long above 5: 1, 4, 16, then between.
    class Between(Armijo):
        two_sided = True

        def violation(self, line: Line, trial: Trial, memory: Any) -> float:
            return -1.0 if trial.step_size < 3 else float(trial.step_size > 5)

    def tried(first: float, factor: float) -> list[float]:
        _, trials = run(Bracketing(Between(), factor=factor), Line(1.0, 1.0), first, lambda step_size: 0.5)
        return [trial.step_size for trial in trials]

    assert tried(1.0, 4.0) == [1.0, 4.0]
    assert tried(1.0, 16.0) == [1.0, 16.0, 4.0]
    assert tried(64.0, 32.0) == [64.0, 2.0, math.sqrt(128.0), math.sqrt(2.0 * math.sqrt(128.0))]


@every("search", [Backtracking(least_slope=0.0), Bracketing(least_slope=0.0)], ids=named)
def test_a_slope_of_zero_is_not_searched_even_where_every_slope_may_be(search: Any) -> None:
    assert search.search(Line(1.0, 0.0), 0.1, pytest.fail, {}) == Outcome(0.0, Status.SKIPPED)
    assert search.without_search(Line(1.0, 0.0), 0.1) == Outcome(0.0, Status.SKIPPED)
    assert search.search(Line(1.0, 1e-300), 0.1, lambda step_size: 0.0, {}).status is not Status.SKIPPED


@every("max_trials", range(2, 14))
def test_backtracking_takes_no_more_trials_than_it_may_where_it_tightens_either(max_trials: int) -> None:
    for edge in (0.04, 0.02, 0.005, 0.001):
        search = Backtracking(max_trials=max_trials)
        outcome, trials = run(search, Line(1.0, 1.0), 0.1, lambda step_size, edge=edge: float(step_size > edge))
        assert len(trials) <= max_trials + (outcome.status is not Status.ACCEPTED)


def test_a_criterion_that_is_not_derived_is_one_sided() -> None:
    class Duck:
        def defaults(self) -> dict[str, Any]:
            return {}

        def violation(self, line: Line, trial: Trial, memory: Any) -> float:
            return 0.0

        def remember(self, line: Line, trial: Trial | None, memory: Any) -> None:
            return

    duck: Any = Duck()
    outcome, _ = run(Backtracking(duck), Line(1.0, 1.0), 0.5, lambda step_size: 0.5)
    assert outcome == Outcome(0.5, Status.ACCEPTED, 0.5)


def test_bracketing_refuses_numbers_out_of_range() -> None:
    for bad in ({"factor": 1.0}, {"factor": math.inf}, {"max_trials": 0}):
        with pytest.raises(ConfigurationError):
            Bracketing(**bad)


@every("guess", GUESSES, ids=named)
@given(step_size=positive, slope=st.floats(0, 1e3))
def test_a_guess_is_positive_and_finite(guess: Any, step_size: float, slope: float) -> None:
    assert guess.initial_step_size() > 0
    assert 0 < guess.next(step_size, Line(1.0, slope), guess.defaults()) < math.inf


def test_growth_refuses_numbers_out_of_range() -> None:
    assert Growth(factor=2.0).next(0.5, Line(1.0, 0.0), {}) == 1.0
    for bad in ({"initial": 0}, {"initial": math.inf}, {"factor": 0.5}, {"factor": math.nan}):
        with pytest.raises(ConfigurationError):
            Growth(**bad)


@every("selection", SEARCHING_ALL, ids=named)
@given(n=st.integers(1, 12), start=st.integers(0, 40))
def test_blocks_are_places_and_every_place_gets_its_search(selection: Any, n: int, start: int) -> None:
    lines, memory, searched = [Line(1.0, 1.0)] * n, selection.defaults(), set()
    for step in range(start, start + 3 * n):
        blocks = selection.blocks(lines, step, memory)
        assert memory.keys() == selection.defaults().keys()
        places = [place for block in blocks for place in block]
        selection.remember([], step, memory)
        assert all(blocks), "there may be no block, but no block is empty"
        assert all(len(block) == len(set(block)) for block in blocks)
        assert set(places) <= set(range(n))
        assert all(set(selection.moved_before(block)).isdisjoint(block) for block in blocks)
        searched |= set(places)
    assert searched == set(range(n)), "within 3·n steps every component is searched"


def test_the_cycle_starts_with_the_first_component_after_the_joint_steps() -> None:
    selection, memory = Cycle(joint_steps=2), Cycle().defaults()
    seen = [selection.blocks([Line(1.0, 1.0)] * 3, step, memory) for step in range(7)]
    assert seen == [((0, 1, 2),), ((0, 1, 2),), ((0,),), ((1,),), ((2,),), ((0,),), ((1,),)]
    with pytest.raises(ConfigurationError):
        Cycle(-1)


def test_a_selection_within_every_few_steps_sees_the_searches_alone() -> None:
    selection, memory = Every(2, Cycle(1)), Cycle().defaults()
    lines, seen = [Line(1.0, 1.0)] * 2, []
    for step in range(7):
        due = selection.due(lambda: 1.0, step, memory)
        seen.append(selection.blocks(lines, step, memory) if due else None)
    assert seen == [((0, 1),), None, ((0,),), None, ((1,),), None, ((0,),)]
    with pytest.raises(ConfigurationError, match="cannot count steps"):
        Every(0)


def a_search(loss: float, trials: int = 1, ratio: float = 0.5) -> SearchResult:
    """A search of slope 1 that accepted the step size 1, with this gain ratio, after some trials."""
    tried = (*(Trial(2.0, loss) for _ in range(trials - 1)), Trial(1.0, loss - ratio))
    return SearchResult((0,), Line(loss, 1.0), 1.0, Outcome(1.0, Status.ACCEPTED, loss - ratio), tried)


def searched_at(selection: armijo.OnDemand, results: Callable[[int], SearchResult], steps: int) -> list[int]:
    """The steps at which the selection searches, each with what `results` says of it."""
    memory, seen = selection.defaults(), []
    for step in range(steps):
        found = results(step)
        due = selection.due(lambda found=found: found.line.loss, step, memory)
        selection.remember([found] if due else [], step, memory)
        if due:
            assert selection.blocks([Line(1.0, 1.0)] * 2, step, memory) == ((0, 1),)
            seen.append(step)
    return seen


def test_on_demand_waits_twice_as_long_while_first_trials_are_accepted() -> None:
    seen = searched_at(armijo.OnDemand(8, always=3), lambda step: a_search(1.0), 50)
    assert seen == [0, 1, 2, 10, 18, 26, 34, 42]
    assert searched_at(armijo.OnDemand(8, always=0), lambda step: a_search(1.0), 31) == [0, 2, 6, 14, 22, 30]
    assert searched_at(armijo.OnDemand(1, always=0), lambda step: a_search(1.0), 5) == [0, 1, 2, 3, 4]


def test_on_demand_searches_more_often_after_a_rejection_and_after_a_drop_of_the_gain_ratio() -> None:
    for found in (a_search(1.0, trials=2), a_search(1.0, ratio=0.2)):
        seen = searched_at(armijo.OnDemand(8, 0), lambda step, found=found: found if step == 14 else a_search(1.0), 40)
        assert seen == [0, 2, 6, 14, 18, 26, 34]
    rejected = searched_at(armijo.OnDemand(8, 0), lambda step: a_search(1.0, trials=2), 6)
    assert rejected == [0, 1, 2, 3, 4, 5]


def test_on_demand_goes_on_where_the_selection_inside_is_not_due() -> None:
    selection = armijo.OnDemand(4, 0, selection=armijo.Every(3))
    seen = searched_at(selection, lambda step: a_search(1.0), 60)
    assert len(seen) > 4
    assert max(later - one for one, later in pairwise(seen)) <= 12


def test_on_demand_searches_where_the_loss_surprises() -> None:
    def losses(step: int) -> SearchResult:
        return a_search(5.0 if step == 17 else 1.0 + 0.1 * (-1) ** step)

    assert searched_at(armijo.OnDemand(8, 5), losses, 32) == [0, 1, 2, 3, 4, 12, 17, 25]
    assert searched_at(armijo.OnDemand(8, 5, surprise=1e9), losses, 32) == [0, 1, 2, 3, 4, 12, 20, 28]


@every(
    "arguments",
    [
        {"every": 0},
        {"every": 1.5},
        {"always": -1},
        {"surprise": 0.0},
        {"surprise": "much"},
        {"selection": armijo.Jointly},
    ],
    ids=str,
)
def test_on_demand_refuses_what_it_cannot_count(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        armijo.OnDemand(**arguments)


@every("merging", MERGINGS, ids=named)
@given(step_sizes=st.lists(st.sampled_from([1e-13, 1e-5, 1e-3, 1e-1]), min_size=1, max_size=9))
def test_a_merge_names_two_places_and_lies_between_them(merging: Any, step_sizes: list[float]) -> None:
    merge = merging.propose(step_sizes, merging.defaults())
    if merge is None:
        return
    assert len(step_sizes) > 2
    assert 0 <= merge.kept < merge.absorbed < len(step_sizes)
    low, high = sorted((step_sizes[merge.kept], step_sizes[merge.absorbed]))
    assert low <= merge.step_size <= high
    others = [s for place, s in enumerate(step_sizes) if place not in (merge.kept, merge.absorbed)]
    if isinstance(merging, MergeNeighbours):
        assert merge.absorbed == merge.kept + 1
        assert low <= min(others)
    else:
        assert high <= min(others)


def test_ties_merge_the_earlier_places() -> None:
    merge = MergeSmallest(1.0).propose([0.5, 0.1, 0.1, 0.1], {})
    assert merge is not None
    assert (merge.kept, merge.absorbed) == (1, 2)
    assert MergeSmallest(1.0).propose([0.1, 0.1], {}) is None
    assert MergeSmallest(0.1).propose([0.1, 0.1, 0.1], {}) is None


@pytest.mark.parametrize("kind", [MergeSmallest, MergeNeighbours])
def test_a_merging_is_one_of_three_rules(kind: Any) -> None:
    sizes = [0.5, 0.02, 0.3, 0.08]
    # The second smallest is 0.08; of the neighbours the smaller is 0.3.
    other = 0.08 if kind is MergeSmallest else 0.3
    for rule, expected in (
        ("mean", (0.02 + other) / 2),
        ("geometric_mean", math.sqrt(0.02 * other)),
        ("minimum", 0.02),
    ):
        assert kind(0.1, rule).propose(sizes, {}).step_size == pytest.approx(expected)
    with pytest.raises(ConfigurationError, match="threshold"):
        kind(math.nan)
    with pytest.raises(ConfigurationError, match="mean, geometric_mean, minimum"):
        kind(0.1, "median")
    assert kind(0.1).propose(sizes[:2], {}) is None
    assert kind(0.01).propose(sizes, {}) is None


@every("partition", PARTITIONS, ids=named)
@given(labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=8))
def test_every_group_lies_in_exactly_one_component(partition: Any, labels: list[str]) -> None:
    components = partition.components(labels)
    assert sorted(index for component in components for index in component.groups) == list(range(len(labels)))
    assert [component.groups[0] for component in components] == sorted(c.groups[0] for c in components)


quadratics = [(1.0, 2.0, 0.3), (5.0, 0.5, 0.01), (2.0, 30.0, 0.2)]


@every(
    ("criterion", "plain"),
    [(armijo.SmoothedArmijo(0.3, 0.0), Armijo(0.3)), (armijo.NonMonotoneArmijo(0.3, 0.0), Armijo(0.3))],
)
def test_without_memory_a_criterion_is_armijos(criterion: Any, plain: Armijo) -> None:
    memory = criterion.defaults()
    for loss, slope, step_size in quadratics:
        line = Line(loss, slope)
        for change in (-1.0, -0.1, 0.0, 0.1):
            trial = Trial(step_size, loss + change * step_size * slope)
            expected = plain.violation(line, trial, {})
            assert criterion.violation(line, trial, memory) == pytest.approx(expected, abs=1e-12)
        criterion.remember(line, Trial(step_size, 0.9 * loss), memory)


def test_a_smoothed_criterion_judges_the_mean_of_the_searches() -> None:
    criterion = armijo.SmoothedArmijo(0.5, 0.5)
    memory = criterion.defaults()
    line = Line(loss=2.0, slope=1.0)
    criterion.remember(line, Trial(1.0, 1.0), memory)
    assert memory == {"mean_decrease": 0.5, "mean_slope": 0.5}
    # Mean decrease .25 + .5·(2 - f), asked for ½·1·(.25 + .5): f may be 1.75.
    assert criterion.violation(line, Trial(1.0, 1.75), memory) == 0
    assert criterion.violation(line, Trial(1.0, 1.85), memory) == pytest.approx(0.05)
    assert criterion.violation(line, Trial(1.0, math.inf), memory) == math.inf
    criterion.remember(line, None, memory)
    assert memory == {"mean_decrease": 0.5, "mean_slope": 0.5}


def test_a_non_monotone_criterion_starts_from_the_mean_loss_where_that_is_higher() -> None:
    criterion = armijo.NonMonotoneArmijo(0.5, 1.0)
    memory = criterion.defaults()
    criterion.remember(Line(4.0, 1.0), None, memory)
    criterion.remember(Line(2.0, 1.0), None, memory)
    assert memory == {"mean_loss": 3.0, "mean_weight": 2.0}
    # (4 + 2 + 1.5)/3 = 2.5, less ½·1·1.
    assert criterion.violation(Line(1.5, 1.0), Trial(1.0, 2.0), memory) == 0
    assert criterion.violation(Line(1.5, 1.0), Trial(1.0, 2.25), memory) == pytest.approx(0.25)
    # Above the mean the loss itself counts.
    assert criterion.violation(Line(9.0, 1.0), Trial(1.0, 8.5), memory) == 0
    assert criterion.violation(Line(9.0, 1.0), Trial(1.0, math.nan), memory) == math.inf


@every("first", [0.001, 0.1, 0.19])
def test_a_hypergradient_finds_the_step_size_that_ends_at_the_minimum(first: float) -> None:
    # On ½·κ·w² with κ = 10 a step from w along g ends at (1 - η·κ)·w, and so ⟨h, g⟩ = S·(1 - η·κ).
    guess = armijo.Hypergradient(first, rate=0.2, limit=1.0, mean=0.0, share=math.inf)
    memory, step_size, ahead = guess.defaults(), first, 0.0
    for _ in range(60):
        line = Line(1.0, 7.0, derivatives=Derivatives({"last_gradient": ahead}))
        step_size = guess.next(step_size, line, memory)
        ahead = 7.0 * (1 - 10 * step_size)
    assert step_size == pytest.approx(0.1, rel=1e-2)


def test_a_hypergradient_reads_what_the_last_step_did_in_an_optimizer() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    guess = armijo.Hypergradient(0.01, rate=0.5, limit=1.0, mean=0.0, share=math.inf)
    search, direction = Backtracking(guess=guess), armijo.KeepLastGradient(armijo.GradientDirection())
    optimizer = armijo.LineSearch([weight], direction=direction, search=search, selection=Never())
    optimizer.step(lambda: (weight**2).sum())
    optimizer.step(lambda: (weight**2).sum())
    # g = 2·w, so the second gradient is the first one times 1 - 2·η.
    assert optimizer.report is not None
    assert optimizer.report.forwards == 1
    assert optimizer.param_groups[0]["step_size"] == pytest.approx(0.01 * math.exp(0.5 * 0.98))


@every(
    ("loss", "least_loss", "share", "expected"),
    [
        (3.0, 0.0, 0.5, 0.375),  # η·S = ½·(f - f*)
        (3.0, 0.0, 1.0, 0.75),
        (3.0, 1.0, 1.0, 0.5),
        (-1.0, -3.0, 1.0, 0.5),
        (9.0, 0.0, 0.5, 1.0),  # it promises less than that
        (3.0, 3.0, 1.0, 1.0),  # not above f*
        (3.0, 4.0, 1.0, 1.0),
        (3.0, 0.0, math.inf, 1.0),
    ],
)
def test_a_hypergradient_tries_no_step_that_promises_more_than_a_share_of_what_the_loss_can_fall(
    loss: float, least_loss: float, share: float, expected: float
) -> None:
    guess = armijo.Hypergradient(1.0, share=share, least_loss=least_loss)
    line = Line(loss, 4.0, derivatives=Derivatives({"last_gradient": 0.0}))
    assert guess.next(1.0, line, guess.defaults()) == pytest.approx(expected)


def test_components_promise_together_what_one_may_promise_alone() -> None:
    guess, derivatives = armijo.Hypergradient(1.0, share=0.5), Derivatives({"last_gradient": 0.0})
    lines = [Line(3.0, slope, derivatives=derivatives, components=3) for slope in (4.0, 40.0, 7.0)]
    assert sum(guess.next(1.0, line, guess.defaults()) * line.slope for line in lines) == pytest.approx(0.5 * 3.0)


def test_components_with_gradients_share_what_a_step_may_promise() -> None:
    weights = [torch.nn.Parameter(torch.full((2,), value, dtype=torch.float64)) for value in (1.0, 3.0, 5.0)]
    optimizer = armijo.LineSearch(
        [{"params": [w], "component": str(i)} for i, w in enumerate(weights)],
        direction=armijo.KeepLastGradient(armijo.GradientDirection()),
        search=Backtracking(guess=armijo.Hypergradient(1e3)),
        selection=armijo.Jointly(),
    )
    optimizer.step(lambda: (weights[0] ** 2).sum() + (weights[1] ** 2).sum())  # the third has no gradient
    assert optimizer.report is not None
    (search,) = optimizer.report.searches
    promised = search.first_step_size * search.slope
    assert promised == pytest.approx(0.5 * optimizer.report.loss)


def test_a_hypergradient_weighs_its_steps_by_what_they_promised() -> None:
    guess = armijo.Hypergradient(0.1, rate=0.3, limit=0.8, mean=0.6, share=math.inf)
    memory, step_size, last_slope, along, promise = guess.defaults(), 0.1, 0.0, 0.0, 0.0
    for k, (slope, ahead) in enumerate([(2.0, 9.0), (50.0, 1.0), (3.0, -20.0), (0.5, 2.0), (1.0, 8.0)]):
        expected = step_size
        if k:
            along = 0.6 * along + 0.4 * step_size * ahead
            promise = 0.6 * promise + 0.4 * step_size * last_slope
            expected *= math.exp(0.3 * max(-0.8, min(along / promise, 0.8)))
        line = Line(1.0, slope, derivatives=Derivatives({"last_gradient": ahead}))
        before, step_size, last_slope = step_size, guess.next(step_size, line, memory), slope
        assert step_size == pytest.approx(expected)
        # The fourth step agrees with the one before; the long third one, of a slope of 50, still counts for more.
        assert (step_size < before) == (k in (2, 3))
    assert abs(along / promise) < 0.8


@every(("slope", "curvature", "step_size"), [(1.0, 2.0, 0.3), (5.0, 40.0, 0.01), (2.0, 30.0, 0.2)])
def test_a_parabola_finds_a_quadratics_minimum(slope: float, curvature: float, step_size: float) -> None:
    guess = armijo.Parabola(beta=0.0, reach=1e6)
    memory = guess.defaults()
    line = Line(3.0, slope)
    loss = 3.0 - slope * step_size + 0.5 * curvature * step_size**2
    guess.remember(line, Trial(step_size, loss), memory)
    assert guess.expected(step_size, memory) == pytest.approx(slope / curvature)
    assert guess.next(step_size, line, memory) == pytest.approx(slope / curvature)
    assert guess.next(step_size, line, memory) == step_size, "the factor counts once"
    half = armijo.Parabola(beta=0.5, reach=1e6)
    half.remember(line, Trial(step_size, loss), memory)
    assert half.next(step_size, line, memory) == pytest.approx(math.sqrt(step_size * slope / curvature))


def test_a_parabola_without_a_minimum_reaches_no_further_than_it_may() -> None:
    guess, line = armijo.Parabola(beta=0.0, reach=4.0), Line(3.0, 1.0)
    memory = guess.defaults()
    for loss, factor in ((2.0, 4.0), (1.5, 4.0), (2.9, 0.5 / 0.9), (9e9, 0.25)):
        guess.remember(line, Trial(1.0, loss), memory)
        assert guess.next(1.0, line, memory) == pytest.approx(factor)
    for trial in (None, Trial(1.0, math.inf), Trial(0.0, 1.0)):
        guess.remember(line, trial, memory)
        assert guess.next(1.0, line, memory) == 1.0


def test_polyaks_step_size_is_shortened_by_what_was_rejected_and_recovers() -> None:
    guess = armijo.Polyak(c=0.5, least_loss=1.0, longest=10.0, growth=2.0)
    memory = guess.defaults()
    line = Line(loss=3.0, slope=1.0)
    assert guess.next(7.0, line, memory) == 4.0
    guess.remember(line, Trial(1.0, 2.0), memory)  # two contractions by ½
    assert guess.next(7.0, line, memory) == 2.0
    guess.remember(line, Trial(2.0, 2.0), memory)
    assert guess.next(7.0, line, memory) == 4.0
    guess.remember(line, Trial(4.0, 2.0), memory)
    assert guess.next(7.0, line, memory) == 4.0, "never above Polyak's"
    assert guess.next(7.0, Line(1e3, 1.0), memory) == 10.0
    for nothing in (Line(0.5, 1.0), Line(3.0, 0.0), Line(3.0, 1e-320)):
        assert guess.next(7.0, nothing, memory) == 7.0


@every(
    ("part", "arguments"),
    [
        (armijo.SmoothedArmijo, {"c": 1.0}),
        (armijo.SmoothedArmijo, {"beta": 1.0}),
        (armijo.SmoothedArmijo, {"beta": "0.9"}),
        (armijo.NonMonotoneArmijo, {"c": 0.0}),
        (armijo.NonMonotoneArmijo, {"xi": 1.1}),
        (armijo.Hypergradient, {"initial": math.inf}),
        (armijo.Hypergradient, {"rate": 0.0}),
        (armijo.Hypergradient, {"limit": -0.5}),
        (armijo.Hypergradient, {"mean": 1.0}),
        (armijo.Hypergradient, {"least_loss": math.inf}),
        (armijo.Hypergradient, {"least_loss": -math.inf}),
        (armijo.Hypergradient, {"share": 0.0}),
        (armijo.Parabola, {"initial": 0.0}),
        (armijo.Parabola, {"beta": 1.0}),
        (armijo.Parabola, {"reach": 1.0}),
        (armijo.Polyak, {"c": 0.0}),
        (armijo.Polyak, {"least_loss": -math.inf}),
        (armijo.Polyak, {"longest": math.inf}),
        (armijo.Polyak, {"growth": 0.5}),
    ],
)
def test_numbers_out_of_range_are_refused(part: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"must be|needs|lies in"):
        part(**arguments)


def test_a_component_goes_a_part_of_the_way_to_the_mean_of_all() -> None:
    guess, derivatives = armijo.Hypergradient(share=math.inf, pull=0.25), Derivatives({"last_gradient": 0.0})
    line = Line(1.0, 1.0, derivatives=derivatives, components=2, mean_step_size=16.0)
    assert guess.next(1.0, line, guess.defaults()) == pytest.approx(2.0)
    alone = Line(1.0, 1.0, derivatives=derivatives)
    assert guess.next(1.0, alone, guess.defaults()) == 1.0
    for extreme, mean in ((1e-300, 1e290), (1e300, 1e-290)):
        far = Line(1.0, 1.0, derivatives=derivatives, components=2, mean_step_size=mean)
        assert 0 < guess.next(extreme, far, guess.defaults()) < math.inf
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(armijo.ConfigurationError, match="pull is"):
            armijo.Hypergradient(pull=bad)


def _pulled(weights: list[torch.nn.Parameter], target: torch.Tensor, scale: float) -> torch.Tensor:
    first, second, *others = weights
    found = 1 + (first - target).square().mean() + 3 * (second - target).square().mean()
    return found + scale * sum((other.sum() for other in others), torch.zeros(()))


@every("bound", [{"max_step_size": 1e-8}, {"silent": True}])
def test_what_cannot_follow_does_not_draw_the_others(bound: dict[str, Any]) -> None:
    """A component at its cap, or one without a gradient, is not in the mean that the others are pulled to."""
    sizes = []
    for extra in (False, True):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.ones(4, dtype=torch.float64)) for _ in range(3 if extra else 2)]
        groups: list[dict[str, Any]] = [{"params": [w], "component": str(i)} for i, w in enumerate(weights)]
        if extra and "max_step_size" in bound:
            groups[2]["max_step_size"] = bound["max_step_size"]
        scale = 0.0 if "silent" in bound else 1e-9
        optimizer = armijo.PLASLS(groups)
        for _ in range(60):
            target = torch.randn(4, dtype=torch.float64)
            optimizer.step(functools.partial(_pulled, weights, target, scale))
        sizes.append([group["step_size"] for group in optimizer.param_groups[:2]])
    for without, beside in zip(*sizes, strict=True):
        assert without / 3 < beside < without * 3
