"""The laboratory's records: one JSON object per run, one file of lines per study.

    results/rivals.jsonl    every run of the study `rivals`, in the order in which they ended

Several processes may append at once. A run that was done twice has two lines; the later one counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from armijo_lab.names import slug
from armijo_lab.results.run_folder import Run, environment, finite

__all__ = ["append", "failure", "identity", "line", "read", "record", "searches"]

logger = logging.getLogger("armijo")

# These settings decide where the rows are and how a run is done, but not what it computes.
_EXECUTION_FIELDS = ("data_dir", "device", "checkpoint_every", "save_models")
_UNIT_ROUNDOFF = {"fp32": 2.0**-24, "fp64": 2.0**-53, "bf16": 2.0**-8}
_MARGIN = 10.0
"""A test that promises fewer units of rounding than this may be decided by rounding."""


def identity(config: Mapping[str, Any]) -> str:
    """Return the name that identifies a run: readable, and short enough for a folder.

    Args:
        config: A training configuration, from `studies.plan.as_dict`. The folder of its rows and the device do not
            count.
    """
    computed = {key: _last_name(value) for key, value in config.items() if key not in _EXECUTION_FIELDS}
    digest = hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:8]
    return f"{config['task'] or 'embedded'}-{slug(config['optimizer'])[:80]}-seed{config['seed']}-{digest}"


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the records of all studies in `folder`, by the identity of the run; `{}` if there are none.

    The last record of a run counts, but a failure never hides a run that ended. A line that a crash left half-written
    is skipped with a warning.
    """
    records: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            try:
                entry = json.loads(line)
                previous = records.get(entry["run"])
                if previous is None or entry["status"] != "failed" or previous["status"] == "failed":
                    records[entry["run"]] = entry
            except (ValueError, KeyError, TypeError):
                logger.warning("Line %d of %s is not the record of a run and is skipped.", number, path)
    return records


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """Append a record to a study's file, which is made; it is on disk when the call returns.

    A lock file beside it serializes the writes of several processes.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(finite(dict(entry)), allow_nan=False, separators=(",", ":")).encode() + b"\n"
    with FileLock(path.with_name(".lock")), path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            # A line that a crash left half-written stays a line of its own.
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def failure(study: str, config: Mapping[str, Any], error: BaseException) -> dict[str, Any]:
    """Make the record of a run that failed."""
    message = " ".join(str(error).split())[:500]
    # A message may contain folders of this machine.
    message = re.sub(r"(?<!\w)(?:~|\.{0,2})(?:/[^\s/,;:'\")]+)+/?", lambda found: Path(found.group()).name, message)
    return {
        "run": identity(config),
        "study": study,
        "status": "failed",
        "error": f"{type(error).__name__}: {message}" if message else type(error).__name__,
        "config": _without_folders(config),
        "seed": config["seed"],
        **{key: value for key, value in environment().items() if key in ("commit", "versions")},
        "ended": _now(),
    }


def record(study: str, config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Make the record of a run that ended, from its folder.

    Returns:
        `run` (its identity), `study`, `status` (completed, diverged), `config`, `seed`, `commit`, `versions`,
        `hardware`, `ended` (UTC),
        `model`, `task`, `epochs` (for each its training loss, the evaluation, and the seconds since the
        run began), `final` (on all held-out rows after the last epoch), `mean_log_loss`, `forwards`, `backwards`,
        `steps`, `trials`, `failed_searches`, `merges`, `components` (label, final step size, parameters), `seconds`
        (training, evaluation, logging), `peak_memory`, `searches` (see `searches`), and for each step `losses`,
        `forwards_a_step`, `smallest` and `largest` step size.
    """
    summary = run.summary
    result = summary["result"]
    return {
        "run": identity(config),
        "study": study,
        "status": summary["status"],
        "config": _without_folders(summary["config"]),
        "seed": config["seed"],
        "commit": summary["commit"],
        "versions": summary["versions"],
        "hardware": summary["hardware"],
        "ended": _now(),
        "model": {**summary["model"], "name": _last_name(summary["model"]["name"])},
        "task": {key: summary["task"][key] for key in ("name", "metrics", "train_rows", "eval_rows")},
        "epochs": [
            {key: epoch[key] for key in ("epoch", "step", "train_loss", "evaluation", "seconds")}
            for epoch in run.epochs
        ],
        "final": result.get("final"),
        "majority": result["majority"],
        "final_majority": result.get("final_majority"),
        "mean_log_loss": summary["mean_log_loss"],
        "forwards": summary["forwards"],
        "backwards": summary["backwards"],
        "steps": summary["steps"],
        "trials": summary["trials"],
        "ties": summary["ties"],
        "failed_searches": summary["optimizer"]["failed_searches"],
        "merges": summary["optimizer"]["merges"],
        "components": summary["optimizer"]["components"],
        "seconds": summary["seconds"],
        "peak_memory": summary["peak_memory"],
        "searches": searches(run),
        "losses": [_short(step["loss"]) for step in run.steps],
        "forwards_a_step": [step["forwards"] for step in run.steps],
        **_extremes(run),
    }


