"""Several processes share the rows of a run: its steps are those of one process, and it stops and goes on as one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from armijo_lab import training
from armijo_lab.errors import BadInputError
from armijo_lab.results import store
from armijo_lab.studies import plan, worker
from armijo_lab.studies.plan import read
from lab import tiny

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "armijo_lab"]


def planned(small, *more):
    """The first run of a study, with its options."""
    options = read("rivals", [*small, "seeds=1", "tasks=sst2", "select=plasls", *more])
    return options, plan.runs(options)[0]


def do(options, config, results):
    return worker.do(options.study, config, results=results, work=Path(options.work))


def test_two_processes_take_the_steps_of_one_and_go_on_after_an_interruption(small, tmp_path):
    # 24 rows in batches of 7: the last one leaves ranks with different numbers of rows.
    longer = [option for option in small if not option.startswith(("epochs=", "batch_size="))]
    alone = do(*planned(longer, "epochs=12", "batch_size=7"), tmp_path / "one")
    options, config = planned(longer, "epochs=12", "batch_size=7", "processes=2")
    whole = do(options, config, tmp_path / "two")
    assert whole["status"] == "completed", whole
    assert whole["run"] != alone["run"]
    assert whole["config"]["processes"] == 2
    assert whole["forwards_a_step"] == alone["forwards_a_step"]
    assert whole["losses"] == pytest.approx(alone["losses"], rel=2e-3)
    assert whole["final"] == pytest.approx(alone["final"], rel=1e-3)

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


def test_what_a_rank_said_is_recorded(small, tmp_path):
    rest = [option for option in small if not option.startswith("data_dir=")]
    record = do(*planned(rest, f"data_dir={tmp_path}", "processes=2"), tmp_path / "results")
    assert record["status"] == "failed"
    assert "BadInputError: There is no folder SST-2" in record["error"]


def test_finetune_trains_on_as_many_processes_as_torchrun_started(tmp_path):
    tiny.save_model(tmp_path / "model")
    rows = tiny.write_rows(tmp_path / "rows.jsonl")
    options = ["--train", rows, "--text", "text", "--label", "label", "--model", tmp_path / "model"]
    options += ["--max-length", "16", "--batch-size", "4", "--epochs", "2", "--output", tmp_path / "run"]
    command = [*TORCHRUN, "finetune", *map(str, options), "--accumulate", "2", "--checkpoint-every", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["config"]["processes"] == 2
    assert summary["steps"] == 4
    assert (tmp_path / "run" / "last" / "model.safetensors").is_file()


def test_what_only_one_process_can_do_is_refused(small, tmp_path):
    with pytest.raises(BadInputError, match=r"salsa decides by the loss of its own rows"):
        plan.runs(read("rivals", [*small, "select=salsa", "processes=2"]))
    with pytest.raises(BadInputError, match="processes is 0"):
        plan.runs(read("rivals", [*small, "processes=0"]))
    _, config = planned(small, "processes=2")
    with pytest.raises(BadInputError, match=r"is for 2 ranks, and has 1; start it with torchrun"):
        training.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
