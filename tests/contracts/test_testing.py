"""`assert_contract`: it lets every sound part pass, and for each of its rules there is a part that it catches."""

import ast
import random
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

import armijo
import armijo.testing
from armijo.testing import assert_contract
from contracts import broken
from contracts.extensions import HeavyBall, Lion
from contracts.members import EXTENSIONS, LIBRARY

every = pytest.mark.parametrize


@every("part", [*LIBRARY, *EXTENSIONS], ids=repr)
def test_a_part_that_keeps_its_contract_passes(part: Any) -> None:
    assert_contract(part)


@every("part", [broken.CachesAConstant(), broken.Momentum(), broken.DerivesFromNothing()], ids=repr)
def test_no_more_is_asked_than_the_contract(part: Any) -> None:
    assert_contract(part)


BROKEN = [
    # every part
    (armijo.Armijo, r"Armijo is a class.*Armijo\(\.\.\.\)"),
    (object(), r"is no part.*armijo\.Criterion"),
    (broken.HasList(), "cannot be hashed.*tuples instead of lists"),
    (broken.HasFunction(), "cannot be pickled.*no functions"),
    (broken.EqualByIdentity(), r"equal its own copy.*@dataclass\(frozen=True\)"),
    (broken.Mutable(), r"lets its attribute initial be set.*@dataclass\(frozen=True\)"),
    (broken.CountsItself(), "changed its own attributes.*write it to memory"),
    (broken.OtherProbe(), r"raised in next.*no derivative 'curvature'.*derivatives=\("),
    (broken.DividesByLoss(), "raised in next: ZeroDivisionError.*every call"),
    # memory
    (broken.DefaultsAreAList(), r"returned \['last'\] from defaults\(\).*a dict"),
    (broken.DefaultsChange(), "other things in defaults.*stay the same"),
    (broken.DefaultsHoldTensor(), r"cannot be remembered: last is tensor.*float\(tensor\)"),
    (broken.WritesUndeclared(), r"wrote lust to memory.*in defaults\(\)"),
    (broken.ClearsMemory(), "removed names.*remove none"),
    (broken.RemovesItsName(), "removed names.*remove none"),
    (broken.WritesTensor(), r"wrote to memory.*last is tensor.*float\(tensor\)"),
    (broken.WritesFloatForInteger(), r"wrote to memory.*gap is 1\.5.*write 1\.0"),
    (broken.ReservedName(), "does not work in LineSearch.*names lr.*another name"),
    (broken.BreaksAtTheSecondStep(), "returned -.* from next.*finite number > 0"),
    # criteria
    (broken.LowersTheLossByATenth(), "too long, although the loss falls.*two_sided = True"),
    (broken.WrongSign(), "too long, although the loss falls.*Answer 0"),
    (broken.MaximumSwallowsNaN(), r"does not answer inf.*nan.*math\.isnan"),
    (broken.AcceptsInfinity(), r"does not answer inf.*inf\. Such a trial never suffices"),
    (broken.ClosesInTheEnd(), "every step too long after 21 searches.*what it remembers"),
    (broken.ForgetsThatNothingWasFound(), "raised in remember: AttributeError"),
    (broken.AnswersYes(), "answered (True|False).*is a number"),
    (broken.AnswersNaN(), "answered nan.*is a number and not NaN"),
    (broken.TooShortUnannounced(), "answered -.*means too short.*two_sided = True"),
    # guesses
    (broken.StartsAtZero(), r"returned 0\.0 from initial_step_size.*for instance 0\.1"),
    (broken.Polyak(), "returned -?[0.e+-]+.* from next.*finite number > 0"),
    (broken.GrowsWithoutEnd(), "returned inf from next.*finite number > 0"),
    # searches
    (broken.ClimbsToo(), r"along which the loss rises.*Outcome\(0\.0, Status\.ASCENT\)"),
    (broken.NoFirstStep(), "returned None from first_step_size.*finite number > 0"),
    (broken.NeverGivesUp(), r"more than 1000 trials.*Give up"),
    (broken.TriesNaN(), "tries the step size nan.*finite step size"),
    (broken.TriesBeyond(), r"beyond the longest allowed.*min\(step_size, line\.longest\)"),
    (broken.ReturnsANumber(0.1), r"returned 0\.1 from search.*an Outcome"),
    (broken.AcceptsWithoutSearch(), "accepted.*did not evaluate.*ACCEPTED is for a trial"),
    (broken.NumberWithoutSearch(), r"returned 0\.1.* from without_search.*an Outcome"),
    (broken.ReturnsAString(0.1), "returned Outcome.*with a Status"),
    (broken.ReturnsNonfinite(0.1), r"status nonfinite.*Status\.EXHAUSTED"),
    (broken.MovesWithoutEnd(0.1), r"returned the step size inf from search.*at most line\.longest"),
    (broken.MovesBack(0.1), r"returned the step size -0\.1 from search.*0 to stay"),
    (broken.AcceptsUntried(0.1), "accepted.*did not evaluate.*ACCEPTED is for a trial"),
    (broken.AcceptsWithoutTheLoss(), r"returned the loss None with accepted.*evaluate\(step_size\)"),
    (broken.MovesToInfinity(), r"infinite loss.*Outcome\(0\.0"),
    (broken.IgnoresItsCriterion(), "its criterion calls too long.*Accept only"),
    # selections, mergings and partitions
    (broken.SelectsANumber(), r"selected 1 at step 0.*a tuple of blocks"),
    (broken.SelectsPlacesOnly(), r"selected \(0,\) at step 0.*a tuple of blocks"),
    (broken.Twice(), r"the block \(0, 0\).*none twice"),
    (broken.EmptyBlock(), r"the block \(\) at step.*at least one"),
    (broken.FloatPlaces(), r"the block \(0\.0,\).*holds places"),
    (broken.ForgetsMerges(), r"the block \(1,\) at step 5 of 1 components.*Merges"),
    (broken.ForgetsNewGroups(), "raised in blocks: IndexError"),
    (broken.MovesBeforeItself(0), r"moved_before\(\(0,\)\).*outside the block"),
    (broken.ExpectsASearch(), "raised in remember: AssertionError"),
    (broken.DueByNumber(), "answered 0 from due.*True or False"),
    (broken.ExpectsAnother(), r"expected to search \(0, 1\) first .*Answer None"),
    (broken.CountsWhatItIsAsked(), "changed its memory in expected_block"),
    (broken.ExpectsNothing(), r"returned 0\.0 from expected.*or None"),
    (broken.ClaimsToStay(), "says updates_along_search.*Return False"),
    (broken.KeepsTheKernel(), "has a kernel whose slopes.*returns None from kernel"),
    (broken.MergesBackwards(), r"proposed Merge\(kept=1.*kept < absorbed"),
    (broken.MergesIntoNothing(), r"proposed Merge\(.*a finite step size > 0"),
    (broken.MergesAPair(), r"proposed \(0, 1, 0\.1\).*or a Merge"),
    (broken.MergesOneTooMany(), r"proposed Merge\(.*absorbed < 1"),
    (broken.NoComponents(), r"returned \['head'\].*armijo\.Component"),
    (broken.LeavesOneOut(), "exactly one component"),
    (broken.LastFirst(), "by their first group"),
    (broken.AlwaysTheSameLabel(), r"labels its components \['all', 'all'.*distinct"),
    (broken.ByTurns(), "other components when it is asked again.*the labels alone"),
    # directions
    (HeavyBall(), "climbs after 3 steps.*momentum into update alone"),
    (broken.SearchesAlongAverage(), "climbs after 3 steps.*momentum into update alone"),
    (broken.SumOfGradients(), r"an update 9\.\d* times as long.*an average"),
    (broken.Uphill(), "does not descend along its first.*Search along the gradient"),
    (broken.MomentsAreATensor(), "from moments.*a dict of tensors"),
    (broken.CountsInStep(), 'from moments.*other than "step"'),
    (broken.FactoredMoments(), r"zeros like the parameter, of the shape \(3, 4\).*torch\.zeros_like"),
    (broken.MomentsAreOnes(), r"zeros like the parameter.*torch\.zeros_like"),
    (broken.MomentsAreFloat32(), r"zeros like the parameter.*float64.*torch\.zeros_like"),
    (broken.SharedMoments(), "the same tensors from moments.*has its own"),
    (broken.ReservedHyperparameter(), "refused by LineSearch.*names lr"),
    (broken.ScalesUpdatesAfterwards(), "changes the updates in record_step"),
    (broken.ClipsGradients(), "changes the gradients in update.*new tensors"),
    (broken.WritesInTheSearchPhase(), "in search_direction, probes or past_gradients.*moments in update"),
    (broken.WritesGradientsInTheSearchPhase(), "in search_direction, probes or past_gradients.*new tensors"),
    (broken.SearchesAlongItsMoment(), "a moment itself from search_direction.*new tensors"),
    (broken.ProbesAfterTheFirstStep(), r"other probes than \(\).*the same at each step"),
    (broken.OneProbeForAll(), r"from probes.*for each gradient"),
    (broken.OneTensor(), "returned Tensor from search_direction.*a list"),
    (broken.FlatUpdates(), r"returned \[\(12,\).*from update.*same shape"),
    (broken.Normalised(), "NaN or infinity from search_direction.*eps"),
    (broken.ReplacesItsMoments(), r"replaces.*in place"),
    (broken.AddsToTheState(), r"adds.*name all of them in moments"),
    (broken.CountsSteps(), 'writes "step".*The optimizer counts'),
    (broken.ExpectsUpdates(), "raised in record_step: ValueError"),
    (broken.CriterionAndGuess(), "returned -.* from next"),
]