def line(entry: Mapping[str, Any], label: str) -> str:
    """Describe a record in one line: how the run called `label` ended, and its score."""
    if entry["status"] == "failed":
        return f"{'failed':8} {label}: {entry['error']}"
    if entry["status"] == "diverged":
        return f"{'diverged':8} {label}"
    metric, minutes = entry["task"]["metrics"][0], sum(entry["seconds"].values()) / 60
    if entry["final"] is None:
        value, rows = entry["epochs"][-1]["evaluation"][metric], "after the last epoch"
    else:
        value, rows = entry["final"][metric], "on all held-out rows"
    reached = "not finite" if value is None else f"{value:.3f}"
    return f"{'done':8} {label}: {metric} {reached} {rows}, {minutes:.1f} min"


def searches(run: Run) -> dict[str, Any] | None:
    """How far the tests of a run's searches were from being decided by rounding; `None` without a search.

    The test of a step size η is decidable only if its promised decrease exceeds what the loss can show,

        c·η·S ≳ u·|f|        u: the unit roundoff of the logits (2^-24, 2^-53, 2^-8)

    Returns:
        `count`; `log10` of c·η·S/(u·|f|) at the η that each search kept, as the least, the 1 %, 10 % and 50 %
        quantiles; `below`, how many searches kept an η for which it is negative; `ties`, the trials with
        f(w(η)) = f_k to the bit; and the failed searches by cause: `order`, where the loss with the components before
        it already moved, measured, was above f_k by more than rounding shows (`paper-plasls:baseline=moved` alone);
        `rounding`, where the search went down to tests that promise less than ten units of rounding; `range`, where
        it ended before; `nonfinite` and `nondeterministic`.
    """
    settings = run.summary["optimizer"]["settings"]
    moved = settings.get("baseline") == "moved"
    roundoff = _UNIT_ROUNDOFF[run.summary["config"]["precision"]]
    ratios: list[float] = []
    causes = dict.fromkeys(("order", "rounding", "range", "nonfinite", "nondeterministic"), 0)
    for step in run.steps:
        loss, components = step["loss"], {part["label"]: part for part in step["components"]}
        causes["nonfinite"] += any(part["status"] == "nonfinite" for part in components.values())
        for search in step.get("searches", []):
            if search["status"] == "nondeterministic":
                causes["nondeterministic"] += 1
            if not (loss and search["trials"] and search["status"] in ("accepted", "exhausted")):
                continue
            unit = roundoff * abs(loss)
            searched = [components[label] for label in search["components"]]
            promised = search["c"] * sum(part["step_size"] * part["slope"] for part in searched) / unit
            if search["status"] == "exhausted":
                # A trial at η = 0 is the loss at the start of the search.
                starts = [value for step_size, value in search["trials"] if step_size == 0]
                shortest = min(step_size for step_size, _ in search["trials"] if step_size > 0)
                if moved and starts and (starts[0] is None or starts[0] - loss > unit):
                    causes["order"] += 1
                else:
                    least = search["c"] * shortest * search["slope"] / unit
                    causes["rounding" if least < _MARGIN else "range"] += 1
            if promised > 0:
                ratios.append(math.log10(promised))
    if not ratios and not any(causes.values()):
        return None
    ordered = sorted(ratios)
    return {
        "count": len(ratios),
        "log10": [_short(_quantile(ordered, share)) for share in (0.0, 0.01, 0.1, 0.5)] if ordered else None,
        "below": sum(ratio < 0 for ratio in ratios),
        "ties": run.summary["ties"],
        "failed": causes,
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _extremes(run: Run) -> dict[str, list[float | None]]:
    if not any(step["components"] for step in run.steps):
        return {}
    sizes = [[part["step_size"] for part in step["components"]] for step in run.steps]
    return {"smallest": [_short(min(size)) for size in sizes], "largest": [_short(max(size)) for size in sizes]}


def _short(value: float | None) -> float | None:
    """Round to four digits, enough for every table and figure; the file is a third as large."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the folders of the machine it ran on."""
    omitted = ("data_dir", "save_models", "checkpoint_every")
    return {key: _last_name(value) for key, value in config.items() if key not in omitted and value is not None}


def _last_name(value: Any) -> Any:
    """Return the last name of a path such as `/home/me/bert` or `../bert`; a hub's `owner/name` stays."""
    if isinstance(value, str) and (value.startswith(("/", ".", "~")) or value.count("/") > 1):
        return Path(value).name
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
