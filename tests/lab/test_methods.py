import copy
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import re
import subprocess
import sys

import pytest
import torch

import armijo
from armijo_lab import methods, models
from armijo_lab.errors import BadInputError
from armijo_lab.methods import ours
from lab import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.load(str(tiny.save_model(tmp_path_factory.mktemp("m") / "tiny")), tiny.task())[0]


def sample(parser):
    """A text that a key's parser accepts."""
    for text in ("0.25", "3", "constant", "joint", "projection", "minimum", "moved", "no", "growth", "always"):
        try:
            parser(text)
        except ValueError:
            continue
        return text
    raise AssertionError("no sample fits; add one above")


@pytest.mark.parametrize("row", methods.ROWS.values(), ids=methods.NAMES)
def test_a_row_is_complete(row, model):
    assert methods.ROWS[row.name] is row
    assert row.keys
    # The library has the defaults of the line searches; every other argument has one in its row.
    assert set(row.defaults) == (set() if row.searches else set(row.keys))
    assert methods.parse(row.name).settings == row.defaults
    written = ",".join(f"{key}={value}" for key, value in row.defaults.items())
    assert methods.parse(f"{row.name}:{written}").arguments == row.defaults
    if row.package is None:
        return
    spec = importlib.util.find_spec(row.package.module)
    if spec is None:
        with pytest.raises(BadInputError, match=f"pip install {row.package.distribution}"):
            methods.parse(row.name).build(model, 1)
    else:
        importlib.metadata.distribution(row.package.distribution)
    extras = importlib.metadata.requires("armijo") or []
    required = {re.split(r"[^\w.-]", line)[0].lower() for line in extras if "rivals" in line}
    assert row.package.distribution.lower() in required


@pytest.mark.parametrize(("name", "key"), [(row.name, key) for row in methods.ROWS.values() for key in row.keys])
def test_every_argument_survives_a_round_trip(name, key):
    parser = methods.ROWS[name].keys[key]
    text = sample(parser)
    method = methods.parse(f" {name.upper()} : {key} = {text} ")
    assert (method.name, method.arguments) == (name, {key: parser(text)})
    assert method.settings[key] == method.shown[key] == parser(text)
    assert methods.parse(f"{name}:{key}={method.arguments[key]}").arguments == method.arguments
    with pytest.raises(BadInputError, match=f"{key} must be .*, not '☃'"):
        methods.parse(f"{name}:{key}=☃")


