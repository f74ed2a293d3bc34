import csv
import inspect
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields

import pytest

from armijo_lab import cli, models, training
from armijo_lab.commands import compare as compare_module
from armijo_lab.commands import new_folder, slug
from armijo_lab.commands.compare import compare
from armijo_lab.commands.finetune import finetune
from armijo_lab.results.run_folder import read_run
from armijo_lab.training import loop
from lab import tiny

pytest.importorskip("datasets", reason="the tests read a file of rows")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 30)


@pytest.fixture
def armijo(capsys, tmp_path, monkeypatch):
    """Run the command in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def armijo(*arguments):
        with pytest.raises(SystemExit) as raised:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return raised.value.code, captured.out, captured.err

    return armijo


@pytest.fixture
def common(folder, rows):
    """A run of four steps on 24 rows."""
    columns = ["--train", rows, "--text", "text", "--label", "label"]
    return [*columns, "--model", folder, "--batch-size", 12, "--max-length", 16, "--device", "cpu"]


def test_finetune_from_end_to_end(armijo, common, tmp_path):
    code, out, err = armijo("finetune", *common, "--epochs", 2, "--optimizer", "plasls:n_groups=1")
    assert code == 0, err
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("-rows-plasls_n_groups=1")
    there = {path.name for path in run.iterdir()}
    assert there >= {"summary.json", "metrics.jsonl", "README.md", "best", "last", "figures", "tensorboard"}
    summary = read_run(run).summary
    assert summary["status"] == "completed"
    assert summary["command"].startswith("armijo finetune --train ")
    assert f"model {common[common.index('--model') + 1]}, task rows, 24 rows to train on, 6 held out" in err
    assert "components, 4 steps" in err
    assert "accuracy" in out
    assert "step sizes at the end: embeddings" in out
    assert str(run.relative_to(tmp_path)) in out
    assert "epoch 2:" in err
    code, out, err = armijo("predict", run, "--text", "the film was good")
    assert code == 0, err
    assert "p(0)" in out


def test_a_second_run_gets_another_folder(armijo, common, tmp_path):
    for _ in range(2):
        assert armijo("finetune", *common, "--epochs", 1, "--optimizer", "sgd")[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert new_folder("a b/c:d=1").name.endswith("-a_b_c_d=1")


def test_an_interrupted_run_says_how_to_go_on(armijo, common, tmp_path, monkeypatch):
    whole = ["finetune", *common, "--epochs", 2, "--optimizer", "adamsls"]
    assert armijo(*whole, "--output", "whole")[0] == 0
    real = loop.take_step

    def step(run, rows):
        if run.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(run, rows)

    monkeypatch.setattr(loop, "take_step", step)
    code, _, err = armijo(*whole, "--output", "parts")
    assert code == 130
    assert "Interrupted after 3 of 4 steps. Continue with: armijo finetune --resume parts" in err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, _, err = armijo("finetune", "--resume", "parts", "--epochs", 3)
    assert (code, "leave out --epochs" in err) == (2, True)
    assert armijo("finetune", "--resume", "parts")[0] == 0
    a, b = read_run(tmp_path / "whole"), read_run(tmp_path / "parts")
    assert a.steps == b.steps
    assert a.summary["result"] == b.summary["result"]
    code, _, err = armijo("finetune", "--resume", "parts")
    assert (code, "is complete" in err) == (2, True)


def test_ctrl_c_before_the_first_step_writes_nothing(armijo, common, tmp_path, monkeypatch):
    def load(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "load", load)
    assert armijo("finetune", *common, "--output", "run")[0] == 130
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("finetune --optimizer lion", "There is no optimizer 'lion'; choose one of adamsls"),
        ("finetune --task sst9 --data-dir .", "sst2"),
        ("finetune --data-dir .", "--task"),
        ("finetune --task sst2 --train a.csv --text t --label l", "give one of them"),
        ("finetune --train nowhere.csv --text t --label l", "nowhere.csv"),
        ("finetune --train {rows} --text text", "--label is missing"),
        ("finetune --train {rows} --text words --label label", "text"),
        ("finetune --train {rows} --text text --label label --model ./nowhere", "no model folder"),
        ("finetune --train {rows} --text text --label label --model nobody/nothing", "hub cannot be reached"),
        ("finetune --train {rows} --text text --label label --model {model} --max-length 99", "--max-length 64"),
        (
            "finetune --train {rows} --text text --label label --model {model} --max-length 9 "
            "--optimizer plasls:n_groups=7",
            "n_groups",
        ),
        ("finetune --train {rows} --text text --label label --limit 1", "one label"),
        ("finetune --epochs 0", "--epochs is 0"),
        ("finetune --epochs many", "See: armijo finetune --help"),
        ("finetune --xyz red", "No such option: --xyz. See: armijo finetune --help"),
        ("predict", "Missing argument 'FOLDER'. See: armijo predict --help"),
        ("finetune --train=", "--train is empty; name a file with rows"),
        ("finetune --model=", "--model is empty"),
        ("compare --eval=", "--eval is empty"),
        ("finetune --train {rows}", "columns (text, label): name those"),
        ("finetune --device abacus", "abacus"),
        ("finetune --precision fp8", "fp8"),
        ("finetune --resume nowhere", "no folder nowhere"),
        ("compare --seeds 0", "--seeds is 0"),
        ("compare --optimizer adam --optimizer adam", "given twice"),
        ("compare --optimizer lion", "no optimizer"),
        ("compare --resume nowhere", "no comparison"),
        (
            "compare --train {rows} --text text --label label --model {model} --max-length 9 "
            "--optimizer adam --optimizer plasls:n_groups=7",
            "n_groups",
        ),
        ("predict nowhere --text a", "nowhere"),
        ("dance", "No such command 'dance'. See: armijo --help"),
    ],
)
def test_bad_input_gets_a_sentence_and_code_2_and_nothing_is_written(armijo, arguments, said, tmp_path, folder, rows):
    words = [word.format(rows=rows, model=folder) for word in arguments.split()]
    if words[0] in ("finetune", "compare") and "--resume" not in words:
        words += ["--output", "out"]
    code, out, err = armijo(*words)
    assert code == 2, err
    assert said in err
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_with_a_run_is_refused(armijo, common, tmp_path):
    for command in ("finetune", "compare"):
        (tmp_path / command).mkdir()
        (tmp_path / command / "metrics.jsonl").write_text("")
        code, _, err = armijo(command, *common, "--output", command)
        assert (code, "holds another run already" in err) == (2, True)
        assert [path.name for path in (tmp_path / command).iterdir()] == ["metrics.jsonl"]
    (tmp_path / "file").write_text("")
    assert armijo("finetune", *common, "--output", "file/below")[0] == 2
    for place in ("x" * 300, "new/" + "x" * 300):
        code, _, err = armijo("finetune", "--train", "nowhere.csv", "--text", "a", "--label", "b", "--output", place)
        assert (code, "cannot be written to (File name too long)" in err) == (2, True)
        assert not (tmp_path / "new").exists()
    assert "--output is empty; name the folder" in armijo("finetune", *common, "--output", "")[2]


def test_a_diverged_run_says_so(armijo, common, tmp_path):
    options = [*common, "--epochs", 2]
    code, out, err = armijo("finetune", *options, "--optimizer", "sgd:lr=1e30", "--output", "run")
    assert code == 1
    assert err.splitlines()[-1].startswith("The training diverged: the loss is not finite since step 2; try a smaller")
    assert "armijo predict" not in out
    assert read_run(tmp_path / "run").summary["status"] == "diverged"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "**The training diverged: the loss is not finite since step 2;" in card
    assert "armijo predict" not in card
    both = ["--optimizer", "sgd:lr=1e30", "--optimizer", "sgd:", "--seeds", 1]
    code, out, err = armijo("compare", *options, *both, "--output", "both")
    assert code == 0, err
    assert "sgd_lr=1e30-seed0: The training diverged" in err
    spoilt, sound = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert (spoilt["diverged"], sound["diverged"]) == (1, 0)
    assert "diverged" in out
    assert (tmp_path / "both" / "sgd-seed0").is_dir()
    # It is not run again.
    code, out, err = armijo("compare", "--resume", "both")
    assert (code, "[" in err) == (0, False)


def test_no_arguments_show_the_help(armijo):
    code, out, _ = armijo()
    assert (code, "Examples:" in out) == (0, True)


def test_a_failure_is_one_sentence_and_code_1(armijo, common, monkeypatch):
    def step(*_):
        raise MemoryError("no memory left")

    monkeypatch.setattr(loop, "take_step", step)
    code, _, err = armijo("finetune", *common)
    assert code == 1
    assert err.splitlines()[-1].startswith("The command failed (MemoryError: no memory left).")
    with pytest.raises(MemoryError):
        cli.main(["--debug", "finetune", *map(str, common)])


def test_help_reads_like_a_manual_page(armijo):
    code, out, _ = armijo("--help")
    assert code == 0
    for words in ("Examples:", "armijo finetune --task sst2", "Exit codes:", "finetune", "predict", "compare"):
        assert words in out
    for command in ("finetune", "compare"):
        code, out, _ = armijo(command, "--help")
        assert code == 0
        for words in ("Examples:", "Data", "Model and optimizer", "Training", "Output", "--optimizer", "[default:"):
            assert words in out, words
    assert "[default: adamsls]" in armijo("finetune", "--help")[1]
    assert armijo("--version")[1].startswith("armijo ")


def test_the_commands_defaults_are_the_configurations():
    # They are written twice because the command must not import torch to show its help.
    defaults = {field.name: field.default for field in fields(training.TrainingConfig)}
    for command in (finetune, compare):
        for name, parameter in inspect.signature(command).parameters.items():
            if name in defaults and not (command is compare and name in ("optimizer", "save_models")):
                assert parameter.default == defaults[name], (command.__name__, name)


# ----------------------------------------------------------------------------------------------- compare


def test_compare_from_end_to_end(armijo, common, tmp_path):
    options = ["--optimizer", "plasls", "--optimizer", "adam:lr=1e-3", "--seeds", 2, "--epochs", 2, "--seed", 5]
    code, out, err = armijo("compare", *common, *options, "--output", "both")
    assert code == 0, err
    names = ["plasls-seed5", "plasls-seed6", "adam_lr=1e-3-seed5", "adam_lr=1e-3-seed6"]
    runs = {name: read_run(tmp_path / "both" / name) for name in names}
    for seed in (5, 6):
        ours, adam = runs[f"plasls-seed{seed}"], runs[f"adam_lr=1e-3-seed{seed}"]
        # Same weights, same batch, same dropout: the loss before anything moved is the same.
        assert ours.steps[0]["loss"] == adam.steps[0]["loss"]
        assert ours.summary["seeds"] == adam.summary["seeds"] == [seed]
        assert ours.summary["task"] == adam.summary["task"]
    assert runs["plasls-seed5"].steps[0]["loss"] != runs["plasls-seed6"].steps[0]["loss"]
    assert not (tmp_path / "both" / "plasls-seed5" / "best").exists()
    rows = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert [row["optimizer"].partition(":")[0] for row in rows] == ["plasls", "adam"]
    assert [row["seeds"] for row in rows] == [2, 2]
    assert rows[1]["time"] == 1.0
    assert rows[1]["forwards"] == 1.0
    assert rows[0]["forwards"] > 1.0
    with (tmp_path / "both" / "comparison.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert "| plasls" in (tmp_path / "both" / "comparison.md").read_text()
    assert (tmp_path / "both" / "figures" / "comparison.png").stat().st_size > 10_000
    assert "plasls" in out
    assert "[4/4]" in err
    code, _, err = armijo("compare", *common, "--output", "both")
    assert (code, "another comparison already" in err) == (2, True)


def test_an_interrupted_comparison_goes_on_where_it_was(armijo, common, tmp_path, monkeypatch):
    options = ["--optimizer", "adamsls", "--optimizer", "sgd", "--optimizer", "adam", "--seeds", 1, "--epochs", 2]
    assert armijo("compare", *common, *options, "--output", "whole")[0] == 0
    real = loop.take_step

    def step(run, rows):
        if run.method.name == "sgd" and run.progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(run, rows)

    monkeypatch.setattr(loop, "take_step", step)
    code, _, err = armijo("compare", *common, *options, "--output", "parts")
    assert (code, "armijo compare --resume parts" in err) == (130, True)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    # A run that was killed without a checkpoint is done again.
    (tmp_path / "parts" / "adam-seed0").mkdir()
    (tmp_path / "parts" / "adam-seed0" / "metrics.jsonl").write_text("")
    finished = (tmp_path / "parts" / "adamsls-seed0" / "summary.json").stat().st_mtime_ns
    code, _, err = armijo("compare", "--resume", "parts")
    assert code == 0, err
    assert "[1/3]" not in err
    assert (tmp_path / "parts" / "adamsls-seed0" / "summary.json").stat().st_mtime_ns == finished
    for name in ("adamsls-seed0", "sgd-seed0", "adam-seed0"):
        assert read_run(tmp_path / "whole" / name).steps == read_run(tmp_path / "parts" / name).steps
    # All is done: the table is made again, and nothing is trained.
    code, out, err = armijo("compare", "--resume", "parts")
    assert (code, "adamsls" in out, "[" in err) == (0, True, False)


def test_the_order_of_runs_rotates():
    plan = compare_module.Plan(training.TrainingConfig(), ("plasls", "adam", "sgd"), 3)
    order = [(config.optimizer, config.seed) for config, _ in plan.runs()]
    assert order == [
        *(("plasls", 0), ("adam", 0), ("sgd", 0)),
        *(("adam", 1), ("sgd", 1), ("plasls", 1)),
        *(("sgd", 2), ("plasls", 2), ("adam", 2)),
    ]
    assert slug("adam:lr=2e-5,schedule=cosine") == "adam_lr=2e-5_schedule=cosine"


def test_the_installed_command_runs():
    done = subprocess.run(
        [sys.executable, "-c", "from armijo_lab.cli import main; main()", "finetune", "--optimizer", "lion"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("There is no optimizer 'lion'")
    assert done.stderr.count("\n") == 1
