"""`armijo study` and `armijo report`, as a person runs them."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from armijo_lab.results import store
from armijo_lab.studies import engine
from armijo_lab.studies.__main__ import main as studies
from processes import forked

pytest.importorskip("hydra")
main = pytest.importorskip("armijo_lab.cli").main

COMMAND = [sys.executable, "-c", "import sys; from armijo_lab.cli import main; main(sys.argv[1:])"]


def armijo(*arguments, cwd=None, code=0):
    done = forked(main, *arguments, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_all_studies_are_listed():
    lines = armijo("study").stdout.splitlines()
    assert any(line.startswith("rivals") for line in lines)
    assert len(lines) == 11
    assert lines[-1].startswith("regret")


def test_a_grid_runs_is_skipped_when_done_and_reported(small, tmp_path):
    grid = [
        "study",
        "rivals",
        *small,
        "seeds=2",
        "tasks=sst2,mrpc",
        "select=adamsls|salsa|adamw:lr=1e-4,schedule=cos.*",
    ]
    shown = armijo(*grid, "--show").stdout.splitlines()
    assert shown[-1] == "0 of 12 runs done"
    assert all(line.startswith("left") for line in shown[:-1])
    # What is shown is what `select` takes.
    assert "left     mrpc adamw:lr=1e-4,schedule=cosine,warmup=0.1 seed 1" in shown
    joblib = armijo(*grid, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert "12 of 12 runs done" in joblib.stdout
    ended = r"^done +(?:sst2|mrpc) \S+ seed [01]: accuracy 0\.\d+ on all held-out rows"
    assert len(re.findall(ended, joblib.stderr, re.MULTILINE)) == 12
    records = store.read(tmp_path / "results")
    assert len(records) == 12
    assert {record["hardware"]["threads"] for record in records.values()} == {1}
    before = (tmp_path / "results" / "rivals.jsonl").read_bytes()
    assert "All 12 runs of rivals are done" in armijo(*grid).stdout
    assert (tmp_path / "results" / "rivals.jsonl").read_bytes() == before
    # One process after the other gives the same records as both cores.
    rest = [option for option in small if not option.startswith(("results=", "work="))]
    elsewhere = [f"results={tmp_path / 'one'}", f"work={tmp_path / 'one' / 'work'}"]
    armijo("study", "rivals", *rest, *elsewhere, "seeds=1", "tasks=sst2", "select=adamsls|salsa")
    one = store.read(tmp_path / "one")
    assert len(one) == 2
    for key in one:
        assert one[key]["losses"] == records[key]["losses"]
        assert one[key]["final"] == records[key]["final"]


def test_submitit_takes_the_same_command(small, tmp_path):
    pytest.importorskip("submitit")
    grid = ["study", "rivals", *small, "seeds=1", "tasks=sst2", "select=adamsls"]
    armijo(*grid, "hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path / 'hydra'}", cwd=tmp_path)
    assert len(store.read(tmp_path / "results")) == 1


def test_a_run_that_fails_does_not_end_the_grid(small, tmp_path):
    # MRPC's files are there, and hold another thing than labels.
    rest = [option for option in small if not option.startswith("data_dir=")]
    broken = tmp_path / "glue"
    (broken / "SST-2").mkdir(parents=True)
    source = next(Path(option.partition("=")[2]) for option in small if option.startswith("data_dir="))
    for side in ("train", "dev"):
        (broken / "SST-2" / f"{side}.tsv").write_bytes((source / "SST-2" / f"{side}.tsv").read_bytes())
    (broken / "MRPC").mkdir()
    for side in ("train", "dev"):
        (broken / "MRPC" / f"{side}.tsv").write_text("Quality\t#1 String\t#2 String\nyes\ta\tb\n", encoding="utf-8")
    grid = ["study", "rivals", *rest, f"data_dir={broken}", "seeds=1", "tasks=mrpc,sst2", "select=adamsls"]
    done = armijo(*grid, code=1)
    assert "1 of 2 runs done" in done.stdout
    assert f"Next: armijo report rivals {rest[0]}" in done.stdout
    assert f"--results {tmp_path / 'results'}" in done.stdout
    assert "1 run failed; the same command tries again." in done.stderr
    assert "mrpc adamsls seed 0: BadInputError" in done.stderr
    assert "The label 'yes' in line 2 of train.tsv is unknown" in done.stderr
    shown = armijo(*grid, "--show").stdout
    assert re.search(r"^failed +mrpc adamsls seed 0: BadInputError: The label 'yes'", shown, re.MULTILINE)
    assert re.search(r"^done +sst2 adamsls seed 0: accuracy 0\.\d+ on all held-out rows", shown, re.MULTILINE)
    records = store.read(tmp_path / "results")
    assert sorted(record["status"] for record in records.values()) == ["completed", "failed"]


def test_what_is_not_there_is_said_before_the_first_run(small, tmp_path):
    def without(key):
        return [option for option in small if not option.startswith(f"{key}=")]

    grid = ["rivals", "seeds=1", "select=adamsls"]
    for options, said in (
        ([*small, "tasks=sst2,qnli"], "There is no folder QNLI in"),
        ([*without("data_dir"), "data_dir=nowhere", "tasks=sst2"], "There is no folder nowhere"),
        ([*without("model"), "model=./nowhere", "tasks=sst2"], "There is no model folder './nowhere'"),
    ):
        assert said in armijo("study", *grid, *options, code=2).stderr
        bare = forked(studies, *grid, *options)
        assert bare.returncode == 2
        assert said in bare.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("", encoding="utf-8")
    for key in ("results", "work"):
        said = armijo("study", *grid, *without(key), "tasks=sst2", f"{key}={tmp_path / 'file'}", code=2).stderr
        assert f"The folder {key}={tmp_path / 'file'} cannot be made: File exists" in " ".join(said.split())


@pytest.mark.parametrize(
    "launcher", [[], pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], marks=pytest.mark.soak)]
)
def test_an_interrupted_grid_goes_on_where_it_was(small, tmp_path, launcher):
    # Long runs, so that an interruption meets one of them.
    longer = [option for option in small if not option.startswith("epochs=")]
    grid = [
        "study",
        "rivals",
        *longer,
        "epochs=30",
        "seeds=1",
        "tasks=sst2",
        "select=adamsls|growing-sgdsls|growing-plasls",
        *launcher,
    ]
    process = subprocess.Popen(
        [*COMMAND, *grid], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not store.read(tmp_path / "results"):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "The same command does the rest" in said
    done = store.read(tmp_path / "results")
    assert 1 <= len(done) < 3
    assert "3 of 3 runs done" in armijo(*grid).stdout
    after = store.read(tmp_path / "results")
    assert len(after) == 3
    assert all(after[key] == record for key, record in done.items())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["rivalry"], "choose one of paper-small"),
        (["rivals", "sedes=1"], "seeds, tasks"),
        (["rivals", "seeds=many"], "seeds"),
        (["rivals", "+foo=1"], "+foo=1"),
        (["rivals", "study=merging"], "study=merging"),
        (["rivals", "select=a\\"], "not a regular expression"),
        (["rivals", "select=adamw"], "select='sgdsls.*' selects all that start with sgdsls"),
        (["rivals", "limit=-5"], "limit is -5; it is the most rows to use"),
        (["rivals", "hydra/launcher=moon"], "moon"),
    ],
)
def test_bad_options_are_one_sentence(arguments, named):
    done = armijo("study", *arguments, code=2)
    assert named in done.stderr
    assert done.stdout == ""


def test_texts_need_no_quotes_of_hydras(small):
    chosen = engine.options("rivals", [*small, "tasks=sst2,mrpc", r"select=a.*(b|c)\d[x],'y'=z", "seeds=null"])
    assert chosen.tasks == "sst2,mrpc"
    assert chosen.select == r"a.*(b|c)\d[x],'y'=z"
    assert chosen.seeds is None


def test_the_report_reads_and_prints_what_was_not_run(tmp_path):
    from studies.made_up import write

    write(tmp_path / "results")
    (tmp_path / "results" / "rivals.md").write_text("A person's conclusion.\n", encoding="utf-8")
    said = armijo("report", "--results", str(tmp_path / "results"), "--output", str(tmp_path / "pages")).stdout
    assert "rivals.md" in said
    page = (tmp_path / "pages" / "rivals.md").read_text(encoding="utf-8")
    assert "A person's conclusion." in page
    assert "Not run" in page
    assert "armijo study rivals" in page
    for kind in ("accuracy", "epochs", "step-sizes"):
        assert f"images/rivals-{kind}.png" in page
        assert (tmp_path / "pages" / "images" / f"rivals-{kind}.png").stat().st_size > 1000
    rows = list(csv.DictReader((tmp_path / "pages" / "rivals.csv").open(encoding="utf-8")))
    assert {row["status"] for row in rows} == {"completed", "diverged", "failed", "not run"}
    assert "rivals" in (tmp_path / "pages" / "index.md").read_text(encoding="utf-8")
    other = ["report", "rivals", "seeds=1", "tasks=sst2", "--results", str(tmp_path / "results")]
    assert "6 of 48 runs" in armijo(*other, "--output", str(tmp_path / "pages")).stdout
    cut = (tmp_path / "pages" / "rivals-seeds=1-tasks=sst2.md").read_text(encoding="utf-8")
    assert "armijo study rivals data_dir=glue seeds=1 tasks=sst2" in cut
    armijo("report", "seeds=1", "--results", str(tmp_path / "results"), code=2)
    armijo("report", "rivals", "sedes=1", "--results", str(tmp_path / "results"), code=2)
    armijo("report", "rivalry", "--results", str(tmp_path / "results"), code=2)
    armijo("report", "--results", str(tmp_path / "nowhere"), code=2)
    json.dumps(store.read(tmp_path / "results"))


def test_a_report_of_nothing_writes_nothing_and_says_what_there_is(tmp_path):
    from studies.made_up import write

    write(tmp_path / "results")
    pages = ["--output", str(tmp_path / "pages")]
    said = armijo("report", "rivals", "limit=64", f"results={tmp_path / 'results'}", *pages, code=2).stderr
    command = f"armijo report rivals --results {tmp_path / 'results'}."
    assert f"is of rivals with these options. There are records for: {command}" in " ".join(said.split())
    # Options of where and how a run is done are no other page.
    assert "rivals.md" in armijo("report", "rivals", f"results={tmp_path / 'results'}", "threads=1", *pages).stdout
    # A record of other options is found by them.
    records = list(store.read(tmp_path / "results").values())
    for record in records:
        record["config"] |= {"limit": 64, "epochs": 1, "paper_protocol": False}
        record["run"] = f"other-{record['run']}"
        store.append(tmp_path / "others" / "rivals.jsonl", record)
    for names in (["rivals"], []):
        said = armijo("report", *names, "--results", str(tmp_path / "others"), *pages, code=2).stderr
        command = f"armijo report rivals limit=64 epochs=1 protocol=clean --results {tmp_path / 'others'}."
        assert command in " ".join(said.split())
    assert sorted(path.name for path in (tmp_path / "pages").glob("*.md")) == ["rivals.md"]
