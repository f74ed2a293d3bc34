"""The model card: front matter that the hub reads, true numbers, code that runs, no folder of this machine."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from armijo_lab.results.card import model_card
from lab.made_up_runs import write_run

markdown = pytest.importorskip("markdown", reason="comes with mkdocs")


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    return json.loads((write_run(tmp_path / "run", metrics=("accuracy", "f1")) / "summary.json").read_text())


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_reads_the_front_matter(summary: dict[str, Any]) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(model_card(summary)).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert data.metrics == ["accuracy", "f1"]
    results = {result.metric_type: result.metric_value for result in data.eval_results or ()}
    best = summary["result"]["best"]
    assert results == {"accuracy": best["accuracy"], "f1": best["f1"]}


def test_the_card_tells_the_results_class_by_class(summary: dict[str, Any]) -> None:
    card = model_card(summary)
    assert (
        f"| best (epoch {summary['result']['best']['epoch']}) | {summary['result']['best']['accuracy']:.4g} |" in card
    )
    assert "| negative | 0.8 | 0.85 | 0.824 | 190 |" in card
    assert "right on 0.5250 of them" in card


def test_a_line_search_has_no_learning_rate_and_adam_has_one(summary: dict[str, Any]) -> None:
    card = model_card(summary)
    assert "No learning rate was set" in card
    assert "| `embeddings` | 1,000 |" in card
    adam = {"name": "adam", "arguments": {"lr": 2e-5, "schedule": "cosine"}, "components": [], "merges": []}
    card = model_card(summary | {"optimizer": adam | {"failed_searches": 0}})
    assert "No learning rate was set" not in card
    assert "lr = 2e-05, schedule = cosine" in card


def test_the_paper_protocol_tells_how_to_join_encoder_and_head(summary: dict[str, Any]) -> None:
    summary["config"]["paper_protocol"] = True
    card = model_card(summary)
    assert "head.safetensors" in card
    assert "AutoModelForSequenceClassification" not in card
    assert "pipeline_tag" not in front_matter(card)


def test_every_example_is_valid_python(summary: dict[str, Any]) -> None:
    for paper, pairs, labels in ((False, False, ["a", "b"]), (False, True, []), (True, True, ["a", "b"])):
        summary["config"]["paper_protocol"] = paper
        summary["task"] |= {"pairs": pairs, "labels": labels}
        (code,) = re.findall(r"```python\n(.*?)```", model_card(summary), re.DOTALL)
        compile(code, "card", "exec")
        assert ('"…", "…"' in code) == pairs


def test_a_regression_has_neither_classes_nor_probabilities(summary: dict[str, Any]) -> None:
    summary["task"] |= {"labels": [], "metrics": ["pearson"]}
    summary["result"] = {
        "best": {"epoch": 1, "pearson": 0.8, "loss": 0.5},
        "last": {"epoch": 1, "pearson": 0.8, "loss": 0.5},
        "per_class": {},
        "majority": None,
    }
    card = model_card(summary)
    assert "gives a number" in card
    assert "class by class" not in card
    assert "softmax" not in card


def test_a_run_that_ended_early_or_diverged_still_has_a_card(summary: dict[str, Any]) -> None:
    summary["status"] = "interrupted"
    summary["result"]["best"]["accuracy"] = summary["result"]["best"]["f1"] = None
    card = model_card(summary)
    assert "model-index" not in front_matter(card)
    assert "interrupted before its end" in card
    summary["result"] = {"best": None, "last": None, "per_class": {}, "majority": None}
    assert "before its first evaluation" in model_card(summary | {"train_loss": None})


def test_no_folder_of_this_machine_is_in_the_card(summary: dict[str, Any]) -> None:
    summary["command"] = "armijo finetune --data-dir=/home/somebody/glue --model '/secret/place/bert' -o ~/private/out"
    summary["config"]["model"] = "/secret/place/bert"
    summary["model"]["name"] = "/secret/place/bert"
    summary["task"]["provenance"] = {"source": "C:\\Users\\somebody\\glue", "url": "https://example.org/data/a"}
    card = model_card(summary)
    for private in ("somebody", "secret", "private", "/home"):
        assert private not in card
    assert "armijo finetune --data-dir=glue --model 'bert' -o out" in card
    assert "https://example.org/data/a" in card
    assert "base_model" not in front_matter(card)
    assert "# bert-sst2-plasls" in card


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("google-bert/bert-base-cased", "google-bert/bert-base-cased"),
        ("folder", None),
        ("../models/bert", None),
    ],
)
def test_the_base_model_is_named_if_the_hub_knows_it(
    summary: dict[str, Any], model: str, base: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    summary["config"]["model"] = summary["model"]["name"] = model
    assert front_matter(model_card(summary)).get("base_model") == base


def test_labels_that_markdown_and_yaml_would_misread(summary: dict[str, Any]) -> None:
    summary["task"]["name"] = "no: [yes] 'é' – 评论"
    per_class = {"a|b\nc": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 3}, "/s": dict.fromkeys(
        ("precision", "recall", "f1", "support"), None
    )}  # fmt: skip
    summary["result"]["per_class"] = per_class
    card = model_card(summary)
    assert "| a\\|b c | 1 | 1 | 1 | 3 |" in card
    assert "| /s | – | – | – | – |" in card
    assert front_matter(card)["model-index"][0]["results"][0]["dataset"]["name"] == summary["task"]["name"]


def test_escape_sequences_are_shown_and_a_command_with_backticks_is_code(summary: dict[str, Any]) -> None:
    evil = "a\x1b[31m\u202eb"
    summary["task"] |= {"name": f"*{evil}*", "labels": [evil, "c"], "provenance": {"train": f"<b>{evil}"}}
    summary["result"]["per_class"] = {evil: {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 3}}
    summary["command"] = f"armijo finetune --train 'a`b` {evil}.csv'"
    card = model_card(summary)
    assert not {"\x1b", "\u202e"} & set(card)
    assert front_matter(card)["library_name"] == "transformers"
    html = markdown.markdown(card.split("---", 2)[2], extensions=["tables"])
    assert "<code>armijo finetune --train 'a`b` a\\x1b[31m\\u202eb.csv'</code>" in html
    assert "<b>" not in html
    assert re.search(r"<h1>[^<]*\*a\\x1b\[31m\\u202eb\*[^<]*</h1>", html), "no emphasis in the heading"


def test_labels_and_names_with_html_line_breaks_and_marks_are_shown_as_they_are(summary: dict[str, Any]) -> None:
    labels = ["<b>good</b>\n<script>alert(1)</script>", "a`b``c", "*not* [bold](x) &amp;", "x|y"]
    summary["task"]["labels"] = labels
    scores = {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 3}
    summary["result"]["per_class"] = dict.fromkeys(labels, scores)
    summary["task"]["description"] = "The column <img src=x>\n# of texts"
    card = model_card(summary)
    html = markdown.markdown(card.split("---", 2)[2], extensions=["tables"])
    text = re.sub(r"<[^>]+>", "", html)
    assert "<script" not in html
    assert "<img" not in html
    assert "<b>" not in html
    shown = unescape(text)
    for label in labels:
        assert shown.count(" ".join(label.split())) == 2, "in the sentence and in the table"
    assert "<h1>of texts" not in html
    assert "# of texts" in shown
    summary["result"]["per_class"] = dict.fromkeys("abcd", scores)
    harmless = markdown.markdown(model_card(summary).split("---", 2)[2], extensions=["tables"])
    assert html.count("<tr>") == harmless.count("<tr>"), "no row is torn"