@every(("part", "words"), BROKEN, ids=[getattr(part, "__name__", type(part).__name__) for part, _ in BROKEN])
def test_a_part_that_breaks_a_rule_is_caught_with_the_remedy(part: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s){words}") as caught:
        assert_contract(part)
    name = part.__name__ if isinstance(part, type) else repr(part)
    assert str(caught.value).startswith(name), "the part is named"


def test_for_every_rule_there_is_a_part_that_breaks_it() -> None:
    files = sorted(Path(armijo.testing.__file__).parent.glob("*.py"))
    rules = {
        (file.name, node.lineno)
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "attr", None) or getattr(node.func, "id", None)) in ("require", "fail")
        and ast.unparse(node) != "self.fail(found, remedy)"
    }
    broke = set()
    for part, _ in BROKEN:
        try:
            assert_contract(part)
        except AssertionError as error:
            frames = [
                (Path(frame.f_code.co_filename).name, line)
                for frame, line in traceback.walk_tb(error.__traceback__)
                if Path(frame.f_code.co_filename) in files
            ]
            broke |= rules.intersection(frames)
    assert len(rules) > 40
    assert rules == broke, "these lines of armijo.testing have no part that breaks them"


def test_other_probes_are_named() -> None:
    assert_contract(broken.OtherProbe(), derivatives=("last_step", "curvature"))
    with pytest.raises(AssertionError, match=r"no derivative 'last_step'"):
        assert_contract(EXTENSIONS[4], derivatives=())