def test_the_names_come_without_torch():
    blocked = ["torch", "armijo", "numpy", *{row.package.module for row in methods.ROWS.values() if row.package}]
    code = f"""
import sys
for name in {blocked}:
    sys.modules[name] = None
from armijo_lab import methods
for name in methods.NAMES:
    methods.parse(name).settings
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", methods.NAMES)
def test_every_name_builds_and_takes_a_step(name, model):
    method = methods.parse(name)
    trained = copy.deepcopy(model)
    stepper = method.build(trained, 10)
    inputs = {"input_ids": torch.tensor([[2, 5, 3], [2, 8, 3]])}
    labels = torch.tensor([0, 1])
    calls = []

    def loss():
        calls.append(torch.is_grad_enabled())
        return torch.nn.functional.cross_entropy(trained(**inputs).logits, labels)

    with torch.no_grad():
        start = loss().item()
    calls.clear()
    taken = [stepper.step(loss) for _ in range(5)]
    assert taken[0].loss == pytest.approx(start, rel=1e-6)
    assert sum(step.forwards for step in taken) == len(calls) >= 5
    told = ("adam", "adamw", "sgd", "prodigy", "dadaptation", "salsa", "gen")
    assert [step.rate is not None for step in taken] == [name in told] * 5
    assert bool(taken[0].components) is method.searches
    json.dumps([dataclasses.asdict(step) for step in taken])
    moved = [not torch.equal(p, q) for p, q in zip(trained.parameters(), model.parameters(), strict=True)]
    assert any(moved)
    before = [p.detach().clone() for p in trained.parameters()]
    with stepper.evaluating():
        loss()
    # What is evaluated may be other weights; training goes on from its own.
    for p, q in zip(trained.parameters(), before, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["dog", "ldog", "schedulefree:lr=0.1"])
def test_what_averages_is_judged_by_its_average(name, model):
    trained = copy.deepcopy(model)
    stepper = methods.parse(name).build(trained, 10)
    for _ in range(5):
        stepper.step(lambda: trained(input_ids=torch.tensor([[2, 5, 3]])).logits.pow(2).sum())
    during = [p.detach().clone() for p in trained.parameters()]
    with stepper.evaluating():
        assert any(not torch.equal(p, q) for p, q in zip(trained.parameters(), during, strict=True))


def test_a_tie_is_a_trial_with_the_loss_of_the_start():
    weight = torch.nn.Parameter(torch.ones(3))
    stepper = ours.SearchStepper(armijo.SGDSLS([weight]))
    assert stepper.step(lambda: weight.square().sum()).ties == 0
    # The value is 1 wherever the weight is, and its gradient is not 0, but promises hardly more than rounding.
    step = stepper.step(lambda: 1 + 1e-3 * (weight - weight.detach()).sum())
    (search,) = step.searches
    assert (search["status"], search["trials"][-1]) == ("exhausted", [0.0, 1.0])
    assert step.ties == len(search["trials"]) - 1 == step.forwards - 2


def test_salsa_repeats_itself_under_dropout(model):
    import numpy

    def losses():
        torch.manual_seed(3)
        numpy.random.seed(3)
        trained = copy.deepcopy(model).train()
        stepper = methods.parse("salsa").build(trained, 10)
        batch = {"input_ids": torch.tensor([[2, 5, 3], [2, 8, 3]]), "labels": torch.tensor([0, 1])}
        found = [stepper.step(lambda: trained(**batch).loss).loss for _ in range(4)]
        return found, numpy.random.random()

    assert losses() == losses()
    assert len(set(losses()[0])) == 4


def test_a_package_that_is_missing_is_named(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInputError, match=r"pip install SaLSa-Optimizer"):
        methods.parse("salsa").build(model, 1)


def test_arguments_are_read():
    method = methods.parse("growing-plasls:split=projection,schedule=each,c=0.2,weight_decay=0")
    assert method.name == "growing-plasls"
    assert method.arguments == {"split": "projection", "schedule": "each", "c": 0.2, "weight_decay": 0.0}


def test_arguments_reach_the_optimizer(model):
    text = "growing-plasls:split=projection,schedule=joint,c=0.2,beta1=0,max_step_size=0.5"
    optimizer = methods.parse(text).build(model, 1).optimizer
    assert {group["component"] for group in optimizer.param_groups} == {"query", "key", "value", "rest"}
    assert optimizer.selection == armijo.Jointly()
    assert optimizer.search == armijo.Backtracking(armijo.Armijo(0.2))
    assert optimizer.direction == armijo.AdamDirection((0.0, 0.999))
    assert {group["max_step_size"] for group in optimizer.param_groups} == {0.5}
    paper = methods.parse("paper-plasls:schedule=each,joint_steps=2,n_groups=1").build(model, 1).optimizer
    assert paper.selection == armijo.EachAlone(2)
    assert paper.param_groups[0]["component"] == "embeddings"
    assert len(paper.param_groups) == 3
    layers = methods.parse("growing-plasls:n_groups=layers,joint_steps=3").build(model, 1).optimizer
    assert [group["component"] for group in layers.param_groups] == ["embeddings", "layers.0", "layers.1", "head"]
    assert layers.selection == armijo.Cycle(3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("growing-plasls", armijo.MergeSmallest()),
        ("growing-plasls:merge=never", armijo.NeverMerge()),
        ("growing-plasls:merge_below=1e-6", armijo.MergeSmallest(1e-6)),
        ("growing-plasls:merge=minimum", armijo.MergeSmallest(rule="minimum")),
        ("growing-plasls:merge=neighbour,merge_below=0.1", armijo.MergeNeighbours(0.1)),
    ],
)
def test_merging_is_chosen_by_rule_and_threshold(text, expected, model):
    assert methods.parse(text).build(model, 1).optimizer.merging == expected


def test_defaults_of_torchs_optimizers_are_recorded():
    assert methods.parse("adam").settings == {
        "lr": 2e-5,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "warmup": 0.1,
    }
    assert methods.parse("adam:schedule=constant").settings["warmup"] == 0.0
    assert methods.parse("adamw").settings == {"lr": 5e-5, "schedule": "linear", "weight_decay": 0.0, "warmup": 0.0}
    assert methods.parse("adam").shown == {"lr": 2e-5, "schedule": "cosine"}
    assert methods.parse("sgd:lr=0,momentum=0").settings["lr"] == 0
    assert methods.parse("sgd:momentum=0").settings["momentum"] == 0
    assert methods.parse("plasls").shown == {}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0] * 10),
        ("linear", [0, 1 / 2, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [0, 1 / 2, *(0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8))]),
    ],
)
def test_schedules(schedule, expected, model):
    warmup = "" if schedule == "constant" else ",warmup=0.2"
    stepper = methods.parse(f"sgd:lr=2,schedule={schedule}{warmup}").build(copy.deepcopy(model), 10)

    def loss():
        return torch.nn.functional.cross_entropy(model(input_ids=torch.tensor([[2, 5, 3]])).logits, torch.tensor([0]))

    rates = [stepper.step(loss).rate / 2 for _ in range(10)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lion", "adamsls, plasls"),
        ("", "adamsls, plasls"),
        ("adam:rate=1", "it takes lr, weight_decay"),
        ("plasls:lr=1", "it takes split, n_groups"),
        ("adam:lr", "adam takes the keys lr"),
        ("adam:lr=", "adam takes the keys lr"),
        ("adam:lr=fast", "at least 0, not 'fast'"),
        ("adam:lr=nan", "at least 0, not 'nan'"),
        ("adam:lr=-1", "at least 0, not '-1'"),
        ("adam:lr=1,lr=2", "gives 'lr' twice"),
        ("adam:warmup=2", "at least 0 and at most 1"),
        ("plasls:split=rows", "layer, projection, module or tensor"),
        ("plasls:n_groups=0", "whole number of at least 1"),
        ("plasls:n_groups=1.5", "or layers for one group per layer"),
        ("plasls:split=tensor,n_groups=2", "use split=layer"),
        ("paper-plasls:schedule=all", "cycle, each or joint"),
        ("paper-plasls:merge=mean", "takes no 'merge'"),
        ("prodigy:lr=0", "above 0"),
        ("adamsls:beta1=1", "below 1"),
        ("adamsls:c=0", "above 0"),
        ("adamsls:share=0", "or inf for no bound"),
        ("plasls:schedule=each", "it takes split, n_groups"),
    ],
)
def test_bad_text_gets_a_sentence_that_names_the_choices(text, named):
    with pytest.raises(BadInputError) as raised:
        methods.parse(text)
    assert named in str(raised.value)


def test_a_part_of_the_default_is_exchanged_and_the_others_are_the_librarys(model):
    default = methods.parse("adamsls").build(model, 1).optimizer
    bounded = methods.parse("adamsls:share=inf,c=0.3").build(model, 1).optimizer
    assert bounded.search.guess == dataclasses.replace(default.search.guess, share=math.inf)
    assert bounded.search.criterion == armijo.Armijo(0.3)
    assert (bounded.direction, bounded.selection) == (default.direction, default.selection)
    layers = methods.parse("plasls").build(model, 1).optimizer
    assert (layers.search, layers.direction, layers.selection) == (default.search, default.direction, default.selection)
    assert [each.label for each in layers.components] == [each["component"] for each in armijo.split(model, by="layer")]
    assert [each.label for each in default.components] == ["all"]


def test_what_the_library_refuses_is_bad_input(model):
    with pytest.raises(BadInputError, match=r"adamsls:c=2"):
        methods.parse("adamsls:c=2").build(model, 1)
    with pytest.raises(BadInputError, match=r"n_groups"):
        methods.parse("plasls:n_groups=9").build(model, 1)
    with pytest.raises(BadInputError, match=r"Leave one out"):
        methods.parse("adamsls:guess=growth,share=1").build(model, 1)
    with pytest.raises(BadInputError, match=r"'plasls:n_groups=layers' cannot be built: .* give a number"):
        methods.parse("plasls:n_groups=layers").build(WithoutLayerCount(), 1)


class WithoutLayerCount(torch.nn.Linear):
    config = None

    def __init__(self):
        super().__init__(2, 2)
