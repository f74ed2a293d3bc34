"""What every criterion, search, guess, turn, merging and partition must do, whichever it is."""

import dataclasses
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armijo.components.merging import MergeNeighbours, MergeSmallest, NeverMerge
from armijo.components.partition import ByLabel, Together
from armijo.components.turns import Cycle, EachInTurn, Jointly
from armijo.errors import ConfigurationError
from armijo.search.backtracking import Backtracking, FixedStep, PaperBacktracking
from armijo.search.criteria import Armijo
from armijo.search.guesses import Growth
from armijo.search.records import Line, Outcome, Status, Trial

CRITERIA = [Armijo(0.1), Armijo(0.5)]
SEARCHES = [FixedStep(0.3), Backtracking(), PaperBacktracking(), Backtracking(0.5, 8), PaperBacktracking(0.5, 5)]
GUESSES = [Growth(), Growth(1.0, 2.0), Growth(0.01, 1.0, least_slope=1e-8)]
TURNS = [Jointly(), Cycle(), Cycle(0), EachInTurn(), EachInTurn(0)]
MERGINGS = [
    NeverMerge(),
    MergeSmallest(),
    *(kind(1e-2, rule) for kind in (MergeSmallest, MergeNeighbours) for rule in ("mean", "geometric_mean", "minimum")),
]
PARTITIONS = [ByLabel(), Together()]

positive = st.floats(1e-6, 1e6)
every = pytest.mark.parametrize


def named(part: object) -> str:
    return repr(part)


@every("part", [*CRITERIA, *SEARCHES, *GUESSES, *TURNS, *MERGINGS, *PARTITIONS], ids=named)
def test_parts_are_frozen_values(part: Any) -> None:
    assert pickle.loads(pickle.dumps(part)) == part
    assert hash(part) == hash(dataclasses.replace(part))
    for field in dataclasses.fields(part):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field.name, None)


@every("criterion", CRITERIA, ids=named)
@given(slope=positive, curvature=positive, start=st.floats(-1e3, 1e3))
def test_no_violation_at_a_quadratics_minimiser_nor_near_the_start(
    criterion: Any, slope: float, curvature: float, start: float
) -> None:
    line = Line(start, slope)
    for share in (1.0, 1e-3):
        step_size = share * slope / curvature
        loss = start - slope * step_size + 0.5 * curvature * step_size**2
        rounding = 8 * math.ulp(abs(start) + abs(loss) + slope * step_size)
        assert criterion.violation(line, Trial(step_size, loss)) <= rounding


@every("criterion", CRITERIA, ids=named)
def test_nan_and_infinity_violate_without_end_and_no_decrease_violates(criterion: Any) -> None:
    line = Line(1.0, 1.0)
    assert criterion.violation(line, Trial(0.1, math.nan)) == math.inf
    assert criterion.violation(line, Trial(0.1, math.inf)) == math.inf
    assert criterion.violation(line, Trial(0.1, 1.0)) > 0


@every("c", [0, 1, -0.1, math.nan])
def test_armijo_refuses_a_constant_out_of_range(c: float) -> None:
    with pytest.raises(ConfigurationError, match="0 < c < 1"):
        Armijo(c)


@every("search", SEARCHES, ids=named)
@given(curvature=st.floats(1e-4, 1e7), first=st.floats(1e-4, 10))
def test_an_accepted_step_size_was_evaluated_and_satisfies_the_criterion(
    search: Any, curvature: float, first: float
) -> None:
    line, criterion, seen = Line(1.0, 1.0), Armijo(0.1), {}

    def evaluate(step_size: float) -> float:
        seen[step_size] = 1.0 - step_size + 0.5 * curvature * step_size**2
        return seen[step_size]

    outcome = search.search(line, first, evaluate, criterion)
    assert outcome.trials == len(seen)
    if outcome.status is Status.ACCEPTED:
        assert outcome.loss == seen[outcome.step_size]
        assert criterion.violation(line, Trial(outcome.step_size, outcome.loss)) == 0
        assert 0 < outcome.step_size <= first
    else:
        assert outcome.loss is None


@every("search", [s for s in SEARCHES if not isinstance(s, FixedStep)], ids=named)
def test_a_search_that_cannot_succeed_ends(search: Any) -> None:
    calls: list[float] = []

    def evaluate(step_size: float) -> float:
        calls.append(step_size)
        return 1.0 if step_size == 0 else math.inf

    outcome = search.search(Line(1.0, 1.0), 0.1, evaluate, Armijo())
    assert outcome.status is Status.EXHAUSTED
    assert outcome.trials == len(calls)
    assert search.max_trials <= len(calls) <= search.max_trials + 1


@every("search", [s for s in SEARCHES if not isinstance(s, FixedStep)], ids=named)
@every("line", [Line(0.0, 1.0), Line(1.0, 0.0), Line(1.0, 9e-9)])
def test_nothing_is_evaluated_where_there_is_nothing_to_search(search: Any, line: Line) -> None:
    assert search.search(line, 0.1, pytest.fail, Armijo()) == Outcome(0.1, Status.SKIPPED)


def test_backtracking_tells_a_loss_that_does_not_repeat() -> None:
    outcome = Backtracking().search(Line(1.0, 1.0), 0.1, lambda step_size: 2.0, Armijo())
    assert outcome == Outcome(0.0, Status.NONDETERMINISTIC, 26)