class Draws(armijo.Growth):
    def next(self, step_size: float, line: armijo.Line, memory: armijo.Memory) -> float:
        seen.append(random.random() + float(torch.rand(())))
        return step_size


seen: list[float] = []


def test_global_generators_are_left_alone_and_each_run_is_the_same() -> None:
    before = armijo.RandomState.capture()
    runs = []
    for _ in range(2):
        seen.clear()
        assert_contract(Draws())
        runs.append(seen.copy())
        random.random()
        torch.rand(3)
    assert runs[0] == runs[1] != []
    before.restore()
    expected = random.random(), float(torch.rand(()))
    before.restore()
    for part in (Draws(), Lion(), armijo.Cycle(0)):
        assert_contract(part)
    assert (random.random(), float(torch.rand(()))) == expected


@every("part", [armijo.PaperBacktracking(), armijo.KeepLastStep(armijo.AdamDirection()), armijo.EachAlone(0)], ids=repr)
def test_it_is_quick(part: Any) -> None:
    assert_contract(armijo.NeverMerge())  # in a process's first step torch imports its compiler
    start = time.process_time()
    assert_contract(part)
    assert time.process_time() - start < 2


def test_it_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for part in (armijo.FixedStep(1e3), armijo.NeverMerge(), Lion()):
        assert_contract(part)
    assert not caplog.records
