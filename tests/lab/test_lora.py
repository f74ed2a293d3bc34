"""LoRA and accumulated gradients: what is trained, that it is the same step, and what is saved."""

import importlib.util
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from armijo_lab import cli, models, training
from armijo_lab.commands.predict import load_predictor, predict
from armijo_lab.errors import BadInputError
from armijo_lab.results import store
from armijo_lab.results.card import model_card
from armijo_lab.results.run_folder import read_run
from armijo_lab.studies.plan import as_dict
from armijo_lab.training import InterruptedRunError, TrainingConfig, runs
from lab import tiny

pytest.importorskip("peft")

# 22 rows, 8 a step: 8, 8 and 6; in batches of 4 the last two have 4 and 2.
BASE = TrainingConfig(optimizer="adamsls", batch_size=8, epochs=2, max_length=16, device="cpu")
LORA = replace(BASE, lora=2, epochs=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def start(folder):
    """Train on the tiny task; the trained model and the summary."""

    def start(config, output, **keywords):
        task = tiny.task(22)
        model, tokenizer = models.load(str(folder), task, paper_protocol=config.paper_protocol, seed=config.seed)
        return model, training.train(config, task, model, tokenizer, output, **keywords)

    return start


OURS = ("plasls:n_groups=2", "adamsls", "sgdsls", "paper-plasls:joint_steps=1,baseline=moved")
OTHERS = ("adam:lr=1e-3", "salsa", "gen:every=2", "momo", "dog", "schedulefree", "prodigy", "mechanic")


@pytest.mark.parametrize("optimizer", OURS + OTHERS)
def test_two_batches_of_four_are_one_of_eight(start, tmp_path, optimizer):
    """Without dropout, whose masks would differ, and in float64, so that rounding decides nothing."""
    one = replace(BASE, optimizer=optimizer, precision="fp64", paper_protocol=True, save_models=False)
    found = []
    for name, config in (("one", one), ("two", replace(one, batch_size=4, accumulate=2))):
        model, summary = start(config, tmp_path / name)
        found.append((read_run(tmp_path / name).steps, summary, list(model.parameters())))
    (steps, summary, parameters), (again, other, others) = found
    assert len(steps) == len(again) == 6
    for step, same in zip(steps, again, strict=True):
        assert step["forwards"] == same["forwards"]
        assert step["loss"] == pytest.approx(same["loss"], rel=1e-6)
        assert step["lr"] is same["lr"] is None or step["lr"] == pytest.approx(same["lr"], rel=1e-6)
        for part, twin in zip(step["components"], same["components"], strict=True):
            assert (part["status"], part["trials"]) == (twin["status"], twin["trials"])
            assert part["step_size"] == pytest.approx(twin["step_size"], rel=1e-9)
    assert (summary["steps"], summary["forwards"], summary["trials"]) == (
        other["steps"],
        other["forwards"],
        other["trials"],
    )
    # The gradient of a key's bias is nothing but rounding, and Adam makes a full step of it; the loss knows nothing.
    for (name, _), one_, two in zip(model.named_parameters(), parameters, others, strict=True):
        if "key.bias" not in name:
            torch.testing.assert_close(one_, two, rtol=1e-4, atol=1e-6)


def test_one_batch_a_step_is_what_it_was(start, tmp_path):
    for name, accumulate in (("a", None), ("b", 1)):
        start(replace(BASE, accumulate=accumulate, save_models=False), tmp_path / name)
    assert read_run(tmp_path / "a").steps == read_run(tmp_path / "b").steps


@pytest.mark.parametrize(
    ("optimizer", "paper_protocol"),
    [("plasls", False), ("plasls:split=projection", True), ("adamsls", True), ("adam:lr=1e-2", False), ("dog", False)],
)
def test_adapters_and_head_move_and_nothing_else(start, folder, tmp_path, optimizer, paper_protocol):
    config = replace(LORA, optimizer=optimizer, paper_protocol=paper_protocol, save_models=False)
    before, _ = models.load(str(folder), tiny.task(22), paper_protocol=paper_protocol)
    before = dict(before.named_parameters())
    model, summary = start(config, tmp_path / "run")
    trained = 0
    for name, parameter in model.named_parameters():
        if "lora_" in name or any(part in name for part in ("pooler", "classifier", "head.")):
            assert parameter.requires_grad
            trained += parameter.numel()
            # B begins at 0, and with B the head alone has a gradient in the first step.
            assert "lora_A" in name or not torch.equal(parameter, before.get(name, torch.zeros_like(parameter)))
        else:
            assert not parameter.requires_grad
            assert torch.equal(parameter, before[name.replace(".base_layer", "")])
    assert any("lora_A" in name for name, _ in model.named_parameters())
    assert summary["model"]["trainable"] == trained < summary["model"]["parameters"]
    assert summary["model"]["parameters"] == sum(parameter.numel() for parameter in before.values())
    if summary["optimizer"]["components"]:
        assert sum(component["parameters"] for component in summary["optimizer"]["components"]) == trained


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [(None, {"query", "key", "value", "dense"}), ("query, value", {"query", "value"}), ("dense", {"dense"})],
)
def test_which_layers_get_an_adapter(folder, targets, adapted):
    model, _ = models.load(str(folder), tiny.task())
    replace(LORA, lora_targets=targets, lora_alpha=3.0).adapt(model)
    layers = {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert {name.rpartition(".")[2] for name in layers} == adapted
    assert not any("pooler" in name or "classifier" in name for name in layers)
    assert {model.get_submodule(name).scaling["default"] for name in layers} == {1.5}
    again, _ = models.load(str(folder), tiny.task())
    torch.rand(5)  # whatever was drawn in between
    replace(LORA, lora_targets=targets, lora_alpha=3.0).adapt(again)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("optimizer", ["plasls:n_groups=2", "adam:lr=1e-2"])
def test_an_interrupted_and_resumed_run_equals_the_uninterrupted(start, folder, tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(runs, "load_task", lambda config: tiny.task(22))
    config = replace(LORA, optimizer=optimizer, model=str(folder), batch_size=4, accumulate=2)
    start(config, tmp_path / "whole")

    def interrupt(record):
        if record["kind"] == "step" and record["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRunError) as raised:
        start(config, tmp_path / "parts", observe=interrupt)
    assert (raised.value.step, raised.value.total_steps) == (5, 9)
    torch.rand(5)
    again, _ = training.resume(tmp_path / "parts")
    assert again == config
    whole, parts = read_run(tmp_path / "whole"), read_run(tmp_path / "parts")
    assert whole.steps == parts.steps
    assert whole.summary["result"] == parts.summary["result"]
    for name in ("best", "last"):
        one, other = (load_file(run.folder / name / "model.safetensors") for run in (whole, parts))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("paper_protocol", [False, True])
def test_what_is_saved_predicts_what_was_evaluated_and_needs_no_peft(start, tmp_path, monkeypatch, paper_protocol):
    config = replace(LORA, optimizer="adam:lr=3e-2,schedule=constant", paper_protocol=paper_protocol)
    model, summary = start(config, tmp_path / "run")
    texts, targets = tiny.task(22).evaluation.texts, tiny.task(22).evaluation.targets
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    for name in ("best", "last"):
        predictor = load_predictor(tmp_path / "run" / name)
        assert not any("lora" in key for key, _ in predictor.model.named_parameters())
        found = predict(predictor, texts)
        right = [answer.label == predictor.labels[target] for answer, target in zip(found, targets, strict=True)]
        assert sum(right) / len(right) == summary["result"][name]["accuracy"]
    inputs = predictor.tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model.eval()(**inputs).logits.softmax(-1)
    torch.testing.assert_close(torch.tensor([answer.probabilities for answer in found]).float(), wanted)
    adapted = next(module for key, module in model.named_modules() if key.endswith("layer.0.attention.self.query"))
    assert adapted.get_delta_weight("default").abs().max() > 1e-3, "without the adapters it would answer differently"


def test_the_model_that_was_saved_can_be_trained_again(start, tmp_path):
    start(replace(LORA, epochs=1), tmp_path / "run")
    config = replace(LORA, epochs=1, model=str(tmp_path / "run" / "best"))
    model, tokenizer = models.load(config.model, tiny.task(22))
    assert training.train(config, tiny.task(22), model, tokenizer, tmp_path / "again")["status"] == "completed"


def test_summary_and_card_tell_it_and_the_identity_only_where_it_is_asked_for(start, tmp_path):
    _, summary = start(replace(LORA, batch_size=4, accumulate=2, epochs=1), tmp_path / "run")
    assert {key: summary["config"][key] for key in ("lora", "lora_alpha", "lora_targets", "accumulate")} == {
        "lora": 2,
        "lora_alpha": None,
        "lora_targets": None,
        "accumulate": 2,
    }
    card = " ".join(model_card(json.loads(json.dumps(summary))).split())
    assert "batches of 8 (gradients of 2 times 4 added up)" in card
    assert "LoRA adapters of rank 2 (alpha 4) beside every linear layer of the encoder" in card
    assert f"{summary['model']['trainable']:,} parameters in all" in card
    _, plain = start(replace(BASE, epochs=1), tmp_path / "plain")
    assert "LoRA" not in model_card(plain)
    assert "batches of 8," in model_card(plain)
    assert "trainable" not in plain["model"]

    assert not as_dict(BASE).keys() & {"lora", "lora_alpha", "lora_targets", "accumulate"}
    others = [replace(BASE, lora=2), replace(BASE, lora=3), replace(LORA, lora_targets="query")]
    others += [replace(LORA, lora_alpha=1.0), replace(BASE, accumulate=2)]
    assert len({store.identity(as_dict(config)) for config in (BASE, LORA, *others)}) == 2 + len(others)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lora": 0}, "--lora is 0; it must be at least 1"),
        ({"accumulate": 0}, "--accumulate is 0"),
        ({"lora_alpha": 4.0}, "set their rank with --lora, as in --lora 8"),
        ({"lora_targets": "query"}, "--lora-targets describes LoRA adapters"),
        ({"lora": 2, "lora_alpha": 0.0}, "--lora-alpha is 0; it must be a number above 0"),
    ],
)
def test_values_that_cannot_be_are_refused(values, said):
    with pytest.raises(BadInputError, match=said):
        replace(BASE, **values).check()


def test_a_missing_peft_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInputError, match=r"pip install 'armijo\[peft\]'"):
        LORA.check()
    BASE.check()


def test_layers_that_are_not_there_are_named_and_nothing_is_written(start, tmp_path):
    with pytest.raises(
        BadInputError, match="no linear layer 'q_proj' to adapt; --lora-targets takes names among query"
    ):
        start(replace(LORA, lora_targets="query,q_proj"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_the_options(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 30)
    command = f"finetune --train {rows} --text text --label label --model {folder} --max-length 16 --device cpu "
    command += (
        "--batch-size 4 --accumulate 3 --epochs 1 --lora 2 --lora-alpha 3 --lora-targets query,value --output run"
    )
    with pytest.raises(SystemExit) as raised:
        cli.main(command.split())
    assert raised.value.code == 0, capsys.readouterr().err
    config = read_run(tmp_path / "run").summary["config"]
    assert (config["lora"], config["lora_alpha"], config["lora_targets"], config["accumulate"]) == (
        2,
        3.0,
        "query,value",
        3,
    )
    assert read_run(tmp_path / "run").summary["steps"] == 2
