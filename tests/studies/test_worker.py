import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from armijo_lab import training
from armijo_lab.errors import BadInputError
from armijo_lab.results import store
from armijo_lab.studies import plan, worker
from armijo_lab.studies.__main__ import main as studies
from armijo_lab.studies.plan import read
from armijo_lab.training import loop
from processes import forked

CLOCKS = ("seconds", "peak_memory", "epochs", "ended")


@pytest.fixture
def options(small):
    return read("rivals", [*small, "seeds=1", "tasks=sst2", "select=adamsls|plasls|adamw:lr=1e-4,schedule=cosine.*"])


def same(record):
    """What does not hang on the clock."""
    kept = {key: value for key, value in record.items() if key not in CLOCKS}
    kept["epochs"] = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in record["epochs"]]
    return kept


def do(options, config, results, **keywords):
    return worker.do(options.study, config, results=results, work=Path(options.work), **keywords)


def test_a_record_holds_all_that_was_asked_for(options, tmp_path, place):
    config = plan.runs(options)[0]
    record = do(options, config, tmp_path / "results")
    assert store.read(tmp_path / "results") == {record["run"]: json.loads(json.dumps(record))}
    assert record["status"] == "completed"
    assert record["seed"] == 0
    assert record["config"]["optimizer"] == "adamsls"
    assert record["config"]["batch_size"] == 8
    assert {"python", "torch", "transformers"} <= record["versions"].keys()
    assert record["hardware"]["threads"] >= 1
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2]
    assert {"accuracy", "loss"} <= record["epochs"][0]["evaluation"].keys()
    assert record["steps"] == record["backwards"] == len(record["losses"]) == 6
    assert record["forwards"] == record["steps"] + record["trials"] == sum(record["forwards_a_step"])
    assert set(record["seconds"]) == {"training", "evaluation", "logging"}
    assert record["components"][0]["step_size"] > 0
    assert record["searches"]["count"] == 5, "the sixth step needs none"
    assert record["final"]["loss"] > 0
    assert len(record["smallest"]) == 6
    # No folder of this machine, and nothing left of the run.
    assert str(tmp_path) not in json.dumps(record)
    assert str(place) not in json.dumps(record)
    assert record["config"]["model"] == "model"
    assert [path.name for path in Path(options.work).iterdir() if path.is_dir()] == []


def test_runs_that_share_a_process_equal_runs_in_fresh_ones(options, small, tmp_path):
    planned = plan.runs(options)
    assert len(planned) >= 3
    cache = worker.Cache()
    # Twice, so that each has had every other one before it.
    for config in planned:
        do(options, config, tmp_path / "before", cache=cache)
    together = [do(options, config, tmp_path / "together", cache=cache) for config in planned]
    for config, record in zip(planned, together, strict=True):
        one = [f"select={config.optimizer}", f"results={tmp_path / 'fresh'}"]
        rest = [option for option in small if not option.startswith("results=")]
        command = [sys.executable, "-m", "armijo_lab.studies", "rivals", *rest, *one, "seeds=1", "tasks=sst2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        fresh = store.read(tmp_path / "fresh")[record["run"]]
        threads = {"hardware": fresh["hardware"]}
        assert same(fresh) == same(json.loads(json.dumps(record | threads)))


def test_a_run_that_fails_is_recorded_and_done_again(options, tmp_path, monkeypatch):
    config = plan.runs(options)[0]
    real = loop.take_step
    monkeypatch.setattr(loop, "take_step", lambda run, rows: 1 / 0)
    record = do(options, config, tmp_path / "results")
    assert record["status"] == "failed"
    assert record["error"] == "ZeroDivisionError: division by zero"
    known = store.read(tmp_path / "results")
    assert not worker.is_done(config, known)
    monkeypatch.setattr(loop, "take_step", real)
    do(options, config, tmp_path / "results")
    known = store.read(tmp_path / "results")
    assert worker.is_done(config, known)
    assert len((tmp_path / "results" / "rivals.jsonl").read_text().splitlines()) == 2


def test_commands_that_share_a_run_do_it_once(small, tmp_path):
    shared = [*small, "seeds=1", "tasks=sst2", "select=growing-plasls", "epochs=20"]
    commands = [[sys.executable, "-m", "armijo_lab.studies", study, *shared] for study in ("granularity", "merging")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    lines = [line for path in (tmp_path / "results").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == 1
    assert json.loads(lines[0])["status"] == "completed"


def test_a_run_that_was_whole_before_its_record_is_not_done_again(options, tmp_path, monkeypatch):
    config = plan.runs(options)[0]
    real = store.append
    monkeypatch.setattr(store, "append", lambda path, entry: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        do(options, config, tmp_path / "results")
    monkeypatch.setattr(store, "append", real)
    monkeypatch.setattr(loop, "take_step", lambda run, rows: 1 / 0)
    assert do(options, config, tmp_path / "results")["status"] == "completed"


def interrupted_at_the_fourth(monkeypatch):
    """Ctrl-C in the fourth step from now; the steps that were begun."""
    real, steps = loop.take_step, []

    def step(run, rows):
        steps.append(rows)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(run, rows)

    monkeypatch.setattr(loop, "take_step", step)
    return steps


def test_an_interrupted_run_is_continued(options, tmp_path, monkeypatch):
    config = plan.runs(options)[0]
    whole = do(options, config, tmp_path / "whole")
    steps = interrupted_at_the_fourth(monkeypatch)
    with pytest.raises(training.InterruptedRunError):
        do(options, config, tmp_path / "parts")
    assert store.read(tmp_path / "parts") == {}
    parts = do(options, config, tmp_path / "parts")
    assert len(steps) == 6
    assert same(parts) == same(whole)


def test_a_package_that_cannot_be_resumed_starts_again(small, tmp_path, monkeypatch):
    options = read("rivals", [*small, "seeds=1", "tasks=sst2", "select=salsa"])
    config = plan.runs(options)[0]
    steps = interrupted_at_the_fourth(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        do(options, config, tmp_path / "results")
    assert do(options, config, tmp_path / "results")["status"] == "completed"
    assert len(steps) == 4 + 6
    with pytest.raises(BadInputError, match="checkpoint-every"):
        dataclasses.replace(config, checkpoint_every=2).check()


def test_the_shared_cache_forgets_what_was_used_longest_ago(options):
    cache = worker.Cache(capacity=1)
    config = plan.runs(options)[0]
    first = cache.load(config)
    assert cache.load(config)[0] is first[0]
    assert cache.load(config)[1] is not first[1]
    cache.load(dataclasses.replace(config, limit=8))
    assert cache.load(config)[0] is not first[0]


def test_one_process_needs_torch_and_transformers_alone(small, tmp_path):
    blocked = ["hydra", "omegaconf", "typer", "rich", "datasets", "pandas", "matplotlib", "tensorboard", "joblib"]
    arguments = ["rivals", *small, "seeds=1", "tasks=sst2", "select=adamsls"]
    code = (
        f"import sys\nfor m in {blocked}: sys.modules[m] = None\n"
        f"from armijo_lab.studies.__main__ import main\nsys.exit(main({arguments!r}))"
    )
    # scikit-learn and joblib are imported by transformers only where they are found; blocking joblib is enough here.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "done     sst2 adamsls seed 0" in done.stderr
    assert len(store.read(tmp_path / "results")) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["rivals", "sedes=1"], "seeds"),
        (["rivals", "seeds"], "key=value"),
        (["rivals", "seeds=two"], "whole number"),
        (["rivals", "device=null"], "device"),
        (["rivalry"], "paper-small"),
        ([], "paper-small"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, named):
    done = forked(studies, *arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1
