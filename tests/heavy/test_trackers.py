"""What a search found reaches W&B, MLflow and trackio, through the Trainer and through Lightning.

Offline, in files of a folder. The three are no part of any extra, and tests of one that is not installed are skipped;
`nox -s trackers` installs them.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as Lightning
from transformers import TrainingArguments

import armijo
from armijo.integrations.lightning import ArmijoMixin, StepSizeLogger
from armijo.integrations.transformers import ArmijoTrainer, line_search
from integrations.rows import batched, bert, rows

pytestmark = pytest.mark.heavy

STEPS = 4


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def trainer(tracker: str) -> list[dict[str, Any]]:
    """What the Trainer has logged, with that tracker on."""
    arguments = TrainingArguments(
        "run",
        max_steps=STEPS,
        logging_steps=1,
        per_device_train_batch_size=8,
        report_to=[tracker],
        run_name="armijo",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    made = ArmijoTrainer(
        bert(), arguments, train_dataset=rows(), optimizer_cls_and_kwargs=line_search(armijo.PLASLS, n_layer_groups=2)
    )
    made.train()
    return [entry for entry in made.state.log_history if "loss" in entry]


class Module(ArmijoMixin, LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = bert()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(**batch).loss

    def configure_optimizers(self) -> Any:
        return armijo.AdamSLS(self.parameters())


def lightning(logger: Any) -> None:
    fit = Lightning(
        max_steps=STEPS,
        log_every_n_steps=1,
        logger=logger,
        callbacks=[StepSizeLogger()],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    fit.fit(Module(), torch.utils.data.DataLoader(batched(rows(), 8), batch_size=None))


def of_wandb() -> dict[str, Any]:
    """The last value of each number of the run, which ends."""
    import wandb

    assert wandb.run is not None
    found = dict(wandb.run.summary)
    wandb.finish()
    return found


def of_mlflow(folder: Path, key: str) -> list[float]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        return [row[0] for row in database.execute("select value from metrics where key = ? order by step", (key,))]


def test_wandb_has_what_the_trainer_logs() -> None:
    pytest.importorskip("wandb")
    last = trainer("wandb")[-1]
    kept = of_wandb()
    for key in ("learning_rate", "forwards", "accepted", *(key for key in last if key.startswith("step_size/"))):
        assert kept[f"train/{key}"] == pytest.approx(last[key])


def test_mlflow_has_what_the_trainer_logs(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    logged = trainer("mlflow")
    assert any(key.startswith("step_size/") for key in logged[0])
    for key in logged[0].keys() - {"epoch", "step"}:
        assert of_mlflow(tmp_path, key) == pytest.approx([entry[key] for entry in logged])


def test_trackio_has_what_the_trainer_logs(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    logged = trainer("trackio")
    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        kept = [json.loads(row[0]) for row in database.execute("select metrics from metrics order by id")]
    kept = [entry for entry in kept if "train/loss" in entry]
    assert len(kept) == len(logged) == STEPS
    for entry, said in zip(kept, logged, strict=True):
        for key in said.keys() - {"epoch", "step"}:
            assert entry[f"train/{key}"] == pytest.approx(said[key])


def test_wandb_has_what_lightning_logs(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    lightning(WandbLogger(project="armijo", offline=True, save_dir=tmp_path))
    kept = of_wandb()
    assert kept["trainer/global_step"] == STEPS - 1
    assert kept["step_size"] > 0
    assert kept["forwards"] >= 2


def test_mlflow_has_what_lightning_logs(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    lightning(MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}"))
    assert len(of_mlflow(tmp_path, "step_size")) == STEPS
    assert min(of_mlflow(tmp_path, "step_size")) > 0
    assert min(of_mlflow(tmp_path, "forwards")) >= 2
