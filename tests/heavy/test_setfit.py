"""SetFit builds its trainer itself; `attach` gives that one a line search, for the phase that tunes embeddings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression

import armijo
from armijo.integrations.transformers import attach, line_search
from heavy.loop import accepted, equal, features, plain, same, searcher, watched
from lab import tiny

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_model(tmp_path_factory.mktemp("models") / "tiny"))


def made(folder: str, output: Path, **options: Any) -> Trainer:
    model = SetFitModel(model_body=SentenceTransformer(folder), model_head=LogisticRegression())
    task = tiny.task(16, 8)
    rows = [
        Dataset.from_dict({"text": list(split.texts), "label": list(split.targets)})
        for split in (task.train, task.evaluation)
    ]
    given = {"batch_size": 4, "max_steps": 8, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    args = TrainingArguments(str(output), **{**given, **options})
    return Trainer(model, args, *rows)


def test_the_trainer_inside_takes_the_steps_of_a_plain_loop(folder: str, tmp_path: Path) -> None:
    trainer = made(folder, tmp_path, warmup_proportion=0.0)
    twin = copy.deepcopy(trainer.model.model_body)
    attach(trainer.st_trainer, line_search(armijo.AdamSLS))
    updates = watched(trainer.st_trainer)
    trainer.train()
    assert len(updates.reports) == 8
    loss = CosineSimilarityLoss(twin)
    # SetFit's l2_weight is 0.01 by default.
    spared = [p for name, p in twin.named_parameters() if "bias" in name or "LayerNorm" in name]
    decayed = [p for p in twin.parameters() if all(p is not one for one in spared)]
    optimizer = armijo.AdamSLS([{"params": decayed, "weight_decay": 0.01}, {"params": spared}])
    wanted = plain(updates.batches, twin, optimizer, lambda batch, _: loss(features(batch), batch["label"]))
    same(updates.reports, wanted)
    assert equal(trainer.model.model_body, twin)
    assert accepted(updates.reports) > 0
    assert hasattr(trainer.model.model_head, "coef_"), "the head comes after, by SetFit's own means"


def test_its_logs_and_its_defaults(folder: str, tmp_path: Path) -> None:
    """It renames the loss in the logs; its warm-up, of half the steps here, ends with whole steps."""
    trainer = made(folder, tmp_path, warmup_proportion=0.5)
    attach(trainer.st_trainer, line_search(armijo.PLASLS, n_layer_groups=2))
    trainer.train()
    logged = [entry for entry in trainer.st_trainer.state.log_history if "embedding_loss" in entry]
    labels = ("embeddings", "layers.0", "layers.1", "head")
    assert len(logged) == 8
    for entry in logged:
        assert {f"step_size/{label}" for label in labels} <= entry.keys()
        assert entry["forwards"] >= 1
    assert {group["lr"] for group in searcher(trainer.st_trainer).param_groups} == {1.0}


def test_attach_says_where_the_trainer_is(folder: str, tmp_path: Path) -> None:
    with pytest.raises(armijo.ConfigurationError, match=r"It holds one: attach\(trainer.st_trainer\)"):
        attach(made(folder, tmp_path))  # pyright: ignore[reportArgumentType]
