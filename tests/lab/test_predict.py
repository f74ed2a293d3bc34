"""`armijo predict`: models of every kind that a run leaves, texts of every kind that a person gives."""

import csv
import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from armijo_lab import models
from armijo_lab.commands.predict import load_predictor, predict, predict_command
from armijo_lab.errors import BadInputError
from armijo_lab.tasks import Split, TaskData

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "the", "."]
TEXTS = ["a good film .", "the bad film", "good good good good", "unknown"]


def tiny(folder: Path, labels: tuple[str, ...], *, paper: bool = False) -> Path:
    """A randomly initialised BERT with its tokenizer, saved as a run saves its best."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

    vocabulary = folder.parent / "vocab.txt"
    folder.mkdir(parents=True)
    vocabulary.write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(vocabulary), model_max_length=16)
    outputs: dict[str, Any] = (
        {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
        if labels
        else {"num_labels": 1, "problem_type": "regression"}
    )
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=0.5,
        **({} if paper else outputs),
    )
    empty = Split((), None, ())
    task = TaskData("t", "d", labels, empty, empty, ("accuracy",), {})
    model = (
        models.EncoderClassifier(BertModel(config, add_pooling_layer=False), task.num_labels)
        if paper
        else BertForSequenceClassification(config)
    )
    models.save(model.eval(), tokenizer, folder, task)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a classifier; tests that change it work on their own."""
    folder = tmp_path_factory.mktemp("run")
    tiny(folder / "best", ("negative", "neutral", "positive"))
    facts = {"config": {"max_length": 5}, "task": {"pairs": False}}
    (folder / "summary.json").write_text(json.dumps(facts))
    return folder


def reference(folder: Path, text: str, max_length: int) -> list[float]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        return model(**inputs).logits.softmax(-1)[0].tolist()


def test_labels_and_probabilities_are_those_of_transformers(run: Path) -> None:
    predictor = load_predictor(run)
    assert predictor.labels == ("negative", "neutral", "positive")
    assert predictor.max_length == 5
    found = predict(predictor, TEXTS, batch_size=3)
    for text, prediction in zip(TEXTS, found, strict=True):
        # Cut to five tokens as in training, and padding changes nothing.
        assert prediction.probabilities == pytest.approx(reference(run / "best", text, 5), abs=1e-6)
        assert prediction.label == predictor.labels[prediction.probabilities.index(max(prediction.probabilities))]
    assert sum(found[0].probabilities) == pytest.approx(1)
    assert len({prediction.probabilities for prediction in found}) > 1


def test_the_model_folder_itself_does_too_and_keeps_its_own_limit(run: Path, tmp_path: Path) -> None:
    assert load_predictor(run / "best").max_length == 5
    elsewhere = tiny(tmp_path / "model", ("a", "b"))
    predictor = load_predictor(elsewhere)
    assert (predictor.max_length, predictor.pairs) == (16, None)


