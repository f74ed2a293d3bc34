"""Several processes share the rows of a run: its steps are those of one process, and it stops and goes on as one."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from armijo_lab import ranks, training
from armijo_lab.errors import BadInputError
from armijo_lab.results import store
from armijo_lab.results.run_folder import read_run
from armijo_lab.studies import launch, plan, worker
from armijo_lab.studies.plan import read
from lab import tiny

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "armijo_lab"]


def planned(small, *more):
    """The first run of a study, with its options."""
    options = read("rivals", [*small, "seeds=1", "tasks=sst2", "select=plasls", *more])
    return options, plan.runs(options)[0]


def do(options, config, results):
    return worker.do(options.study, config, results=results, work=Path(options.work))


def batches_of(small, rows, epochs):
    """The options with other batches: of 24 rows, 23 leave a last batch of one, and a rank without a row."""
    kept = [option for option in small if not option.startswith(("epochs=", "batch_size="))]
    return [*kept, f"batch_size={rows}", f"epochs={epochs}"]


def test_two_processes_take_the_steps_of_one(small, tmp_path):
    alone = do(*planned(batches_of(small, 23, 4)), tmp_path / "one")
    many = do(*planned(batches_of(small, 23, 4), "processes=2"), tmp_path / "two")
    assert many["status"] == "completed", many
    assert many["run"] != alone["run"]
    assert many["config"]["processes"] == 2
    assert many["forwards_a_step"] == alone["forwards_a_step"]
    assert many["losses"] == pytest.approx(alone["losses"], rel=2e-3)
    assert many["final"] == pytest.approx(alone["final"], rel=1e-3)


@pytest.mark.soak
def test_an_interrupted_run_of_several_processes_goes_on(small, tmp_path):
    # With dropout, whose masks differ from rank to rank.
    options, config = planned(batches_of(small, 7, 12), "processes=2", "protocol=clean")
    whole = do(options, config, tmp_path / "whole")
    assert whole["status"] == "completed", whole
    metrics = Path(options.work) / store.identity(plan.as_dict(config)) / "metrics.jsonl"

    def interrupt():
        while not metrics.is_file() or metrics.stat().st_size < 2000:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        do(options, config, tmp_path / "parts")
    assert training.has_checkpoint(metrics.parent)
    assert 0 < len(metrics.read_text().splitlines()) < 48
    parts = do(options, config, tmp_path / "parts")
    assert parts["losses"] == whole["losses"]
    assert parts["final"] == whole["final"]


@pytest.mark.soak
def test_a_killed_command_leaves_no_ranks_behind_but_a_checkpoint(small, tmp_path):
    options = [*batches_of(small, 8, 400), "seeds=1", "tasks=sst2", "select=adamsls", "processes=2"]
    process = subprocess.Popen([sys.executable, "-m", "armijo_lab.studies", "rivals", *options])
    _, config = planned(batches_of(small, 8, 400), "select=adamsls", "processes=2")
    folder = tmp_path / "work" / store.identity(plan.as_dict(config))
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").is_file() or (folder / "metrics.jsonl").stat().st_size < 2000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    while not (folder / "summary.json").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    length = (folder / "metrics.jsonl").stat().st_size
    time.sleep(2)
    assert training.has_checkpoint(folder)
    assert (folder / "metrics.jsonl").stat().st_size == length


def test_what_a_rank_said_is_recorded(small, tmp_path):
    rest = [option for option in small if not option.startswith("data_dir=")]
    record = do(*planned(rest, f"data_dir={tmp_path}", "processes=2"), tmp_path / "results")
    assert record["status"] == "failed"
    assert "BadInputError: There is no folder SST-2" in record["error"]


@pytest.mark.parametrize(
    ("said", "first"),
    [
        (["RankError: Rank 1 has failed.", "ValueError: no"], "ValueError: no"),
        (["InterruptedRunError: after 3", "RankError: gone"], "RankError: gone"),
        (["InterruptedRunError: after 3"], "InterruptedRunError: after 3"),
        ([], None),
    ],
)
def test_the_rank_that_failed_by_itself_is_believed(said, first, tmp_path):
    for rank, text in enumerate(said):
        (tmp_path / str(rank)).write_text(text)
    assert launch._first_error(tmp_path) == first


def test_finetune_trains_on_as_many_processes_as_torchrun_started(tmp_path):
    tiny.save_model(tmp_path / "model")
    rows = str(tiny.write_rows(tmp_path / "rows.jsonl"))
    options = {"batch_size": 4, "max_length": 16, "epochs": 2, "accumulate": 2, "paper_protocol": True}
    given = {"train": rows, "text": "text", "label": "label", "model": str(tmp_path / "model"), "optimizer": "adamsls"}
    config = training.TrainingConfig(**given, **options)
    training.run(config, tmp_path / "one")
    words = [f"--{key.replace('_', '-')}={value}" for key, value in {**given, **options}.items() if value is not True]
    command = [*TORCHRUN, "finetune", *words, "--paper-protocol", "--output", str(tmp_path / "two")]
    done = subprocess.run([*command, "--checkpoint-every", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1
    one, two = (read_run(tmp_path / name) for name in ("one", "two"))
    assert two.summary["status"] == "completed"
    assert two.summary["config"]["processes"] == 2
    assert len(one.steps) == 4
    assert [step["loss"] for step in two.steps] == pytest.approx([step["loss"] for step in one.steps], rel=1e-3)
    assert [step["forwards"] for step in two.steps] == [step["forwards"] for step in one.steps]
    assert (tmp_path / "two" / "last" / "model.safetensors").is_file()


def test_what_cannot_be_shared_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInputError, match="there are 1 for at least 2"):
        ranks.Ranks(1, 2, 1).device(torch.device("cuda"))
    with pytest.raises(BadInputError, match="cuda:0 is one GPU"):
        ranks.Ranks(0, 2, 0).device(torch.device("cuda:0"))
    with pytest.raises(BadInputError, match="not on mps"):
        ranks.Ranks(0, 2, 0).device(torch.device("mps"))
    with pytest.raises(BadInputError, match=r"salsa uses only the loss of its own rank's rows"):
        plan.runs(read("rivals", [*small, "select=salsa", "processes=2"]))
    with pytest.raises(BadInputError, match="processes is 0"):
        plan.runs(read("rivals", [*small, "processes=0"]))
    _, config = planned(small, "processes=2")
    with pytest.raises(BadInputError, match=r"is for 2 ranks, but was started with 1; start it with torchrun"):
        training.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
