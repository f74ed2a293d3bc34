"""`armijo.paper` against the slow literal reference: the same evaluations, in the same order, to 1e-8.

Each case names the branches it is there for, and the reference's own record must show that they were reached.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import armijo
from reference import paper_reference as reference

# ------------------------------------------------------------------------------------------------------------ problems

Loss = Callable[[Sequence[Tensor], int], Tensor]
"""From the parameters and the number of the call of `step` (from 0) to the loss."""


@dataclass
class Problem:
    """Initial values, parameter groups as (component, indices of parameters), and the loss."""

    values: list[Tensor]
    groups: list[tuple[str, list[int]]]
    loss: Loss

    def but(self, loss: Loss) -> Problem:
        return Problem(self.values, self.groups, loss)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classification(seed: int) -> Problem:
    """Three classes, one label in five wrong, another mini-batch at every step, four layers of several parameters."""
    random = generator(seed)
    inputs = torch.randn(96, 6, generator=random, dtype=torch.float64)
    labels = (inputs @ torch.randn(6, 3, generator=random, dtype=torch.float64)).argmax(1)
    wrong = torch.rand(96, generator=random) < 0.2
    labels = torch.where(wrong, torch.randint(3, (96,), generator=random), labels)
    widths = (6, 7, 5, 4, 3)
    values: list[Tensor] = []
    for before, after in itertools.pairwise(widths):
        values.append(torch.randn(after, before, generator=random, dtype=torch.float64) / math.sqrt(before))
        values.append(0.1 * torch.randn(after, generator=random, dtype=torch.float64))

    def loss(w: Sequence[Tensor], k: int) -> Tensor:
        rows = torch.arange(16) * 5 + 7 * k
        hidden = inputs[rows % 96]
        for layer in range(4):
            hidden = torch.nn.functional.linear(hidden, w[2 * layer], w[2 * layer + 1])
            hidden = torch.tanh(hidden) if layer < 3 else hidden
        return torch.nn.functional.cross_entropy(hidden, labels[rows % 96])

    groups = [("one", [0, 1]), ("two", [2, 3]), ("three", [4, 5]), ("four", [6, 7])]
    return Problem(values, groups, loss)


def quadratic(seed: int, n: int = 4) -> Problem:
    """Curvatures from 1 to 1e4 over n components, coupled, around another minimum at every step."""
    random = generator(seed)
    curvatures = torch.logspace(0, 4, 3 * n, dtype=torch.float64)
    rotation = torch.eye(3 * n, dtype=torch.float64) + 0.05 * torch.randn(
        3 * n, 3 * n, generator=random, dtype=torch.float64
    )
    noise = 0.05 * torch.randn(7, 3 * n, generator=random, dtype=torch.float64)
    values = [torch.randn(3, generator=random, dtype=torch.float64) for _ in range(n)]

    def loss(w: Sequence[Tensor], k: int) -> Tensor:
        away = rotation @ torch.cat([p.reshape(-1) for p in w]) - noise[k % 7]
        return 0.5 * (curvatures * away**2).sum() + 1

    return Problem(values, [(f"c{place}", [place]) for place in range(n)], loss)


def bowls_of(widths: Sequence[float]) -> Callable[[int], Problem]:
    """A component for each width, in which its step sizes are measured: narrow ones need small steps."""

    def bowls(seed: int) -> Problem:
        random = generator(seed)
        values = [width * (1 + torch.rand(4, generator=random, dtype=torch.float64)) for width in widths]

        def loss(w: Sequence[Tensor], k: int) -> Tensor:
            scaled = torch.cat([p / width for p, width in zip(w, widths, strict=True)])
            return 0.5 * ((scaled - 0.1 * math.sin(k)) ** 2).sum() + 0.1 * scaled.sum() ** 2

        return Problem(values, [(label, [place]) for place, label in enumerate("abcdefgh"[: len(widths)])], loss)

    return bowls


bowls = bowls_of((0.3, 1e-3, 1.0, 0.03, 0.01))
narrow_first = bowls_of((1e-3, 0.3, 0.03, 1.0, 0.01))


def scattered(seed: int) -> Problem:
    """Components whose groups do not lie together, one parameter that is never used and one used at odd steps."""
    problem = classification(seed)

    def loss(w: Sequence[Tensor], k: int) -> Tensor:
        value = problem.loss(w, k)
        return value + 0.1 * ((w[9] - 1) ** 2).sum() if k % 2 else value

    unused, sometimes = torch.ones(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    groups = [("x", [0]), ("y", [1, 2, 8]), ("x", [3, 9]), ("z", [4, 5]), ("y", [6]), ("z", [7])]
    return Problem([*problem.values, unused, sometimes], groups, loss)


def idle_components(seed: int) -> Problem:
    """Between four components that matter: one without any gradient, one with a zero one, one with a negligible one."""
    problem = classification(seed)
    more = [torch.ones(2, dtype=torch.float64) for _ in range(3)]

    def loss(w: Sequence[Tensor], k: int) -> Tensor:
        return problem.loss(w, k) + 0 * w[9].sum() + 1e-10 * w[10].sum()

    groups = [("one", [0, 1]), ("none", [8]), ("two", [2, 3]), ("zero", [9]), ("three", [4, 5]), ("faint", [10])]
    return Problem([*problem.values, *more], [*groups, ("four", [6, 7])], loss)


def faint_batches(seed: int) -> Problem:
    """Every fourth batch has nearly no slope, under S < 1e-8 even for all components together."""
    problem = classification(seed)
    return problem.but(lambda w, k: problem.loss(w, k) * (1e-7 if k % 4 == 2 else 1))


def settling(curvature: float) -> Callable[[int], Problem]:
    """The slope falls slowly past 1e-8."""

    def settling(seed: int) -> Problem:
        random = generator(seed)
        values = [1e-3 * (1 + torch.rand(2, generator=random, dtype=torch.float64)) for _ in range(3)]

        def loss(w: Sequence[Tensor], k: int) -> Tensor:
            return 0.5 * curvature * (torch.cat(list(w)) ** 2).sum()

        return Problem(values, [("a", [0]), ("b", [1]), ("c", [2])], loss)

    return settling


def zero_losses(seed: int) -> Problem:
    """Every third loss is exactly zero, with an ordinary gradient."""
    problem = classification(seed)

    def loss(w: Sequence[Tensor], k: int) -> Tensor:
        value = problem.loss(w, k)
        return value - value.detach() if k % 3 == 1 else value

    return problem.but(loss)


def broken_batches(seed: int) -> Problem:
    """A NaN, an infinite and a negatively infinite loss, in the joint steps and after."""
    problem = classification(seed)
    broken = {0: math.nan, 3: math.inf, 4: math.nan, 17: math.nan, 18: -math.inf, 29: math.inf}
    return problem.but(lambda w, k: problem.loss(w, k) * broken.get(k, 1.0))


def steep_walls(seed: int) -> Problem:
    """Too long a trial leaves the domain of a logarithm (NaN), or overflows an exponential (infinity)."""
    random = generator(seed)
    values = [0.5 + torch.rand(2, generator=random, dtype=torch.float64) for _ in range(3)]

    def loss(w: Sequence[Tensor], k: int) -> Tensor:
        first, second, third = w
        wall = (0.5 * first**2 - 0.01 * torch.log(first + 25)).sum()
        explosion = torch.exp(2 * (second - 0.1 * math.cos(k)) ** 2).sum()
        return wall + explosion + ((third + 1) ** 2).sum()

    return Problem(values, [("log", [0]), ("exp", [1]), ("square", [2])], loss)


def walled_trials(seed: int) -> Problem:
    """Trials alone meet a wall, another one at every step, NaN or infinite: the baselines stay finite."""
    problem = classification(seed)

    def loss(w: Sequence[Tensor], k: int) -> Tensor:
        value = problem.loss(w, k)
        tallest = max(p.detach().abs().max().item() for p in w)
        if torch.is_grad_enabled() or tallest < 1.5 + math.sin(3 * k):
            return value
        return value * (math.nan if k % 2 else math.inf)

    return problem.but(loss)


def kink(seed: int) -> Problem:
    """The first component begins where its gradient points uphill: no trial can pass, however short."""
    problem = quadratic(seed, n=2)

    def loss(w: Sequence[Tensor], k: int) -> Tensor:
        at = w[0]
        return problem.loss(w[1:], k) + 100 * torch.where(at >= 0, at, -10 * at).sum()

    values = [torch.zeros(2, dtype=torch.float64), *problem.values]
    return Problem(values, [("kink", [0]), ("left", [1]), ("right", [2])], loss)


def late_kink(seed: int) -> Problem:
    """The same kink in the last component, which plays no part until its first turn comes."""
    problem = quadratic(seed, n=2)

    def loss(w: Sequence[Tensor], k: int) -> Tensor:
        at = w[2]
        return problem.loss(w[:2], k) + (100 if k >= 2 else 0) * torch.where(at >= 0, at, -10 * at).sum()

    values = [*problem.values, torch.zeros(2, dtype=torch.float64)]
    return Problem(values, [("left", [0]), ("right", [1]), ("kink", [2])], loss)


def line(slope: float, n: int = 1, offset: float = 0.0) -> Callable[[int], Problem]:
    """A linear loss of n components of one number each."""

    def line(seed: int) -> Problem:
        values = [torch.ones(1, dtype=torch.float64) for _ in range(n)]
        return Problem(
            values,
            [(f"c{place}", [place]) for place in range(n)],
            lambda w, k: slope * torch.cat(list(w)).sum() + offset,
        )

    return line


# ------------------------------------------------------------------------------------------------------------ lockstep


class Watched:
    """A loss that writes down, for every evaluation, where it was made and what came out."""

    def __init__(self, problem: Problem) -> None:
        self.w = [value.clone().requires_grad_() for value in problem.values]
        self.loss = problem.loss
        self.k = 0
        self.points: list[list[Tensor]] = []
        self.losses: list[float] = []

    def __call__(self) -> Tensor:
        loss = self.loss(self.w, self.k)
        self.points.append([p.detach().clone() for p in self.w])
        self.losses.append(loss.item())
        return loss


def assert_numbers(actual: Sequence[float], expected: Sequence[float]) -> None:
    """Each to 1e-8 of itself; what is not finite alike."""
    assert list(actual) == pytest.approx(list(expected), rel=1e-8, abs=1e-15, nan_ok=True)


def assert_tensors(actual: Tensor, expected: Tensor) -> None:
    """To 1e-8 of the largest entry."""
    error, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert error <= 1e-8 * largest, f"off by {error:g} where the largest entry is {largest:g}"


SCHEDULES: dict[str, Callable[[int], Any]] = {
    "cycle": armijo.Cycle,
    "each": armijo.EachAlone,
    "joint": lambda joint_steps: armijo.Jointly(),
}


def lockstep(optimizer: str, problem: Problem, steps: int, **keywords: Any) -> list[reference.Record]:
    """Run both, compare everything after every step, and return what the reference wrote down."""
    theirs, ours = Watched(problem), Watched(problem)
    if optimizer == "PLASLS":
        labels = list(dict.fromkeys(label for label, _ in problem.groups))
        components = [
            (label, [theirs.w[index] for other, indices in problem.groups if other == label for index in indices])
            for label in labels
        ]
    else:
        components = [("all", theirs.w)]
    groups = [{"params": [ours.w[index] for index in indices], "component": label} for label, indices in problem.groups]
    literal = getattr(reference, optimizer)(components, theirs, **keywords)
    if optimizer == "PLASLS":
        schedule = SCHEDULES[keywords.pop("schedule", "cycle")]
        keywords["selection"] = schedule(keywords.pop("joint_steps", 6))
    library = getattr(armijo.paper, optimizer)(groups, **keywords)

    total = 0
    for k in range(steps):
        theirs.k = ours.k = k
        for watched in (theirs, ours):
            watched.points.clear()
            watched.losses.clear()
        record = literal.step()
        returned = library.step(ours)
        total += len(record.evaluations)

        # The same evaluations, at the same points, in the same order, and the same point after the step.
        assert_numbers(ours.losses, theirs.losses)
        assert_numbers([returned.item()], [record.f_k])
        for index, (p, q) in enumerate(zip(ours.w, theirs.w, strict=True)):
            assert_tensors(
                torch.stack([*(point[index] for point in ours.points), p.detach()]),
                torch.stack([*(point[index] for point in theirs.points), q.detach()]),
            )

        # The report.
        report = library.report
        assert report is not None
        assert_numbers([report.loss], [record.f_k])
        assert report.step == record.k + 1
        assert [component.label for component in report.components] == record.labels
        assert [component.status for component in report.components] == record.statuses
        assert [component.trials for component in report.components] == record.trials
        assert_numbers([component.step_size for component in report.components], record.etas)
        if "nonfinite" not in record.statuses:
            assert_numbers([component.slope for component in report.components], record.slopes)
        for component, loss in zip(report.components, record.accepted_losses, strict=True):
            if loss is None:
                assert component.trial_loss is None
            else:
                assert component.trial_loss is not None
                assert_numbers([component.trial_loss], [loss])
        assert list(report.merges) == record.merges
        assert report.forwards == len(record.evaluations)
        assert report.total_forwards == total

        # What a checkpoint would hold.
        component_of = {id(p.w): component for component in literal.components for p in component.parameters}
        parameter_of = {id(p.w): p for component in literal.components for p in component.parameters}
        for group, (_, indices) in zip(library.param_groups, problem.groups, strict=True):
            # The library takes the place modulo the number of components when it is used.
            assert group.get("cycle_place", 0) % len(library.components) == literal.turn
            assert group["steps"] == literal.k
            for index in indices:
                component, p = component_of[id(theirs.w[index])], parameter_of[id(theirs.w[index])]
                assert_numbers([group["step_size"]], [component.eta])
                if optimizer == "PLASLS":
                    assert group["component"] == component.label
                state = library.state.get(ours.w[index], {})
                assert float(state.get("step", 0.0)) == p.t
                if p.t > 0 and optimizer != "SGDSLS":
                    assert_tensors(state["exp_avg"], p.m)
                    assert_tensors(state["exp_avg_sq"], p.v)
    return literal.records


def branches(records: Sequence[reference.Record]) -> Counter[str]:
    """What a run went through, counted."""
    found: Counter[str] = Counter()
    for record in records:
        n, phase = len(record.labels), record.phase
        if record.statuses[0] == "nonfinite":
            found[f"{phase}: non-finite baseline"] += 1
            continue
        searched = {status for status in record.statuses if status != "unsearched"}
        for status in searched:
            reason = "" if status != "skipped" else ", f_k = 0" if record.f_k == 0 else ", gate"
            found[f"{phase}: {status}{reason}"] += 1
        if max(record.trials) > 1:
            found[f"{phase}: backtracked"] += 1
        if record.f_k < 0:
            found["negative loss"] += 1
        for _, loss in record.evaluations[1:]:
            found[f"{phase}: NaN trial"] += math.isnan(loss)
            found[f"{phase}: infinite trial"] += loss == math.inf
        if record.turn is not None and n >= 3 and record.turn == n - 1:
            found["wrap of three or more"] += 1
        if record.merges:
            (earlier, later), etas = record.merged_places[0], sorted(record.etas)
            found[f"{phase}: merge"] += 1
            found["merge: apart"] += later - earlier > 1
            found["merge: smallest is the later"] += record.etas[later] < record.etas[earlier]
            found["merge: later places move up"] += later < n - 1
            found["merge: tie for the smallest"] += etas[0] == etas[1]
            found["merge: tie for the second"] += etas[0] < etas[1] and etas[1] in etas[2:]
            found["merge: after the last place's turn"] += record.turn == n - 1
            found["merge: turn taken modulo"] += record.next_turn != record.next_turn_before_merging
        elif phase != "joint" and n == 2:
            found["two components left"] += 1
    return found


@dataclass
class Case:
    name: str
    optimizer: str
    problem: Callable[[int], Problem]
    reaches: list[str]
    steps: int = 60
    keywords: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1)

    @property
    def identity(self) -> str:
        schedule = self.keywords.get("schedule", "cycle") if self.optimizer == "PLASLS" else ""
        return "-".join(filter(None, (self.optimizer, schedule, self.problem.__name__, self.name)))


LIVELY = {"initial_step_size": 1.0, "growth": 1.07, "shrink": 0.7, "c": 0.3}
"""Step sizes that are far off at first and grow fast, so that searches fail all the time."""

GENTLE = {"initial_step_size": 0.3, "growth": 1.03, "shrink": 0.7, "c": 0.3}
"""The same for problems on which a rounding error would grow by itself until no two programs agree."""

FAR = {**LIVELY, "initial_step_size": 40.0}
EACH_IN_TURN = {"schedule": "each"}

BACKTRACKING = ["joint: accepted", "joint: backtracked"]
CYCLE = ["joint: accepted", "cycle: accepted", "cycle: backtracked"]
EACH = ["joint: accepted", "each: accepted", "each: backtracked"]
GATED = ["joint: skipped, gate", "cycle: skipped, gate"]
AT_ZERO = ["joint: skipped, f_k = 0", "cycle: skipped, f_k = 0"]
WRAP = "wrap of three or more"

CASES = [
    # The paper's numbers.
    Case("paper", "SGDSLS", classification, ["joint: accepted"], 80),
    Case("paper", "SGDSLS", quadratic, BACKTRACKING, 80),
    Case("paper", "AdamSLS", classification, BACKTRACKING, 120),
    Case("paper", "AdamSLS", quadratic, ["joint: accepted"], 80),
    Case("paper", "PLASLS", classification, ["joint: accepted", "cycle: accepted", WRAP], 120),
    Case("paper", "PLASLS", quadratic, ["joint: accepted", "cycle: accepted", WRAP], 80),
    # Faster ones.
    Case("lively", "SGDSLS", classification, BACKTRACKING, 80, LIVELY),
    Case("lively", "SGDSLS", bowls, BACKTRACKING, 60, LIVELY),
    Case("lively", "AdamSLS", classification, BACKTRACKING, 80, LIVELY),
    Case("lively", "AdamSLS", quadratic, BACKTRACKING, 60, LIVELY),
    Case("lively", "PLASLS", classification, [*CYCLE, WRAP], 80, GENTLE),
    Case("lively", "PLASLS", quadratic, [*CYCLE, WRAP], 80, LIVELY),
    Case("cycle at once", "PLASLS", bowls, ["cycle: accepted", WRAP], 60, {**LIVELY, "joint_steps": 0}),
    Case("scattered groups", "PLASLS", scattered, [*CYCLE, WRAP], 80, GENTLE),
    Case("scattered groups", "AdamSLS", scattered, BACKTRACKING, 60, LIVELY),
    Case("scattered groups", "SGDSLS", scattered, BACKTRACKING, 60, LIVELY),
    # No search.
    Case("idle components", "PLASLS", idle_components, [*CYCLE, "cycle: skipped, gate"], 50, GENTLE),
    Case("faint batches", "SGDSLS", faint_batches, ["joint: skipped, gate", "joint: accepted"], 60, LIVELY),
    Case("faint batches", "AdamSLS", faint_batches, ["joint: skipped, gate", "joint: accepted"], 60, LIVELY),
    Case("faint batches", "PLASLS", faint_batches, [*CYCLE, *GATED], 50, GENTLE),
    Case(
        "settling",
        "SGDSLS",
        settling(1.0),
        ["joint: accepted", "joint: skipped, gate"],
        100,
        {"initial_step_size": 0.05},
    ),
    Case(
        "settling",
        "PLASLS",
        settling(1e-4),
        ["joint: accepted", "cycle: accepted", "cycle: skipped, gate"],
        60,
        {"initial_step_size": 5e-5, "joint_steps": 3},
    ),
    Case("zero losses", "SGDSLS", zero_losses, ["joint: skipped, f_k = 0", "joint: accepted"], 60, LIVELY),
    Case("zero losses", "AdamSLS", zero_losses, ["joint: skipped, f_k = 0", "joint: accepted"], 60, LIVELY),
    Case("zero losses", "PLASLS", zero_losses, [*CYCLE, *AT_ZERO], 60, GENTLE),
    # A search that finds nothing.
    Case(
        "few trials",
        "SGDSLS",
        settling(1.0),
        ["joint: exhausted", "joint: accepted"],
        60,
        {"initial_step_size": 40.0, "growth": 1.3, "shrink": 0.7, "max_trials": 2},
    ),
    Case("few trials", "AdamSLS", bowls, ["joint: exhausted", "joint: accepted"], 60, {**LIVELY, "max_trials": 2}),
    Case(
        "few trials",
        "PLASLS",
        bowls,
        [*CYCLE, "joint: exhausted", "cycle: exhausted", WRAP],
        60,
        {**LIVELY, "growth": 1.2, "max_trials": 2},
    ),
    Case("one trial", "PLASLS", bowls, ["joint: exhausted", "cycle: exhausted"], 60, {**LIVELY, "max_trials": 1}),
    Case("one trial", "PLASLS", quadratic, ["joint: exhausted", "cycle: exhausted"], 60, {**LIVELY, "max_trials": 1}),
    Case("kink", "PLASLS", kink, ["cycle: exhausted", "cycle: accepted"], 50, {"joint_steps": 0, "merge_below": 0.0}),
    Case(
        "kink merged", "PLASLS", kink, ["cycle: exhausted", "cycle: merge"], 50, {"joint_steps": 0, "merge_below": 1e-3}
    ),
    Case(
        "kink merged",
        "PLASLS",
        late_kink,
        ["cycle: exhausted", "merge: after the last place's turn"],
        50,
        {"joint_steps": 0, "merge_below": 1e-3},
    ),
    # What is not a number.
    Case("broken batches", "SGDSLS", broken_batches, ["joint: non-finite baseline", "joint: accepted"], 60, LIVELY),
    Case("broken batches", "AdamSLS", broken_batches, ["joint: non-finite baseline", "joint: accepted"], 60, LIVELY),
    Case(
        "broken batches",
        "PLASLS",
        broken_batches,
        [*CYCLE, "joint: non-finite baseline", "cycle: non-finite baseline"],
        60,
        GENTLE,
    ),
    Case("steep walls", "SGDSLS", steep_walls, ["joint: NaN trial", "joint: infinite trial"], 60, FAR),
    Case("steep walls", "AdamSLS", steep_walls, ["joint: NaN trial", "joint: infinite trial"], 60, FAR),
    Case("steep walls", "PLASLS", steep_walls, [*CYCLE, "joint: NaN trial", "joint: infinite trial"], 60, FAR),
    Case(
        "walled trials",
        "PLASLS",
        walled_trials,
        ["joint: infinite trial", "cycle: NaN trial", "cycle: infinite trial", "cycle: exhausted"],
        60,
        {**GENTLE, "max_trials": 4},
    ),
    # Merging.
    Case(
        "merging at once",
        "PLASLS",
        bowls,
        ["joint: merge", "merge: tie for the smallest", "merge: later places move up", "two components left"],
        60,
        {**LIVELY, "merge_below": 1e9},
    ),
    Case(
        "merging between joint steps and cycle",
        "PLASLS",
        bowls,
        ["joint: merge", "cycle: merge", "merge: tie for the smallest", "two components left"],
        60,
        {**LIVELY, "joint_steps": 1, "merge_below": 1e9},
    ),
    Case(
        "merging the turn away",
        "PLASLS",
        quadratic,
        ["cycle: merge", "merge: turn taken modulo", "two components left"],
        60,
        {**LIVELY, "joint_steps": 0, "merge_below": 1e9},
    ),
    Case(
        "merging later",
        "PLASLS",
        bowls,
        [*CYCLE, "cycle: merge", "merge: apart", "merge: smallest is the later", "two components left"],
        80,
        {**LIVELY, "joint_steps": 2, "merge_below": 2e-3},
    ),
    Case(
        "merging after one backtracked",
        "PLASLS",
        narrow_first,
        ["cycle: merge", "merge: tie for the second"],
        60,
        {"initial_step_size": 1.0, "growth": 1.05, "shrink": 0.5, "joint_steps": 0, "merge_below": 1e-2},
    ),
    Case(
        "merging scattered groups",
        "PLASLS",
        scattered,
        ["cycle: merge", "two components left"],
        50,
        {**GENTLE, "joint_steps": 0, "merge_below": 0.2},
    ),
    Case(
        "no merge at the threshold",
        "PLASLS",
        line(1.0, 3),
        ["cycle: accepted"],
        50,
        {"growth": 1.0, "merge_below": 0.1},
        (0,),
    ),
    # The paper's text: every component in every step.
    Case("paper", "PLASLS", classification, ["joint: accepted", "each: accepted"], 60, EACH_IN_TURN),
    Case("lively", "PLASLS", quadratic, EACH, 60, {**LIVELY, **EACH_IN_TURN}),
    Case("lively", "PLASLS", scattered, EACH, 60, {**LIVELY, **EACH_IN_TURN}),
    Case("idle components", "PLASLS", idle_components, [*EACH, "each: skipped, gate"], 60, {**LIVELY, **EACH_IN_TURN}),
    Case("zero losses", "PLASLS", zero_losses, [*EACH, "each: skipped, f_k = 0"], 60, {**LIVELY, **EACH_IN_TURN}),
    Case(
        "one trial",
        "PLASLS",
        bowls,
        ["joint: exhausted", "each: exhausted", "each: accepted"],
        60,
        {**LIVELY, "max_trials": 1, **EACH_IN_TURN},
    ),
    Case("broken batches", "PLASLS", broken_batches, ["each: non-finite baseline"], 60, {**LIVELY, **EACH_IN_TURN}),
    Case(
        "steep walls",
        "PLASLS",
        steep_walls,
        ["each: NaN trial", "each: infinite trial", "each: accepted"],
        60,
        {**FAR, "joint_steps": 0, **EACH_IN_TURN},
    ),
    Case(
        "merging later",
        "PLASLS",
        bowls,
        ["each: merge", "merge: apart", "two components left"],
        60,
        {**LIVELY, "joint_steps": 0, "merge_below": 1e-2, **EACH_IN_TURN},
    ),
    # All components jointly, always.
    Case("lively", "PLASLS", classification, BACKTRACKING, 60, {**LIVELY, "schedule": "joint"}),
    Case("merging", "PLASLS", bowls, ["joint: merge"], 60, {**LIVELY, "merge_below": 1e9, "schedule": "joint"}),
    # The edges of the inequalities, where rounding plays no part.
    Case("negative loss", "AdamSLS", line(1.0), ["negative loss", "joint: accepted"], 50, {}, (0,)),
    Case("slope of exactly the gate", "SGDSLS", line(1e-4), ["joint: accepted"], 50, {}, (0,)),
    Case("unseen decrease", "AdamSLS", line(1.0, offset=1e20), ["joint: accepted"], 50, {}, (0,)),
    Case("unseen decrease", "SGDSLS", line(1.0, offset=1e20), ["joint: accepted"], 50, {}, (0,)),
    Case("unseen decrease", "PLASLS", line(1.0, 3, 1e20), ["joint: accepted", "cycle: accepted"], 50, {}, (0,)),
]


@pytest.mark.parametrize(
    ("case", "seed"),
    [pytest.param(case, seed, id=f"{case.identity}-seed{seed}") for case in CASES for seed in case.seeds],
)
def test_lockstep(case: Case, seed: int) -> None:
    records = lockstep(case.optimizer, case.problem(seed), case.steps, **case.keywords)
    found = branches(records)
    for branch in case.reaches:
        assert found[branch] > 0, f"never reached {branch!r}, only {dict(found)}"


# --------------------------------------------------------------------------- the reference against numbers done by hand


def one_number(curvature: float, at: float = 1.0) -> tuple[Tensor, Callable[[], Tensor]]:
    w = torch.tensor([at], dtype=torch.float64, requires_grad=True)
    return w, lambda: 0.5 * curvature * (w**2).sum()


def test_reference_sgd_backtracks_to_the_largest_step_size_that_passes() -> None:
    # f = 2 w² at w = 1: f(1 - 4η) = 2 (1 - 4η)² ≤ 2 - 16 c η for η ≤ (1 - c) / 2 = 0.45, and 0.9^8 < 0.45 < 0.9^7.
    w, loss = one_number(4.0)
    record = reference.SGDSLS([("all", [w])], loss, initial_step_size=1.0, growth=1.0).step()
    assert record.trials == [9]
    assert [eta for eta, _ in record.evaluations] == pytest.approx([0.0, *(0.9**j for j in range(9))])
    assert w.item() == pytest.approx(1 - 4 * 0.9**8)


def test_reference_accepts_equality() -> None:
    # c = ½ asks for the line's minimum, where f = 0 exactly: 0 ≤ ½ - ½.
    w, loss = one_number(1.0)
    record = reference.SGDSLS([("all", [w])], loss, c=0.5, initial_step_size=1.0, growth=1.0).step()
    assert (record.statuses, record.trials, w.item()) == (["accepted"], [1], 0.0)


def test_reference_first_trial_comes_after_the_first_growth() -> None:
    w, loss = one_number(1.0)
    record = reference.AdamSLS([("all", [w])], loss).step()
    assert record.evaluations[1][0] == pytest.approx(0.1 * 2 ** (1 / 500))


def test_reference_keeps_the_untried_step_size_after_the_last_failure() -> None:
    w, loss = one_number(4.0)
    record = reference.SGDSLS([("all", [w])], loss, initial_step_size=1.0, growth=1.0, max_trials=2).step()
    assert (record.statuses, record.trials) == (["exhausted"], [2])
    assert record.etas == pytest.approx([0.81])
    assert w.item() == pytest.approx(1 - 4 * 0.81)


def test_reference_without_searches_is_adam() -> None:
    problem = classification(0)
    ours, theirs = Watched(problem), Watched(problem)

    def zero() -> Tensor:
        loss = ours()
        return loss - loss.detach()

    literal = reference.AdamSLS([("all", ours.w)], zero, initial_step_size=0.01, growth=1.0)
    adam = torch.optim.Adam(theirs.w, lr=0.01)
    for k in range(30):
        ours.k = theirs.k = k
        assert literal.step().statuses == ["skipped"]
        adam.zero_grad()
        theirs().backward()
        adam.step()
    for p, q in zip(ours.w, theirs.w, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_reference_takes_turns_after_the_joint_steps() -> None:
    problem = classification(0)
    watched = Watched(problem)
    literal = reference.PLASLS([(label, [watched.w[i] for i in places]) for label, places in problem.groups], watched)
    turns = [literal.step().turn for _ in range(11)]
    assert turns == [None] * 6 + [0, 1, 2, 3, 0]


@pytest.mark.parametrize(
    ("etas", "turn", "labels", "merged", "next_turn"),
    [
        ([0.4, 0.1, 0.3, 0.2], 0, "abc", [0.4, 0.15, 0.3], 0),  # b and d, at b's place
        ([0.4, 0.3, 0.2, 0.1], 3, "abc", [0.4, 0.3, 0.15], 0),  # d is the smallest, c the earlier; turn 3 modulo 3
        ([0.1, 0.1, 0.1, 0.1], 1, "acd", [0.1, 0.1, 0.1], 1),  # ties: a and b
        ([0.4, 0.3, 0.1, 0.3], 2, "abd", [0.4, 0.2, 0.3], 2),  # a tie for the second: b, not d
        ([0.4, 0.5, 0.5, 0.5], 2, "abcd", [0.4, 0.5, 0.5, 0.5], 2),  # the smallest is not below λ = 0.4
    ],
)
def test_reference_merges(etas: list[float], turn: int, labels: str, merged: list[float], next_turn: int) -> None:
    tensors = [torch.ones(1, dtype=torch.float64) for _ in etas]
    literal = reference.PLASLS(list(zip("abcd", [[w] for w in tensors], strict=True)), lambda: tensors[0].sum())
    literal.merge_below = 0.4
    literal.turn = turn
    for component, eta in zip(literal.components, etas, strict=True):
        component.eta = eta
    literal.merge(reference.Record(k=0, phase="cycle"))
    assert [component.label for component in literal.components] == list(labels)
    assert [component.eta for component in literal.components] == pytest.approx(merged)
    assert literal.turn == next_turn