def test_the_paper_protocols_encoder_and_head(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    folder = tiny(tmp_path / "run" / "best", ("no", "yes"), paper=True)
    (prediction,) = predict(load_predictor(tmp_path / "run"), ["a good film ."])
    encoder, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    head = load_file(folder / "head.safetensors")
    with torch.no_grad():
        first = encoder(**tokenizer("a good film .", return_tensors="pt")).last_hidden_state[:, 0]
    expected = (first @ head["weight"].T + head["bias"]).softmax(-1)[0].tolist()
    assert prediction.probabilities == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("paper", [False, True])
def test_a_regression_gives_a_score(tmp_path: Path, paper: bool) -> None:
    tiny(tmp_path / "run" / "best", (), paper=paper)
    found = predict(load_predictor(tmp_path / "run"), TEXTS)
    assert all(isinstance(p.score, float) and p.label is None and p.probabilities == () for p in found)


def test_pairs_are_read_as_pairs(run: Path, tmp_path: Path) -> None:
    tiny(tmp_path / "run" / "best", ("a", "b"))
    facts = {"config": {"max_length": 16}, "task": {"pairs": True}}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(facts))
    predictor = load_predictor(tmp_path / "run")
    (one,), (other,) = (predict(predictor, ["a good film"], [second]) for second in ("good", "bad ."))
    assert one != other
    with pytest.raises(BadInputError, match="trained on pairs"):
        predict(predictor, ["a good film"])
    with pytest.raises(BadInputError, match="trained on single texts"):
        predict(load_predictor(run), ["a"], ["b"])
    with pytest.raises(BadInputError, match="2 texts and 1 second"):
        predict(predictor, ["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [([], "no text"), (["a", " \n"], "text number 2 is empty"), (["\udcff"], "number 1 is not valid UTF-8")],
)
def test_texts_that_are_none(run: Path, texts: list[str], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        predict(load_predictor(run), texts)


def test_an_answer_that_is_not_finite_is_none(run: Path) -> None:
    predictor = load_predictor(run)
    with torch.no_grad():
        next(predictor.model.parameters()).fill_(torch.nan)
    with pytest.raises(BadInputError, match="not a finite number"):
        predict(predictor, TEXTS)


def test_folders_without_a_model(run: Path, tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(BadInputError) as caught:
            load_predictor(folder)
        return str(caught.value)

    assert "does not exist" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(tmp_path / "file")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in refused(empty)
    (empty / "metrics.jsonl").write_text("")
    assert f"armijo finetune --resume {empty}" in refused(empty)

    broken = tiny(tmp_path / "broken", ("a", "b"))
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert "cannot be read" in refused(broken)
    (broken / "model.safetensors").unlink()
    assert "has no weights" in refused(broken)

    dumb = tiny(tmp_path / "dumb", ("a", "b"))
    for name in ("tokenizer.json", "vocab.txt"):
        (dumb / name).unlink(missing_ok=True)
    assert "has no vocabulary" in refused(dumb)
    (dumb / "tokenizer_config.json").unlink()
    assert "has no tokenizer" in refused(dumb)

    headless = tiny(tmp_path / "headless", ("no", "yes"), paper=True)
    (headless / "head.json").unlink()
    assert "not trained to classify" in refused(headless)
    (headless / "head.json").write_text('{"labels": ["one", "two", "three"]}')
    assert "cannot be read" in refused(headless)


# ----------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    application = typer.Typer()
    application.command()(predict_command)
    return application


def ask(app: typer.Typer, *arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(app: typer.Typer, *arguments: object) -> str:
    with pytest.raises(BadInputError) as caught:
        CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return str(caught.value)


def test_tab_separated_when_piped(app: typer.Typer, run: Path) -> None:
    lines = ask(app, run, "--text", "a\tgood\nfilm", "--text", "the bad film").splitlines()
    assert lines[0].split("\t") == ["text", "label", "p(negative)", "p(neutral)", "p(positive)"]
    assert len(lines) == 3
    cells = lines[1].split("\t")
    assert cells[0] == "a good film"
    assert cells[1] in ("negative", "neutral", "positive")
    assert sum(map(float, cells[2:])) == pytest.approx(1, abs=1e-4)


def test_json_lines(app: typer.Typer, run: Path) -> None:
    (line,) = ask(app, run, "--text", "a «good» film", "--format", "jsonl").splitlines()
    answer = json.loads(line)
    assert answer["text"] == "a «good» film"
    assert answer["probabilities"].keys() == {"negative", "neutral", "positive"}
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)


def test_a_table_shows_the_text_as_it_is(app: typer.Typer, run: Path) -> None:
    out = ask(app, run, "--text", "a [bold]good[/bold] film", "--format", "table")
    assert "[bold]good[/bold]" in " ".join(out.split())
    (prediction,) = predict(load_predictor(run), ["a [bold]good[/bold] film"])
    assert f"{prediction.label}" in out
    assert f"{max(prediction.probabilities):.3f}" in out


def test_a_file_in_and_a_file_out(app: typer.Typer, run: Path, tmp_path: Path) -> None:
    asked, out = tmp_path / "asked.jsonl", tmp_path / "answers.csv"
    texts = ["a good film", 'the "bad", film\n.']
    asked.write_text("".join(json.dumps({"review": text}) + "\n" for text in texts))
    assert "2 predictions" in ask(app, run, "--file", asked, "--text-column", "review", "--output", out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == texts
    direct = predict(load_predictor(run), texts)
    assert [row["label"] for row in rows] == [prediction.label for prediction in direct]
    assert [float(row["p(neutral)"]) for row in rows] == [p.probabilities[1] for p in direct]
    again = tmp_path / "answers.jsonl"
    ask(app, run, "--file", asked, "--text-column", "review", "--output", again)
    assert [json.loads(line)["text"] for line in again.read_text().splitlines()] == texts
    assert {path.name for path in tmp_path.iterdir()} == {"asked.jsonl", "answers.csv", "answers.jsonl"}


def test_as_many_rows_are_read_back_as_were_written(app: typer.Typer, run: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    asked, out = tmp_path / "asked.jsonl", tmp_path / "answers.csv"
    texts = [
        "a\rgood film",
        "a\0bad film",
        "\r",
        "a\r\nfilm",
        '"',
        "\x85film\u2028",
        "'",
        "the film,",
        " a",
        "\x1a film",
    ]
    texts[2] += "film"
    asked.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ask(app, run, "--file", asked, "--output", out)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == texts
    frame = pandas.read_csv(out)
    assert len(frame) == len(texts)
    assert list(frame["label"]) == [row["label"] for row in rows]
    assert frame["p(neutral)"].dtype == float


def test_texts_that_are_cut_are_counted(app: typer.Typer, run: Path, tmp_path: Path) -> None:
    arguments = [str(run), "--text", "good film", "--text", "a good film . a bad film"]
    assert "1 of 2 texts is cut at 5 tokens; the longest has 9. The rest is not read." in _stderr(app, *arguments)
    assert _stderr(app, str(run), "--text", "good film") == ""


def _stderr(app: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stderr


def test_a_model_that_was_copied_cuts_where_its_run_cut(run: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    task = TaskData("t", "d", ("a", "b"), Split((), None, ()), Split((), None, ()), ("accuracy",), {})
    trained = tiny(tmp_path / "trained", ("a", "b"))
    model, tokenizer = models.load(str(trained), task)
    (tmp_path / "copy").mkdir()
    models.save(model, tokenizer, tmp_path / "copy", task, 7)
    assert tokenizer.model_max_length == 16
    assert load_predictor(tmp_path / "copy").max_length == 7
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").model_max_length == 7
    # Another training of it may read as much as the model can, and so may one of what that leaves.
    model, tokenizer = models.load(str(tmp_path / "copy"), task)
    assert models.max_length(model, tokenizer) == 16
    (tmp_path / "again").mkdir()
    models.save(model, tokenizer, tmp_path / "again", task, 9)
    assert load_predictor(tmp_path / "again").max_length == 9
    assert models.max_length(*models.load(str(tmp_path / "again"), task)) == 16


def test_a_folder_that_cannot_be_written_to_and_a_full_disk(
    app: typer.Typer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from armijo_lab.results import run_folder

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out.csv"
    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "write_text", full)
        message = refusal(app, run, "--text", "a", "--output", out)
    assert (
        message
        == f"The predictions could not be written to {out} (No space left on device); make room, or name another file."
    )
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    # Before the model is read: there is none.
    assert f"The folder {tmp_path} cannot be written to" in refusal(
        app, tmp_path / "none", "--text", "a", "--output", out
    )
    assert list(tmp_path.iterdir()) == []


def test_scores_are_written_too(app: typer.Typer, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", ())
    header, line = ask(app, folder, "--text", "a film", "--text-pair", "the film").splitlines()
    assert header.split("\t") == ["text", "text_pair", "score"]
    (prediction,) = predict(load_predictor(folder), ["a film"], ["the film"])
    assert float(line.split("\t")[2]) == pytest.approx(prediction.score, rel=1e-4)
    assert "score" in ask(app, folder, "--text", "a film", "--text-pair", "the film", "--format", "table")
    answer = json.loads(ask(app, folder, "--text", "a film", "--format", "jsonl"))
    assert answer.keys() == {"text", "score"}


def test_bad_options_get_a_sentence_and_nothing_is_written(app: typer.Typer, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "asked.csv"
    file.write_text("review\na good film\n")
    before = file.read_text()
    assert "--text or with --file" in refusal(app, run)
    assert "--text or with --file" in refusal(app, run, "--text", "a", "--file", file)
    assert "--text-pair-column" in refusal(app, run, "--file", file, "--text-pair", "a")
    assert "--text-pair" in refusal(app, run, "--text", "a", "--text-pair-column", "b")
    assert ".csv or .jsonl" in refusal(app, run, "--text", "a", "--output", tmp_path / "out.txt")
    assert "no folder" in refusal(app, run, "--text", "a", "--output", tmp_path / "new" / "out.csv")
    assert "--format" in refusal(app, run, "--text", "a", "--output", tmp_path / "o.csv", "--format", "tsv")
    assert "overwritten" in refusal(app, run, "--file", file, "--text-column", "review", "--output", file)
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in refusal(app, run, "--text", "a", "--output", tmp_path / "folder.csv")
    assert "number 1 is empty" in refusal(app, run, "--text", "", "--output", tmp_path / "out.csv")
    assert "already" in refusal(app, run, "--text", "a", "--output", file)
    assert "--output is empty" in refusal(app, run, "--text", "a", "--output", "")
    assert "--text-column" in refusal(app, run, "--file", file, "--output", tmp_path / "out.csv")
    assert "review" in refusal(app, run, "--file", file, "--output", tmp_path / "out.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"asked.csv", "folder.csv"}
    assert file.read_text() == before


def test_the_module_itself_loads_no_torch() -> None:
    code = "import sys, armijo_lab.commands.predict; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