def test_backtracking_gives_up_where_rounding_would_decide() -> None:
    lucky = Line(loss=0.7, slope=1e-6, resolution=0.7 * 2**-24)
    tried: list[float] = []

    def evaluate(step_size: float) -> float:
        tried.append(step_size)
        return 0.7 if step_size == 0 or step_size > 1e-6 else 0.7 - 2**-24

    outcome = Backtracking().search(lucky, 0.1, evaluate, Armijo())
    assert (outcome.step_size, outcome.status) == (0.0, Status.EXHAUSTED)
    assert all(step_size * lucky.slope >= lucky.resolution for step_size in tried[:-1])
    assert PaperBacktracking(max_trials=200).search(lucky, 0.1, evaluate, Armijo()).step_size < 1e-6


@every("edge", [10.0**-k for k in range(1, 9)])
def test_backtracking_is_short_from_far_away_and_lands_near_the_edge(edge: float) -> None:
    outcome = Backtracking().search(
        Line(1.0, 1.0), 0.1, lambda step_size: 1 - step_size if step_size <= edge else math.inf, Armijo()
    )
    assert outcome.status is Status.ACCEPTED
    assert outcome.trials <= 22
    assert 0.9**3 * edge <= outcome.step_size <= edge


def test_backtracking_tries_what_the_papers_search_tries_first() -> None:
    tried: dict[str, list[float]] = {}
    for search in (Backtracking(), PaperBacktracking()):
        seen = tried[type(search).__name__] = []

        def evaluate(step_size: float, seen: list[float] = seen) -> float:
            seen.append(step_size)
            return 1.0 if step_size > 0.091 else 0.0

        search.search(Line(1.0, 1.0), 0.1, evaluate, Armijo())
    assert tried["Backtracking"] == tried["PaperBacktracking"] == [0.1, 0.1 * 0.9]


@every("bad", [{"shrink": 0}, {"shrink": 1}, {"max_trials": 0}, {"shrink": math.nan}])
@every("kind", [Backtracking, PaperBacktracking])
def test_searches_refuse_numbers_out_of_range(kind: Any, bad: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        kind(**bad)


@every("guess", GUESSES, ids=named)
@given(step_size=positive, slope=st.floats(0, 1e3))
def test_a_guess_is_positive_and_finite(guess: Any, step_size: float, slope: float) -> None:
    assert guess.initial > 0
    assert 0 < guess.next(step_size, Line(1.0, slope)) < math.inf


def test_growth_rests_where_the_slope_vanishes() -> None:
    assert Growth(least_slope=1e-8).next(0.5, Line(1.0, 0.0)) == 0.5
    assert Growth(factor=2.0).next(0.5, Line(1.0, 0.0)) == 1.0
    for bad in ({"initial": 0}, {"initial": math.inf}, {"factor": 0.5}, {"factor": math.nan}):
        with pytest.raises(ConfigurationError):
            Growth(**bad)


@every("turn", TURNS, ids=named)
@given(n=st.integers(1, 12), start=st.integers(0, 40))
def test_blocks_are_disjoint_places_and_the_next_turn_is_one(turn: Any, n: int, start: int) -> None:
    place, searched = 0, set()
    for step in range(start, start + n):
        blocks = turn.blocks(n, place, step)
        places = [p for block in blocks for p in block]
        assert blocks
        assert len(places) == len(set(places))
        assert set(places) <= set(range(n))
        searched |= set(places)
        place = turn.advance(n, place, step)
        assert 0 <= place < n
    assert searched == set(range(n)), "within n steps every component is searched"


def test_the_cycle_starts_with_the_first_component_after_the_joint_steps() -> None:
    turn, place, seen = Cycle(joint_steps=2), 0, []
    for step in range(7):
        seen.append(turn.blocks(3, place, step))
        place = turn.advance(3, place, step)
    assert seen == [((0, 1, 2),), ((0, 1, 2),), ((0,),), ((1,),), ((2,),), ((0,),), ((1,),)]
    with pytest.raises(ConfigurationError):
        Cycle(-1)


@every("merging", MERGINGS, ids=named)
@given(step_sizes=st.lists(st.sampled_from([1e-13, 1e-5, 1e-3, 1e-1]), min_size=1, max_size=9))
def test_a_merge_names_two_places_and_lies_between_them(merging: Any, step_sizes: list[float]) -> None:
    merge = merging.propose(step_sizes)
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
    merge = MergeSmallest(1.0).propose([0.5, 0.1, 0.1, 0.1])
    assert merge is not None
    assert (merge.kept, merge.absorbed) == (1, 2)
    assert MergeSmallest(1.0).propose([0.1, 0.1]) is None
    assert MergeSmallest(0.1).propose([0.1, 0.1, 0.1]) is None


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
        assert kind(0.1, rule).propose(sizes).step_size == pytest.approx(expected)
    with pytest.raises(ConfigurationError, match="threshold"):
        kind(math.nan)
    with pytest.raises(ConfigurationError, match="mean, geometric_mean, minimum"):
        kind(0.1, "median")
    assert kind(0.1).propose(sizes[:2]) is None
    assert kind(0.01).propose(sizes) is None


@every("partition", PARTITIONS, ids=named)
@given(labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=8))
def test_every_group_lies_in_exactly_one_component(partition: Any, labels: list[str]) -> None:
    components = partition.components(labels)
    assert sorted(index for component in components for index in component.groups) == list(range(len(labels)))
    assert [component.groups[0] for component in components] == sorted(c.groups[0] for c in components)
