import json
import math
import multiprocessing
from pathlib import Path

import pytest

from armijo_lab.results import store
from armijo_lab.results.records import Run


def test_the_last_record_of_a_run_counts(tmp_path):
    store.append(tmp_path / "a.jsonl", {"run": "x", "status": "failed"})
    store.append(tmp_path / "a.jsonl", {"run": "y", "value": math.inf})
    store.append(tmp_path / "a.jsonl", {"run": "x", "status": "completed"})
    store.append(tmp_path / "b.jsonl", {"run": "z"})
    assert store.read(tmp_path) == {
        "x": {"run": "x", "status": "completed"},
        "y": {"run": "y", "value": None},
        "z": {"run": "z"},
    }
    assert store.read(tmp_path / "nowhere") == {}


def test_what_a_crash_tore_is_passed_over_and_harms_nothing(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    store.append(path, {"run": "x"})
    with path.open("ab") as file:
        file.write(b'{"run":"torn","va')
    assert store.read(tmp_path) == {"x": {"run": "x"}}
    assert "Line 2" in caplog.text
    store.append(path, {"run": "y"})
    assert set(store.read(tmp_path)) == {"x", "y"}


def _write(path: Path, number: int) -> None:
    for turn in range(50):
        store.append(path, {"run": f"{number}-{turn}", "filling": "x" * 5000})


def test_processes_do_not_tear_each_others_records(tmp_path):
    path = tmp_path / "a.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(path, number)) for number in range(4)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    assert len(store.read(tmp_path)) == 200
    assert all(json.loads(line) for line in path.read_text().splitlines())


def component(label="a", status="accepted", step_size=1e-3, slope=10.0, trials=1, trial_loss=0.5):
    return {
        "label": label,
        "status": status,
        "step_size": step_size,
        "slope": slope,
        "trials": trials,
        "trial_loss": trial_loss,
    }


def run(*steps, name="paper-plasls", precision="fp32", **settings):
    summary = {
        "config": {"precision": precision},
        "optimizer": {"name": name, "settings": settings},
        "ties": 3,
    }
    return Run(Path(), summary, [{"loss": loss, "components": list(parts)} for loss, parts in steps], [])


def test_how_decidable_a_test_was_is_counted_in_units_of_rounding():
    # c·η·S = 0.1 · 1e-3 · 10 = 1e-3 against 2^-24 · 0.5.
    found = store.searches(run((0.5, [component()])))
    assert found is not None
    assert found["log10"] == [pytest.approx(math.log10(1e-3 / (2**-24 * 0.5)), rel=1e-3)] * 4
    assert (found["count"], found["below"], found["ties"]) == (1, 0, 3)
    double = store.searches(run((0.5, [component()]), precision="fp64"))
    half = store.searches(run((0.5, [component(step_size=1e-7)]), precision="bf16", c=0.2))
    assert double is not None
    assert half is not None
    assert double["log10"][0] == pytest.approx(found["log10"][0] + 29 * math.log10(2), rel=1e-3)
    assert half["log10"][0] == pytest.approx(math.log10(0.2e-6 / (2**-8 * 0.5)), rel=1e-3)
    assert half["below"] == 1


def test_components_that_were_searched_together_are_one_search():
    joint = [component("a"), component("b", slope=30.0)]
    found = store.searches(run((0.5, joint)))
    assert found is not None
    assert found["count"] == 1
    assert found["log10"][0] == pytest.approx(math.log10(0.1 * 1e-3 * 40 / (2**-24 * 0.5)), rel=1e-3)
    alone = [component("a"), component("b", trials=2, trial_loss=0.4)]
    assert store.searches(run((0.5, alone)))["count"] == 2  # type: ignore[index]
    waiting = [component("a"), component("b", status="unsearched", trials=0, trial_loss=None)]
    assert store.searches(run((0.5, waiting)))["count"] == 1  # type: ignore[index]


def test_failures_are_told_apart_by_what_the_first_trial_promised():
    def failed(first, **keywords):
        # The paper's search keeps what is left after a hundred contractions.
        part = component(status="exhausted", step_size=first * 0.9**100, trials=100, trial_loss=None)
        return store.searches(run((0.5, [part]), **keywords))["failed"]  # type: ignore[index]

    assert failed(1e-3) == {"rounding": 0, "line": 1, "nonfinite": 0, "nondeterministic": 0}
    assert failed(1e-8) == {"rounding": 1, "line": 0, "nonfinite": 0, "nondeterministic": 0}
    assert failed(1e-8, precision="fp64")["line"] == 1
    # The recommended search keeps the step size that it had.
    kept = component(status="exhausted", step_size=1e-3, trials=20, trial_loss=None)
    assert store.searches(run((0.5, [kept]), name="plasls"))["failed"]["line"] == 1  # type: ignore[index]
    odd = [component(status="nonfinite", trials=0, trial_loss=None)]
    assert store.searches(run((None, odd)))["failed"]["nonfinite"] == 1  # type: ignore[index]
    assert store.searches(run((0.5, []))) is None
