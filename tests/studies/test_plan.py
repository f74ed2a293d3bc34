import dataclasses

import pytest

from armijo_lab.errors import BadInputError
from armijo_lab.results import store
from armijo_lab.studies import plan
from armijo_lab.studies.plan import Options
from armijo_lab.training import TrainingConfig


@pytest.mark.parametrize("name", plan.STUDIES)
def test_every_study_plans_runs_that_training_takes(name):
    options = Options(study=name)
    planned = plan.runs(options)
    identities = [store.identity(plan.as_dict(config)) for config in planned]
    assert len(set(identities)) == len(planned) > 0
    cells = plan.cells(options)
    assert sorted(store.identity(plan.as_dict(run)) for _, runs in cells for run in runs) == sorted(identities)
    seeds = plan.STUDIES[name].seeds
    assert all([run.seed for run in runs] == list(range(seeds)) for _, runs in cells)
    assert not any(config.save_models for config in planned)


def test_a_study_can_be_cut_and_moved():
    options = Options("rivals", seeds=1, tasks="sst2,mrpc", select="adamsls|salsa", limit=0, protocol="clean", epochs=2)
    planned = plan.runs(options)
    assert [(run.task, run.optimizer) for run in planned] == [
        ("sst2", "adamsls"),
        ("sst2", "salsa"),
        ("mrpc", "adamsls"),
        ("mrpc", "salsa"),
    ]
    assert {(run.limit, run.paper_protocol, run.epochs, run.seed) for run in planned} == {(None, False, 2, 0)}


@pytest.mark.parametrize("name", plan.STUDIES)
def test_what_is_recorded_tells_the_options_it_was_run_with(name):
    usual = plan.runs(Options(study=name))
    assert all(plan.recover_options(name, plan.as_dict(config)) == [] for config in usual)
    labels = [plan.label(name, config) for config in usual]
    assert all(config.optimizer in label.split() for config, label in zip(usual, labels, strict=True))
    # But for rows and protocol, by which generalise and overhead tell their own cells apart.
    if name not in ("generalise", "overhead"):
        assert len(set(labels)) == len(labels)
        moved = plan.runs(Options(study=name, limit=0, protocol="clean", processes=2, select="adamsls|growing-plasls"))
        said = (
            ["processes=2", "protocol=clean"] if name == "paper-full" else ["limit=0", "processes=2", "protocol=clean"]
        )
        assert all(plan.recover_options(name, plan.as_dict(config)) == said for config in moved)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (Options("rival"), "paper-small, paper-full"),
        (Options("rivals", protocol="dirty"), "paper or clean"),
        (Options("rivals", seeds=0), "at least 1"),
        (Options("rivals", select="lion"), "adamsls"),
        (Options("rivals", select="("), "not a regular expression"),
        (Options("rivals", epochs=0), "--epochs"),
        (Options("rivals", precision="fp8"), "fp32"),
        (Options("rivals", tasks="sst2,sts2"), "no task 'sts2'"),
        (Options("rivals", threads=0), "at least 1"),
        (Options("rivals", device="gpu"), "no device 'gpu'"),
        (Options("overhead", limit=32), "sets limit itself"),
        (Options("generalise", protocol="paper"), "sets protocol itself"),
        (Options("generalise", tasks="mrpc"), "sets tasks itself"),
    ],
)
def test_bad_options_get_a_sentence(options, named):
    with pytest.raises(BadInputError) as raised:
        plan.runs(options)
    assert named in str(raised.value)


def test_identity_is_what_decides_the_numbers():
    config = TrainingConfig(task="sst2", data_dir="here", optimizer="adamsls")

    def identity(**changes):
        return store.identity(plan.as_dict(dataclasses.replace(config, **changes)))

    assert identity() == identity(data_dir="there") == identity(device="cpu") == identity(save_models=False)
    # The default of a field and the same value written out are one run.
    assert identity() == identity(max_length=128)
    others = [{"seed": 1}, {"optimizer": "plasls"}, {"limit": 3}, {"precision": "bf16"}, {"max_length": 64}]
    assert len({identity(), *(identity(**change) for change in others)}) == 6


def test_a_new_field_of_training_leaves_old_identities_alone():
    # Frozen: the records in results/ are found by it.
    config = TrainingConfig(
        task="sst2", optimizer="adamsls", limit=500, evaluation_limit=400, evaluate_all=True, paper_protocol=True,
        save_models=False, max_length=128,
    )  # fmt: skip
    assert store.identity(plan.as_dict(config)) == "sst2-adamsls-seed0-fb9329b9"


FROZEN_DEFAULTS = {
    "model": None,
    "data_dir": None,
    "train": None,
    "evaluation": None,
    "text": None,
    "text_pair": None,
    "label": None,
    "limit": None,
    "evaluation_limit": None,
    "evaluate_all": False,
    "epochs": 5,
    "batch_size": 32,
    "precision": "fp32",
    "device": "auto",
    "paper_protocol": False,
    "lora": None,
    "lora_alpha": None,
    "lora_targets": None,
    "accumulate": None,
    "processes": None,
    "checkpoint_every": None,
    "save_models": True,
}


def test_what_identities_leave_out_stays_as_it_was():
    left_out = {key: value for key, value in plan._DEFAULTS.items() if key not in plan.ALWAYS_NAMED}
    for name in left_out.keys() - FROZEN_DEFAULTS.keys():
        pytest.fail(
            f"TrainingConfig has the new field {name!r}: make its default the value with which training behaves as it "
            f"did without the field, and then add {name!r}: {left_out[name]!r} to FROZEN_DEFAULTS in this test."
        )
    for name, value in FROZEN_DEFAULTS.items():
        assert name in left_out, (
            f"TrainingConfig has lost the field {name!r}: records in results/ that set it can no longer be found. If "
            "none does, remove it from FROZEN_DEFAULTS in this test."
        )
        assert left_out[name] == value, (
            f"The default of {name} changed from {value!r} to {left_out[name]!r}, so the records in results/ would no "
            f"longer be found: add {name!r}: {value!r} to CHANGED_DEFAULTS in armijo_lab/studies/plan.py."
        )


def test_a_plan_needs_no_device_and_spares_packages_that_keep_no_checkpoint():
    planned = plan.runs(Options("rivals", device="cuda", checkpoint_every=5, seeds=1, tasks=" sst2 , mrpc"))
    assert {run.device for run in planned} == {"cuda"}
    assert {run.checkpoint_every for run in planned if run.optimizer == "salsa"} == {None}
    assert {run.checkpoint_every for run in planned if run.optimizer == "adamsls"} == {5}
