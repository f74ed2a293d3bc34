"""Models that were never trained, and tasks without texts."""

from dataclasses import replace

import pytest
import torch

from armijo_lab import models, shapes, training
from armijo_lab.errors import BadInputError
from armijo_lab.results.run_folder import read_run
from armijo_lab.tasks import beyond
from armijo_lab.training import TrainingConfig
from lab import tiny

BASE = TrainingConfig(epochs=1, batch_size=16, limit=48, evaluation_limit=32, save_models=False, device="cpu")


@pytest.mark.parametrize("optimizer", ["plasls", "adamsls", "adamw:lr=1e-3"])
@pytest.mark.parametrize(
    ("task", "model"),
    [("digits", "random:vit-tiny"), ("digits", "random:resnet-tiny"), ("characters", "random:gpt-tiny")],
)
def test_other_data_train(task, model, optimizer, tmp_path):
    config = replace(BASE, task=task, model=model, optimizer=optimizer, epochs=3)
    summary = training.run(config, tmp_path / "run")
    assert summary["status"] == "completed"
    first, last = (read_run(tmp_path / "run").epochs[place]["train_loss"] for place in (0, -1))
    assert last < first
    assert 0 <= summary["result"]["last"]["accuracy"] <= 1


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("paper_protocol", [False, True])
def test_shapes_of_text_models(family, paper_protocol):
    task = tiny.task()
    model, tokenizer = models.load(f"random:{family}-tiny", task, paper_protocol=paper_protocol, seed=3)
    again, _ = models.load(f"random:{family}-tiny", task, paper_protocol=paper_protocol, seed=3)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    if paper_protocol:
        assert not any("pooler" in name for name, _ in model.named_parameters())
    else:
        assert tuple(model.config.id2label[i] for i in range(2)) == task.labels
    # As many tokens as it is said to read.
    long = tokenizer(
        "word " * 600, truncation=True, max_length=models.max_length(model, tokenizer), return_tensors="pt"
    )
    assert model(**long).logits.shape == (1, 2)
    assert {name: size for name, size in shapes.SIZES.items() if name in ("base", "large")} == {
        "base": (12, 768),
        "large": (24, 1024),
    }


@pytest.mark.parametrize(
    ("task", "model", "named"),
    [
        ("sst2", "random:bert-huge", "tiny, mini"),
        ("sst2", "random:vit-tiny", "bert, roberta, distilbert"),
        ("digits", "random:bert-tiny", "vit, resnet"),
        ("characters", None, "gpt"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(task, model, named):
    data = beyond.load(task) if task in beyond.TASKS else tiny.task()
    with pytest.raises(BadInputError) as raised:
        models.load(model, data)
    assert named in str(raised.value)


def test_digits_of_other_hands_are_held_out():
    task = beyond.load("digits")
    assert (len(task.train), len(task.evaluation)) == (1397, 400)
    inputs, targets = task.encode(task.train)
    assert inputs["pixel_values"].shape == (1397, 1, 8, 8)
    assert inputs["pixel_values"].aminmax() == (-1.0, 1.0)
    assert targets.tolist() == list(task.train.targets)


def test_characters_are_predicted_one_place_ahead():
    task = beyond.load("characters")
    inputs, targets = task.encode(task.evaluation)
    assert inputs["input_ids"].shape == targets.shape
    assert torch.equal(inputs["input_ids"][:, 1:], targets[:, :-1])
    assert "".join(task.labels[code] for code in inputs["input_ids"][0]).isprintable()
    assert len(task.answers(task.evaluation)) == targets.numel()


def test_they_are_not_for_what_is_to_be_saved(tmp_path):
    with pytest.raises(BadInputError, match="no GLUE task digits"):
        training.run(replace(BASE, task="digits", model="random:vit-tiny", save_models=True), tmp_path / "run")
