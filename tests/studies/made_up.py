"""Records with numbers that can be checked in one's head."""

from pathlib import Path
from typing import Any

from armijo_lab.results import store
from armijo_lab.studies import plan
from armijo_lab.training import TrainingConfig


def record(
    study: str,
    config: TrainingConfig,
    scores: list[float],
    *,
    final: float | None = None,
    seconds: float = 10.0,
    forwards: int = 20,
    step_size: float | None = None,
    status: str = "completed",
    searches: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A record of ten steps whose accuracies after each epoch are `scores`."""
    values = plan.as_dict(config)
    losses = [1.0 / (step + 1) for step in range(10)]
    sizes = {} if step_size is None else {"smallest": [step_size] * 10, "largest": [2 * step_size] * 10}
    parts = [] if step_size is None else [{"label": "a", "step_size": step_size, "parameters": 7}]
    return {
        "run": store.identity(values),
        "study": study,
        "status": status,
        "config": {**values, "precision": config.precision},
        "seed": config.seed,
        "commit": "0123456789abcdef-dirty",
        "versions": {"torch": "2.13.0", "transformers": "5.0"},
        "hardware": {"cpu": "a CPU", "threads": 1},
        "model": {"name": "tiny", "parameters": 1_000_000},
        "task": {"name": config.task or "embedded", "metrics": ["accuracy"], "train_rows": 24, "eval_rows": 16},
        "epochs": [
            {
                "epoch": number,
                "step": number * 2,
                "train_loss": 1 / number,
                "evaluation": {"accuracy": score, "loss": None if status == "diverged" else 0.5},
                "seconds": {"training": seconds * number / len(scores), "evaluation": 1.0, "logging": 0.0},
            }
            for number, score in enumerate(scores, 1)
        ],
        "final": None if final is None else {"accuracy": final, "loss": None if status == "diverged" else 0.4},
        "majority": 0.5,
        "mean_log_loss": -1.0,
        "forwards": forwards,
        "backwards": 10,
        "steps": 10,
        "trials": forwards - 10,
        "ties": 0,
        "failed_searches": 0,
        "merges": [],
        "components": parts,
        "seconds": {"training": seconds, "evaluation": 2.0, "logging": 0.5},
        "peak_memory": {"resident": 2**30},
        "searches": searches,
        "losses": losses,
        "forwards_a_step": [forwards // 10] * 10,
        **sizes,
    }


def rivals() -> list[dict[str, Any]]:
    """SST-2: AdamSLS beats AdamW by two points with every seed, SaLSa wanders, SGD diverges, DoG fails."""
    records = []
    adamw = "adamw:lr=1e-4,schedule=cosine,warmup=0.1"
    for config in plan.runs(plan.Options("rivals", tasks="sst2")):
        seed = config.seed
        if config.optimizer == "adamsls":
            scores = [0.7, 0.79 + seed / 100, 0.8 + seed / 100]
            records.append(record("rivals", config, scores, final=0.82 + seed / 100, step_size=1e-3, seconds=20))
        elif config.optimizer == "growing-plasls" and seed == 0:
            records.append(record("rivals", config, [0.6, 0.7, 0.65], final=0.64, step_size=1e-4, forwards=30))
        elif config.optimizer == adamw:
            records.append(record("rivals", config, [0.6, 0.7, 0.78], final=0.8 + seed / 100, forwards=10))
        elif config.optimizer == "adamw:lr=2e-5,schedule=cosine,warmup=0.1":
            records.append(record("rivals", config, [0.5, 0.6, 0.7], final=0.7, seconds=11, forwards=10))
        elif config.optimizer == "salsa":
            records.append(record("rivals", config, [0.8, 0.8, 0.8], final=(0.7, 0.82, 0.9)[seed], forwards=25))
        elif config.optimizer == "sgd:lr=1e-1,schedule=cosine":
            records.append(record("rivals", config, [0.5, 0.5, 0.5], final=0.5, status="diverged"))
        elif config.optimizer == "dog" and seed == 0:
            records.append(store.failure("rivals", plan.as_dict(config), RuntimeError("out of luck")))
    return records


def write(folder: Path) -> None:
    """`rivals` as a file of records."""
    for entry in rivals():
        store.append(folder / "rivals.jsonl", entry)
