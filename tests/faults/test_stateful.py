"""Random sequences of what can happen to an optimizer; after each event the promises of docs/reliability.md hold."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import nn

import armijo
from armijo.evaluation.rng import RandomState
from problems import Problem, everything, failing, hopeless, same, statuses

NOTHING_MOVED = {"skipped", "exhausted", "nondeterministic", "nonfinite", "ascent"}

KINDS: dict[str, Callable[[Any], armijo.LineSearch]] = {
    "SGDSLS": armijo.SGDSLS,
    "AdamSLS": armijo.AdamSLS,
    "AdamSLS, every third step": lambda groups: armijo.AdamSLS(groups, selection=armijo.Every(3)),
    "PLASLS": lambda groups: armijo.PLASLS(groups, selection=armijo.Cycle(2), merging=armijo.MergeSmallest(1e-6)),
    "PLASLS, each alone": lambda groups: armijo.PLASLS(
        groups, selection=armijo.EachAlone(1), merging=armijo.MergeNeighbours(1e-6, "minimum")
    ),
    "Goldstein, last step kept": lambda groups: armijo.LineSearch(
        groups, direction=armijo.KeepLastStep(armijo.AdamDirection((0.0, 0.99))), search=armijo.Bracketing()
    ),
    "a fixed step": lambda groups: armijo.LineSearch(groups, search=armijo.FixedStep(1e-2)),
}


class Life(RuleBasedStateMachine):
    """One optimizer and its model, from construction on."""

    @initialize(
        kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 3), dtype=st.sampled_from(["float32", "float64"])
    )
    def begin(self, kind: str, seed: int, dtype: str) -> None:
        self.kind = kind
        self.problem = Problem(seed, getattr(torch, dtype))
        groups = self.problem.groups()
        self.late = groups.pop()
        self.optimizer = KINDS[kind](groups)
        self.forwards = 0

    # ---------------------------------------------------------------------------------------------------------- steps

    def _parameters(self) -> list[torch.Tensor]:
        return [p.detach().clone() for group in self.optimizer.param_groups for p in group["params"]]

    def _check_report(self, before: list[torch.Tensor], loss: torch.Tensor | None) -> None:
        report = self.optimizer.report
        assert report is not None
        assert loss is not None
        assert float(loss) == pytest.approx(report.loss, rel=1e-6, nan_ok=True)
        assert report.forwards >= 1 + sum(len(each.trials) for each in report.searches)
        self.forwards += report.forwards
        assert report.total_forwards == self.forwards
        labels = [component.label for component in report.components]
        assert len(set(labels)) == len(labels)
        after = iter(zip(before, self._parameters(), strict=True))
        place = dict(zip(labels, report.components, strict=True))
        merged = {absorbed: kept for kept, absorbed in report.merges}
        # Groups in the order of the optimizer; those that were merged now bear the label of what they joined.
        for group in self.optimizer.param_groups:
            pairs = [next(after) for _ in group["params"]]
            moved = not all(torch.equal(*pair) for pair in pairs)
            together = len(place) == 1
            of = report.components[0] if together else place.get(group["component"])
            if of is None or group["component"] in merged.values():
                continue
            if of.status in NOTHING_MOVED:
                assert not moved, (of, report)
            if float(group["lr"]) == 0:
                assert not moved
        for search in report.searches:
            assert search.status != "accepted" or any(t.step_size == search.step_size for t in search.trials)

    @rule(lr=st.sampled_from([1.0, 1.0, 0.5, 0.0]))
    def step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        before = self._parameters()
        self._check_report(before, self.optimizer.step(self.problem.closure()))

    @rule(at=st.integers(0, 3), kind=st.sampled_from([RuntimeError, KeyboardInterrupt, MemoryError]))
    def step_that_raises(self, at: int, kind: Any) -> None:
        before = everything(self.problem.model, self.optimizer)
        parameters = self._parameters()
        error, raised, loss = kind("as asked for"), None, None
        try:
            loss = self.optimizer.step(failing(self.problem.closure(), at, error))
        except kind as caught:
            raised = caught
        if raised is None:  # there were not so many evaluations
            self._check_report(parameters, loss)
        else:
            assert raised is error
            assert same(before, everything(self.problem.model, self.optimizer))

    @rule(bad=st.sampled_from([math.nan, math.inf, -math.inf]))
    def step_that_is_not_finite(self, bad: float) -> None:
        closure, before = self.problem.closure(), everything(self.problem.model, self.optimizer)
        parameters = self._parameters()
        self._check_report(parameters, self.optimizer.step(lambda: closure() * bad))
        assert set(statuses(self.optimizer)) == {"nonfinite"}
        after = everything(self.problem.model, self.optimizer)
        assert same(before[0], after[0])
        for group in (*before[1]["param_groups"], *after[1]["param_groups"]):
            group.pop("forwards")
        assert same(before[1], after[1])

    @rule(value=st.sampled_from([0.0, 3.0]))
    def step_without_a_slope(self, value: float) -> None:
        closure, before = self.problem.closure(), self._parameters()
        sizes = [group["step_size"] for group in self.optimizer.param_groups]
        loss = self.optimizer.step(lambda: 0 * closure() + value)
        self._check_report(before, loss)
        if self.kind != "a fixed step":
            assert set(statuses(self.optimizer)) == {"skipped"}
            assert all(map(torch.equal, before, self._parameters()))
            assert self.optimizer.report is not None
            if not self.optimizer.report.merges:
                assert [group["step_size"] for group in self.optimizer.param_groups] == sizes

    @rule()
    def step_that_cannot_succeed(self) -> None:
        before = self._parameters()
        self._check_report(before, self.optimizer.step(hopeless(self.problem.closure())))

    @rule()
    def step_of_an_objective(self) -> None:
        before, objective = self._parameters(), armijo.Objective()
        self.optimizer.zero_grad()
        for _ in range(2):
            (objective.baseline(self.problem.closure(), weight=0.5) / 2).backward()
        self._check_report(before, self.optimizer.step(objective))

    @rule()
    def step_of_a_closure_for_lbfgs(self) -> None:
        closure, before = self.problem.closure(), self._parameters()

        def backward() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = closure()
            loss.backward()
            return loss

        self._check_report(before, self.optimizer.step(backward))

    @rule(wrong=st.sampled_from([None, 3.0, torch.ones(2)]))
    def step_of_something_wrong(self, wrong: Any) -> None:
        before = everything(self.problem.model, self.optimizer)
        with pytest.raises(armijo.ClosureContractError):
            self.optimizer.step(lambda: wrong)
        assert same(before, everything(self.problem.model, self.optimizer))

    # -------------------------------------------------------------------------------------------------------- settings

    @rule(cap=st.sampled_from([math.inf, 1e-1, 1e-4]))
    def cap(self, cap: float) -> None:
        for group in self.optimizer.param_groups:
            group["max_step_size"] = cap

    @rule(decay=st.sampled_from([0.0, 0.1]), index=st.integers(0, 1))
    def decay(self, decay: float, index: int) -> None:
        self.optimizer.param_groups[index]["weight_decay"] = decay

    @rule(size=st.sampled_from([1e-9, 1e-3, 1.0]), index=st.integers(0, 2))
    def set_step_size(self, size: float, index: int) -> None:
        groups = self.optimizer.param_groups
        label = groups[index % len(groups)]["component"]
        together = len(self.optimizer.components) == 1
        for group in groups:
            if together or group["component"] == label:
                group["step_size"] = size

    @rule(index=st.integers(0, 3))
    def freeze_or_thaw(self, index: int) -> None:
        parameters = list(self.problem.model.parameters())
        chosen = parameters[index]
        chosen.requires_grad_(not chosen.requires_grad)

    @rule(bad=st.sampled_from(["lr", "weight_decay", "step_size", "max_step_size"]))
    def a_bad_value(self, bad: str) -> None:
        group = self.optimizer.param_groups[0]
        kept, group[bad] = group[bad], math.nan
        before = everything(self.problem.model, self.optimizer)
        with pytest.raises(armijo.ConfigurationError):
            self.optimizer.step(self.problem.closure())
        assert same(before, everything(self.problem.model, self.optimizer))
        group[bad] = kept

    @precondition(lambda self: self.late is not None)
    @rule(join=st.booleans())
    def add_a_group(self, join: bool) -> None:
        group = dict(self.late)
        if join:
            group["component"] = self.optimizer.param_groups[0]["component"]
        self.late = None
        self.optimizer.add_param_group(group)
        joined, first = self.optimizer.param_groups[-1], self.optimizer.param_groups[0]
        if join or len(self.optimizer.components) == 1:
            assert joined["step_size"] == first["step_size"]

    @rule()
    def add_a_group_again(self) -> None:
        before = everything(self.problem.model, self.optimizer)
        with pytest.raises(ValueError, match="more than one parameter group"):
            self.optimizer.add_param_group({"params": self.optimizer.param_groups[0]["params"]})
        assert same(before, everything(self.problem.model, self.optimizer))

    # ----------------------------------------------------------------------------------------------------- checkpoints

    @rule(carry=st.sampled_from(["file", "pickle", "copy"]))
    def carry(self, carry: str) -> None:
        """What was carried takes the next step as the original would have."""
        model, generator = copy.deepcopy(self.problem.model), self.problem.generator.get_state()
        original = self.optimizer
        if carry == "file":
            file = BytesIO()
            torch.save((self.problem.model.state_dict(), original.state_dict()), file)
            file.seek(0)
            weights, state = torch.load(file, weights_only=True)
            groups = [{"params": g["params"], "component": g["component"]} for g in original.param_groups]
            twin = KINDS[self.kind](groups)
            twin.load_state_dict(state)
            self.problem.model.load_state_dict(weights)
        elif carry == "pickle":
            self.problem.model, twin = pickle.loads(pickle.dumps((self.problem.model, original)))
        else:
            self.problem.model, twin = copy.deepcopy((self.problem.model, original))
        if carry != "file" and self.late is not None:
            names = {id(p): name for name, p in model.named_parameters()}
            assert names  # the late group's parameters are found again by their place
            last = [layer for layer in self.problem.model if isinstance(layer, nn.Linear)][-1]
            self.late = {**self.late, "params": list(last.parameters())}
        assert same(twin.state_dict(), original.state_dict())
        assert twin.components == original.components
        self.optimizer = twin
        self.problem.generator.set_state(generator)

    # ------------------------------------------------------------------------------------------------------ invariants

    @invariant()
    def groups_are_sound(self) -> None:
        if not hasattr(self, "optimizer"):
            return
        groups = self.optimizer.param_groups
        for key in ("steps", "forwards", "format", *self.optimizer.selection.defaults()):
            assert len({repr(group[key]) for group in groups}) == 1, key
        for component in self.optimizer.components:
            members = [groups[index] for index in component.groups]
            assert len({group["step_size"] for group in members}) == 1
        assert all(0 < group["step_size"] < math.inf for group in groups)
        assert sorted(i for component in self.optimizer.components for i in component.groups) == list(
            range(len(groups))
        )

    @invariant()
    def tensors_are_sound(self) -> None:
        if not hasattr(self, "optimizer"):
            return
        assert all(bool(p.isfinite().all()) for p in self.problem.model.parameters())
        for parameter, state in self.optimizer.state.items():
            assert state["step"] >= 1
            for name, moment in state.items():
                if name != "step":
                    assert moment.shape == parameter.shape
                    assert bool(moment.isfinite().all())

    @invariant()
    def nothing_is_left_behind(self) -> None:
        assert torch.is_grad_enabled()
        assert torch.backends.mha.get_fastpath_enabled()


def live(examples: int, steps: int) -> None:
    random = RandomState.capture()
    try:
        run_state_machine_as_test(
            Life,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        random.restore()


def test_a_life_of_an_optimizer(tally: Any) -> None:
    live(25, 16)
    tally("events in the life of an optimizer", 25 * 16)


@pytest.mark.soak
def test_long_lives(tally: Any) -> None:
    live(250, 40)
    tally("events in the life of an optimizer", 250 * 40)
