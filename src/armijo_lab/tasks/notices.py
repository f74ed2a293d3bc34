"""What is notable about the rows of a task, to be said before training begins."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from armijo_lab.names import counted
from armijo_lab.tasks import Split, TaskData
from armijo_lab.tasks.labels import number

__all__ = ["cut_texts", "notices"]

_MOST_CLASSES = 12
_HARDLY_COVERED = 0.1
"""The share of tokens that stand for no character, from which a vocabulary hardly covers the texts."""
_FEWEST_LETTERS = 1.5
"""The letters a token, on average over longer words, below which a vocabulary has letters of a language and no words.

With the tokenizer of all-MiniLM-L6-v2 they are 1.0 to 1.4 in Russian, Greek, Arabic, Hebrew, Hindi and Korean, 2.0 to
3.0 in tweets and in ten languages in Latin letters, and 3.3 to 6.2 in English, medicine and chemistry included.
"""
_MOST_ACCENTS_LOST = 0.25
"""The accents lost per letter from which a tokenizer that drops them takes words for others.

By that of all-MiniLM-L6-v2 0.36 to 0.42 in Vietnamese and Yoruba, 0.19 in Czech, at most 0.1 in nine other languages.
"""
_FEWEST_WORDS = 10
_SAMPLE = 500
_FEW_ROWS = 20
"""The rows per class below which many classes of whole numbers look like scores or years."""
_ALTERNATIVES = re.compile(r"\S\s*[|;]\s*\S")
_LIST = re.compile(r"\[.*\]|\{.*\}|\(.*,.*\)", re.DOTALL)
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_WITHOUT_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Letters of scripts that put no blanks between words, few of which make a token of any vocabulary."""


def notices(task: TaskData, tokenizer: Any, max_length: int) -> list[str]:
    """Sentences on the rows: the classes always, and whatever may be a mistake.

    Args:
        task: the task; one that brings `encode` has no texts, and nothing is said of it.
        tokenizer: the model's.
        max_length: the tokens after which a text is cut.
    """
    if task.encode is not None:
        return []
    found = [*_classes(task), *_contradictions(task), *_leaks(task), *_both_sides(task)]
    return [*found, *_lengths(task, tokenizer, max_length), *_coverage(task.train, tokenizer)]


def _classes(task: TaskData) -> list[str]:
    if not task.labels:
        return []
    rows = Counter(task.train.targets)
    shown = [f"{_short(label)} {rows[index]}" for index, label in enumerate(task.labels[:_MOST_CLASSES])]
    more = len(task.labels) - len(shown)
    rest = f" and {more} more class{'es' if more > 1 else ''}" if more else ""
    found = [f"Rows per class: {', '.join(shown)}{rest}."]
    evaluated = set(task.evaluation.targets)
    once = [label for index, label in enumerate(task.labels) if rows[index] == 1 and index not in evaluated]
    if once:
        what = "class has" if len(once) == 1 else "classes have"
        found.append(
            f"{len(once)} {what} one row only, such as {_short(once[0])!r}: it is trained on, and never evaluated."
        )
    alike: dict[str, list[str]] = defaultdict(list)
    for label in task.labels:
        alike[_key(label)].append(label)
    for labels in alike.values():
        if len(labels) > 1:
            seen = {" ".join(label.split()).casefold() for label in labels}
            how = "case or blanks" if len(seen) == 1 else "the form of their characters or invisible ones"
            shown = ", ".join(map(repr if len(seen) == 1 else ascii, labels))
            found.append(f"The classes {shown} differ by {how} only. If they are one, write them alike.")
    several = _several_in_one(task.labels)
    if len(several) > 1:
        found.append(
            f"{len(several)} classes look like several labels in one, such as "
            f"{_short(several[0])!r}. Each combination is a class of its own here; several labels for a text are not "
            "offered."
        )
    n = len(task.labels)
    if (
        n > _MOST_CLASSES
        and len(task.train) < _FEW_ROWS * n
        and all(number(label) is not None for label in task.labels)
    ):
        found.append(
            f"All {n} classes are numbers, with {len(task.train) / n:.1f} rows each on average: it looks like a number "
            "to be predicted. Each is a class of its own here, and regression is not offered; round them to a few."
        )
    return found


def _several_in_one(labels: Sequence[str]) -> list[str]:
    """Labels that are lists, or whose parts between commas are found in other labels too."""
    parts = [{part.strip() for part in label.split(",")} for label in labels]
    known = Counter(part for each in parts for part in each)
    return [
        label
        for label, each in zip(labels, parts, strict=True)
        if _ALTERNATIVES.search(label)
        or _LIST.fullmatch(label)
        or (len(each) > 1 and any(known[part] > 1 for part in each))
    ]


def _contradictions(task: TaskData) -> list[str]:
    if not task.labels:
        return []
    given: dict[tuple[str, str], set[int]] = defaultdict(set)
    example: dict[tuple[str, str], str] = {}
    for split in (task.train, task.evaluation):
        for key, text, target in zip(_keys(split), split.texts, split.targets, strict=True):
            given[key].add(target)
            example.setdefault(key, text)
    several = [key for key, targets in given.items() if len(targets) > 1]
    if not several:
        return []
    labels = " and ".join(repr(_short(task.labels[target])) for target in sorted(given[several[0]]))
    return [
        f"{counted(len(several), 'text')} {'has' if len(several) == 1 else 'have'} more than one label, such as "
        f"{_short(example[several[0]])!r} with {labels}; no model can be right on all of these rows."
    ]


