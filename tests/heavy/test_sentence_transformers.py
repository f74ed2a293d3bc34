"""The trainers of sentence-transformers take the steps of a plain loop, the parameters of a loss among what moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer import losses
from torch import nn

import armijo
from armijo.integrations.transformers import ArmijoMixin, attach, line_search
from heavy.loop import QUIET, accepted, equal, features, plain, same, watched
from lab import tiny

pytestmark = pytest.mark.heavy

BATCH = 5


class Embedding(ArmijoMixin, SentenceTransformerTrainer):
    pass


class Cross(ArmijoMixin, CrossEncoderTrainer):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny"))


def pairs(label: type | None = int, count: int = 20) -> Dataset:
    """Two sentences, and whether both are kind or both unkind."""
    made = tiny.task(2 * count).train
    halves = made.texts[:count], made.texts[count:]
    columns: dict[str, Any] = {"one": list(halves[0]), "other": list(halves[1])}
    # Rows come good, bad, good, …: shifted by one every fourth pair disagrees.
    columns["other"] = [*columns["other"][: count // 2], *columns["other"][count // 2 + 1 :], columns["other"][0]]
    if label is not None:
        kind = dict(zip(made.texts, made.targets, strict=True))
        same_kind = [kind[a] == kind[b] for a, b in zip(columns["one"], columns["other"], strict=True)]
        assert 0 < sum(same_kind) < count
        columns["label"] = [label(agree) for agree in same_kind]
    return Dataset.from_dict(columns)


def embedder(folder: str, dropout: float = 0.1) -> SentenceTransformer:
    model = SentenceTransformer(folder)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


def softmax(model: SentenceTransformer) -> nn.Module:
    torch.manual_seed(3)
    return losses.SoftmaxLoss(model, model.get_embedding_dimension(), num_labels=2)


def mean_over(loss: nn.Module) -> Any:
    return lambda batch, update: loss(features(batch), batch.get("label")) / len(update)


LOSSES = {
    "softmax": (softmax, softmax, int),
    "cosine": (losses.CosineSimilarityLoss, losses.CosineSimilarityLoss, float),
    "ranking": (losses.MultipleNegativesRankingLoss, losses.MultipleNegativesRankingLoss, None),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_embeddings_take_the_steps_of_a_plain_loop(folder: str, tmp_path: Path, name: str, accumulate: int) -> None:
    built, rebuilt, label = LOSSES[name]
    model, twin = embedder(folder), embedder(folder)
    loss, again = built(model), rebuilt(twin)
    before = [parameter.detach().clone() for parameter in loss.parameters()]
    args = SentenceTransformerTrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulate,
        **QUIET,
    )
    trainer = Embedding(model=model, args=args, train_dataset=pairs(label), loss=loss)
    updates = watched(trainer)
    trainer.train()
    assert len(updates.reports) == 8 // accumulate
    same(updates.reports, plain(updates.batches, again, armijo.AdamSLS(again.parameters()), mean_over(again)))
    assert equal(loss, again)
    moved = [not torch.equal(*pair) for pair in zip(before, loss.parameters(), strict=True)]
    # The pooler of BERT is no part of a sentence embedding.
    assert sum(moved) == len(moved) - sum("pooler" in name for name, _ in loss.named_parameters())
    assert accepted(updates.reports) > 0


def test_components_are_those_of_the_loss(folder: str, tmp_path: Path) -> None:
    model, twin = embedder(folder), embedder(folder)
    loss, again = softmax(model), softmax(twin)
    args = SentenceTransformerTrainingArguments(
        str(tmp_path), num_train_epochs=3, per_device_train_batch_size=BATCH, **QUIET
    )
    trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=pairs(int), loss=loss)
    attach(trainer, line_search(armijo.PLASLS, n_layer_groups=2))
    updates = watched(trainer)
    trainer.train()
    optimizer = armijo.PLASLS(armijo.split(again, by="layer", n_layer_groups=2))
    assert [group["component"] for group in optimizer.param_groups] == ["embeddings", "layers.0", "layers.1", "head"]
    same(updates.reports, plain(updates.batches, again, optimizer, mean_over(again)))
    assert equal(loss, again)


def test_a_loss_that_caches_gradients_is_the_loss_without_a_cache(folder: str, tmp_path: Path) -> None:
    """It embeds without a graph, and again in a hook of the backward pass: of all losses the one that does most."""
    model, twin = embedder(folder, dropout=0.0), embedder(folder, dropout=0.0)
    loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
    again = losses.MultipleNegativesRankingLoss(twin)
    args = SentenceTransformerTrainingArguments(
        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=BATCH, **QUIET
    )
    trainer = Embedding(model=model, args=args, train_dataset=pairs(None), loss=loss)
    updates = watched(trainer)
    trainer.train()
    same(
        updates.reports, plain(updates.batches, again, armijo.AdamSLS(again.parameters()), mean_over(again)), rtol=1e-4
    )


def test_a_loss_for_each_data_set(folder: str, tmp_path: Path) -> None:
    model, twin = embedder(folder), embedder(folder)
    both = {"kinds": softmax(model), "near": losses.CosineSimilarityLoss(model)}
    again = nn.ModuleDict({"kinds": softmax(twin), "near": losses.CosineSimilarityLoss(twin)})
    args = SentenceTransformerTrainingArguments(
        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=BATCH, **QUIET
    )
    data = {"kinds": pairs(int), "near": pairs(float)}
    trainer = Embedding(model=model, args=args, train_dataset=data, loss=both)
    updates = watched(trainer)
    trainer.train()
    assert {batch["dataset_name"] for update in updates.batches for batch in update} == {"kinds", "near"}
    found = plain(
        updates.batches,
        again,
        armijo.AdamSLS(again.parameters()),
        lambda batch, update: again[batch["dataset_name"]](features(batch), batch["label"]),
    )
    same(updates.reports, found)
    assert equal(nn.ModuleDict(both), again)


class Parts(nn.Module):
    """A loss that returns its parts by name, which the trainer adds up and logs."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.near, self.kinds = losses.CosineSimilarityLoss(model), softmax(model)

    def forward(self, given: Any, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        given = list(given)
        return {"near": self.near(given, labels.float()), "kinds": self.kinds(given, labels)}


def test_parts_of_a_loss_are_logged_without_those_of_trials(folder: str, tmp_path: Path) -> None:
    """With lr = 0 there are trials and no moves, so that all that is logged must be what is logged without trials."""
    logged = []
    for kind in (Embedding, SentenceTransformerTrainer):
        model = embedder(folder, dropout=0.0)
        args = SentenceTransformerTrainingArguments(
            str(tmp_path), num_train_epochs=2, per_device_train_batch_size=BATCH, learning_rate=0.0, **QUIET
        )
        choice = line_search(lr=0.0) if kind is Embedding else None
        trainer = kind(
            model=model, args=args, train_dataset=pairs(int), loss=Parts(model), optimizer_cls_and_kwargs=choice
        )
        trainer.train()
        logged.append([{key: e[key] for key in ("near", "kinds", "loss")} for e in trainer.state.log_history[:-1]])
        if kind is Embedding:
            assert sum(entry["forwards"] for entry in trainer.state.log_history[:-1]) > len(logged[0])
    assert len(logged[0]) == 8
    assert logged[0] == logged[1]


def test_evaluation_and_checkpoints_leave_the_steps_alone(folder: str, tmp_path: Path) -> None:
    """And a resumed run is the run that was not interrupted; with parameters of its own the loss would begin anew."""
    options = {**QUIET, "num_train_epochs": 2, "per_device_train_batch_size": BATCH}

    def run(name: str, resume: str | None = None, **more: Any) -> tuple[nn.Module, Any]:
        model = embedder(folder)
        loss = losses.CosineSimilarityLoss(model)
        args = SentenceTransformerTrainingArguments(str(tmp_path / name), **{**options, **more})
        trainer = Embedding(model=model, args=args, train_dataset=pairs(float), eval_dataset=pairs(float, 8), loss=loss)
        updates = watched(trainer)
        trainer.train(resume_from_checkpoint=resume)
        return loss, updates.reports

    loss, reports = run("plain")
    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    again, repeated = run("saved", **saving)
    same(repeated, reports)
    assert equal(loss, again)
    resumed, rest = run("saved", str(tmp_path / "saved" / "checkpoint-3"), **saving)
    assert rest == repeated[3:]
    assert equal(resumed, again)


def test_a_cross_encoder_takes_the_steps_of_a_plain_loop(folder: str, tmp_path: Path) -> None:
    def built() -> CrossEncoder:
        torch.manual_seed(5)
        return CrossEncoder(folder, num_labels=1)

    model, twin = built(), built()
    args = CrossEncoderTrainingArguments(str(tmp_path), num_train_epochs=2, per_device_train_batch_size=BATCH, **QUIET)
    trainer = Cross(model=model, args=args, train_dataset=pairs(float), loss=BinaryCrossEntropyLoss(model))
    updates = watched(trainer)
    trainer.train()

    def loss_of(batch: dict[str, Any], update: list[Any]) -> torch.Tensor:
        texts = list(zip(batch["one"], batch["other"], strict=True))
        inputs = twin.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        logits = twin[0].auto_model(**inputs).logits.squeeze(-1)
        return nn.functional.binary_cross_entropy_with_logits(logits, batch["label"].float())

    same(updates.reports, plain(updates.batches, twin, armijo.AdamSLS(twin.parameters()), loss_of))
    assert equal(model, twin)
    assert accepted(updates.reports) > 0
