import importlib.metadata
import json
import math
import multiprocessing
from pathlib import Path

import pytest

from armijo_lab.results import store
from armijo_lab.results.run_folder import Run


def test_the_last_record_of_a_run_counts(tmp_path):
    store.append(tmp_path / "a.jsonl", {"run": "x", "status": "failed"})
    store.append(tmp_path / "a.jsonl", {"run": "y", "status": "completed", "value": math.inf})
    store.append(tmp_path / "a.jsonl", {"run": "x", "status": "completed"})
    store.append(tmp_path / "b.jsonl", {"run": "z", "status": "completed"})
    assert store.read(tmp_path) == {
        "x": {"run": "x", "status": "completed"},
        "y": {"run": "y", "status": "completed", "value": None},
        "z": {"run": "z", "status": "completed"},
    }
    assert store.read(tmp_path / "nowhere") == {}


def test_what_a_crash_tore_is_passed_over_and_harms_nothing(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    store.append(path, {"run": "x", "status": "completed"})
    with path.open("ab") as file:
        file.write(b'{"run":"torn","va')
    assert set(store.read(tmp_path)) == {"x"}
    assert "Line 2" in caplog.text
    store.append(path, {"run": "y", "status": "completed"})
    assert set(store.read(tmp_path)) == {"x", "y"}


def test_a_line_says_what_came_out():
    ended = {
        "run": "x",
        "status": "completed",
        "task": {"metrics": ["accuracy", "f1"]},
        "epochs": [{"evaluation": {"accuracy": 0.5}}, {"evaluation": {"accuracy": None}}],
        "final": {"accuracy": 0.6204},
        "seconds": {"training": 60.0, "evaluation": 29.0, "logging": 1.0},
    }
    assert store.line(ended, "x") == "done     x: accuracy 0.620 on all held-out rows, 1.5 min"
    assert "accuracy not finite after the last epoch" in store.line({**ended, "final": None}, "x")
    assert store.line({"status": "diverged"}, "x") == "diverged x"
    assert store.line({"status": "failed", "error": "E: no."}, "x") == "failed   x: E: no."


def _write(path: Path, number: int) -> None:
    for turn in range(50):
        store.append(path, {"run": f"{number}-{turn}", "status": "completed", "filling": "x" * 5000})


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


def search(*parts, c=0.1, trials=((1e-3, 0.5),)):
    """The search that components took part in together."""
    return {
        "components": [part["label"] for part in parts],
        "status": parts[0]["status"],
        "c": c,
        "slope": sum(part["slope"] for part in parts),
        "trials": [list(trial) for trial in trials],
    }


def run(*steps, name="paper-plasls", precision="fp32", **settings):
    """A run of steps, each a loss, its components and, unless these are one, its searches."""
    summary = {
        "config": {"precision": precision},
        "optimizer": {"name": name, "settings": settings},
        "ties": 3,
    }
    records = [
        {
            "step": number,
            "loss": loss,
            "components": list(parts),
            "searches": list(searches[0]) if searches else [search(*parts)] if parts else [],
        }
        for number, (loss, parts, *searches) in enumerate(steps, 1)
    ]
    return Run(Path(), summary, records, [])


def searched(made):
    """What is known of the searches of a run that has some."""
    found = store.searches(made)
    assert found is not None
    return found


def test_how_decidable_a_test_was_is_counted_in_units_of_rounding():
    # c·η·S = 0.1 · 1e-3 · 10 = 1e-3 against 2^-24 · 0.5.
    found = store.searches(run((0.5, [component()])))
    assert found is not None
    assert found["log10"] == [pytest.approx(math.log10(1e-3 / (2**-24 * 0.5)), rel=1e-3)] * 4
    assert (found["count"], found["below"], found["ties"]) == (1, 0, 3)
    double = store.searches(run((0.5, [component()]), precision="fp64"))
    short = component(step_size=1e-7)
    half = store.searches(run((0.5, [short], [search(short, c=0.2)]), precision="bf16"))
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
    each = run((0.5, joint), (0.5, joint, [search(part) for part in joint]))
    assert searched(each)["count"] == 3
    waiting = [component("a"), component("b", status="unsearched", trials=0, trial_loss=None)]
    found = searched(run((0.5, waiting, [search(waiting[0])])))
    assert found["count"] == 1
    assert found["log10"][0] == pytest.approx(math.log10(0.1 * 1e-3 * 10 / (2**-24 * 0.5)), rel=1e-3)


def failed(first, *, name="paper-plasls", trials=100, gap=None, loss=0.5, slope=10.0, **keywords):
    """The causes of one failed search whose first trial was at `first`."""
    # The paper's search keeps what is left after a hundred contractions, the recommended one what it had.
    paper = name.startswith("paper-")
    kept = first * 0.9**trials if paper else first
    tried = [(first * 0.9 ** (n if paper else n * (n + 1) / 2), loss) for n in range(trials)]
    if gap is not None:
        keywords["baseline"] = "moved"
    if gap is not None or not paper:
        tried.append((0.0, loss + (gap or 0.0)))
    part = component(status="exhausted", step_size=kept, slope=slope, trials=len(tried), trial_loss=None)
    made = run((loss, [part], [search(part, trials=tried)]), name=name, **keywords)
    causes = searched(made)["failed"]
    return [cause for cause, number in causes.items() for _ in range(number)]


def test_a_failed_search_is_put_down_to_what_was_measured():
    # What the components before it did is the cause only where it can be seen in the loss.
    assert failed(1e-3, gap=1e-3) == ["order"]
    assert failed(1e-3, gap=-1e-3) == ["rounding"]
    assert failed(1e-3, gap=1e-9) == ["rounding"]
    # c·η·S = 0.1·η·10 goes from the first to 2.7e-5 of it; a unit of float32 near 0.5 is 3e-8.
    assert failed(1e-1) == ["range"]
    assert failed(1e-3) == failed(1e-8) == ["rounding"]
    assert failed(1e-3, precision="fp64") == ["range"]
    # 19 contractions by 0.9, 0.9², … are a factor of 2e-9.
    assert failed(1e-1, name="plasls", trials=20) == ["rounding"]
    assert failed(1e-1, name="plasls", trials=6) == ["range"]


def test_rounding_alone_can_exhaust_an_isolated_search_whose_first_trials_were_decidable():
    # The edge of the test, 1e-5, promises far less than float32 shows, though the first trial promises enough.
    import numpy

    from armijo import Armijo, Line, PaperBacktracking

    slope, edge = 1e-3, 1e-5
    curvature = 2 * 0.9 * slope / edge

    def loss(step_size):
        return float(numpy.float32(0.7 - slope * step_size + curvature * step_size**2 / 2))

    start = float(numpy.float32(0.7))
    outcome = PaperBacktracking(Armijo(0.1)).search(Line(start, slope), 0.1, loss, {})
    assert outcome.status == "exhausted"
    assert failed(0.1, loss=0.7, slope=slope) == ["rounding"]


def test_searches_that_could_not_be_done():
    odd = [component(status="nonfinite", trials=0, trial_loss=None)]
    assert searched(run((None, odd, [])))["failed"]["nonfinite"] == 1
    noisy = component(status="nondeterministic", trials=26, trial_loss=None)
    assert searched(run((0.5, [noisy])))["failed"]["nondeterministic"] == 1
    assert store.searches(run((0.5, []))) is None


def test_a_failure_never_hides_a_run_that_ended(tmp_path):
    store.append(tmp_path / "a.jsonl", {"run": "x", "status": "completed"})
    store.append(tmp_path / "z.jsonl", {"run": "x", "status": "failed"})
    assert store.read(tmp_path)["x"]["status"] == "completed"


def test_no_folder_of_a_machine_is_recorded():
    config = {"task": "sst2", "optimizer": "adamsls", "seed": 0, "model": "/home/me/bert", "data_dir": "/home/me/glue"}
    error = ValueError("There is no file train.tsv in /home/me/glue/SST-2, nor in '../data/x.tsv'; see a/b.")
    entry = store.failure("rivals", config, error)
    assert entry["error"] == "ValueError: There is no file train.tsv in SST-2, nor in 'x.tsv'; see a/b."
    assert "/home" not in json.dumps(entry)
    assert entry["versions"]["torch"] == importlib.metadata.version("torch")
    assert entry["config"]["model"] == "bert"
    # The same model at another place is the same run; a name on the hub stays whole.
    assert store.identity(config) == store.identity({**config, "model": "../models/bert"})
    assert store.failure("rivals", {**config, "model": "owner/bert"}, error)["config"]["model"] == "owner/bert"