def _leaks(task: TaskData) -> list[str]:
    # Short labels (a, no, 12) stand in texts by chance.
    words = [re.compile(rf"\b{re.escape(label)}\b", re.IGNORECASE) if len(label) > 3 else None for label in task.labels]
    texts = [
        f"{text} {pair}" for text, pair in zip(task.train.texts, task.train.pairs or _blanks(task.train), strict=True)
    ]
    rows = zip(texts, task.train.targets, strict=True) if task.labels else ()
    leaking = [target for text, target in rows if (word := words[target]) is not None and word.search(text)]
    if len(leaking) < 2 or 2 * len(leaking) <= len(task.train):
        return []
    return [
        f"{len(leaking)} of {counted(len(task.train), 'text')} contain their label, such as "
        f"{_short(task.labels[leaking[0]])!r}: the model may learn to look for it, and texts without it will be "
        "strange to it."
    ]


def _blanks(split: Split) -> tuple[str, ...]:
    return ("",) * len(split)


def _both_sides(task: TaskData) -> list[str]:
    trained = set(_keys(task.train))
    both = sum(key in trained for key in _keys(task.evaluation))
    if not both:
        return []
    share = f"{both} of {counted(len(task.evaluation), 'held-out row')}"
    verb = "is" if both == 1 else "are"
    return [f"{share} {verb} among the training rows, word for word; the results will look too good."]


def _keys(split: Split) -> list[tuple[str, str]]:
    pairs = split.pairs if split.pairs is not None else _blanks(split)
    return [(_key(a), _key(b)) for a, b in zip(split.texts, pairs, strict=True)]


def _key(text: str) -> str:
    """A text without case, blanks, invisible characters and the forms that the same characters have in Unicode."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", unicodedata.normalize("NFKC", text).casefold()))
    return " ".join(text.split()).casefold()


def _lengths(task: TaskData, tokenizer: Any, max_length: int) -> list[str]:
    kinds = {"text": task.train, "held-out text": task.evaluation}
    return [
        sentence
        for kind, split in kinds.items()
        for sentence in cut_texts(split, tokenizer, max_length, kind, "--max-length keeps more.")
    ]


def cut_texts(split: Split, tokenizer: Any, max_length: int, kind: str, remedy: str) -> list[str]:
    """A sentence on the texts that are cut, if any are.

    Args:
        split: The rows.
        tokenizer: The model's.
        max_length: The tokens after which a text is cut.
        kind: What one of the texts is called.
        remedy: A sentence to be put behind it.
    """
    pairs = None if split.pairs is None else list(split.pairs)
    cut = _encoded(tokenizer, list(split.texts), pairs, truncation=True, max_length=max_length)
    full = [i for i, ids in enumerate(cut) if len(ids) >= max_length]
    if not full:
        return []
    some = None if pairs is None else [pairs[i] for i in full]
    whole = _encoded(tokenizer, [split.texts[i] for i in full], some)
    longer = [len(ids) for ids in whole if len(ids) > max_length]
    if not longer:
        return []
    return [
        f"{len(longer)} of {counted(len(split), kind)} {'is' if len(longer) == 1 else 'are'} cut at {max_length} "
        f"tokens; the longest has {max(longer)}. {remedy}"
    ]


def _coverage(split: Split, tokenizer: Any) -> list[str]:
    texts = [text for column in (split.texts, split.pairs or ()) for text in column[:: 1 + len(column) // _SAMPLE]]
    ids = [one for row in _encoded(tokenizer, texts, None) for one in row]
    numbers = Counter(ids)
    for special in getattr(tokenizer, "all_special_ids", []):
        if special != tokenizer.unk_token_id:
            numbers.pop(special, None)
    # A byte of a longer character decodes to the replacement character alone.
    lost = {
        one for one in numbers if one == tokenizer.unk_token_id or tokenizer.decode([one]).strip() in ("\ufffd", "")
    }
    share = sum(numbers[one] for one in lost) / max(1, sum(numbers.values()))
    remedy = (
        "the model's vocabulary hardly covers their language. Take a model that was pretrained on it, with --model."
    )
    if share >= _HARDLY_COVERED:
        return [f"{share:.0%} of the tokens stand for no character of the texts: {remedy}"]
    words = [word for text in texts for each in text.split() if _is_long_word(word := each.strip(".,;:!?\"'()«»“”…"))]
    if len(words) < _FEWEST_WORDS:
        return []
    rows = _encoded(tokenizer, words, None, add_special_tokens=False)
    # Taken apart, a syllable of Korean counts as the letters that it consists of.
    apart = unicodedata.normalize("NFD", "".join(words))
    letters = len(apart) / max(1, sum(map(len, rows)))
    if letters < _FEWEST_LETTERS:
        return [f"A token stands for {letters:.1f} letters of the texts on average: {remedy}"]
    read = unicodedata.normalize("NFD", tokenizer.decode([one for row in rows for one in row]))
    lost = (_accents(apart) - _accents(read)) / (len(apart) - _accents(apart))
    if lost < _MOST_ACCENTS_LOST:
        return []
    return [f"The model's tokenizer drops the accents of the texts ({lost:.0%} of the letters lose one): {remedy}"]


def _accents(text: str) -> int:
    return sum(map(bool, map(unicodedata.combining, text)))


def _is_long_word(word: str) -> bool:
    """Whether a word has four letters or more, accents and the parts of Korean syllables included, and nothing else."""
    return (
        len(unicodedata.normalize("NFD", word)) > 3
        and all(unicodedata.category(character)[0] in "LM" for character in word)
        and not _WITHOUT_BLANKS.search(word)
    )


def _encoded(tokenizer: Any, texts: list[str], pairs: Sequence[str] | None, **options: Any) -> list[list[int]]:
    return tokenizer(texts, pairs, verbose=False, **options)["input_ids"]


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= 30 else label[:29] + "…"
