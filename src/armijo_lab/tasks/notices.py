"""What is notable about the rows of a task, to be said before training begins."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from armijo_lab.names import counted
from armijo_lab.tasks import Split, TaskData

__all__ = ["cut_texts", "notices"]

_MOST_CLASSES = 12
_HARDLY_COVERED = 0.1
"""The share of tokens that stand for no character, from which a vocabulary hardly covers the texts."""
_SAMPLE = 500
_ALTERNATIVES = re.compile(r"\S\s*[|;]\s*\S")


def notices(task: TaskData, tokenizer: Any, max_length: int) -> list[str]:
    """Sentences on the rows: the classes always, and whatever may be a mistake.

    Args:
        task: the task; one that brings `encode` has no texts, and nothing is said of it.
        tokenizer: the model's.
        max_length: the tokens after which a text is cut.
    """
    if task.encode is not None:
        return []
    found = [*_classes(task), *_both_sides(task), *_lengths(task, tokenizer, max_length)]
    return [*found, *_coverage(task.train, tokenizer)]


def _classes(task: TaskData) -> list[str]:
    if not task.labels:
        return []
    rows = Counter(task.train.targets)
    shown = [f"{_short(label)} {rows[index]}" for index, label in enumerate(task.labels[:_MOST_CLASSES])]
    more = len(task.labels) - len(shown)
    rest = f" and {more} more class{'es' if more > 1 else ''}" if more else ""
    found = [f"Rows per class: {', '.join(shown)}{rest}."]
    alike: dict[str, list[str]] = defaultdict(list)
    for label in task.labels:
        alike[" ".join(label.split()).casefold()].append(label)
    found += [
        f"The classes {', '.join(map(repr, labels))} differ by case or blanks only. If they are one, write them alike."
        for labels in alike.values()
        if len(labels) > 1
    ]
    several = [label for label in task.labels if _ALTERNATIVES.search(label)]
    if len(several) > 1:
        found.append(
            f"{len(several)} classes look like several labels in one, such as "
            f"{_short(several[0])!r}. Each combination is a class of its own here; several labels for a text are not "
            "offered."
        )
    return found


def _both_sides(task: TaskData) -> list[str]:
    trained = set(_keys(task.train))
    both = sum(key in trained for key in _keys(task.evaluation))
    if not both:
        return []
    share = f"{both} of {counted(len(task.evaluation), 'held-out row')}"
    verb = "is" if both == 1 else "are"
    return [f"{share} {verb} among the training rows, word for word; the results will look too good."]


def _keys(split: Split) -> list[tuple[str, str]]:
    pairs = split.pairs if split.pairs is not None else ("",) * len(split)
    return [
        (" ".join(a.split()).casefold(), " ".join(b.split()).casefold())
        for a, b in zip(split.texts, pairs, strict=True)
    ]


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
    ids = [one for row in _encoded(tokenizer, list(split.texts[:_SAMPLE]), None) for one in row]
    numbers = Counter(ids)
    for special in getattr(tokenizer, "all_special_ids", []):
        if special != tokenizer.unk_token_id:
            numbers.pop(special, None)
    # A byte of a longer character decodes to the replacement character alone.
    lost = {
        one for one in numbers if one == tokenizer.unk_token_id or tokenizer.decode([one]).strip() in ("\ufffd", "")
    }
    share = sum(numbers[one] for one in lost) / max(1, sum(numbers.values()))
    if share < _HARDLY_COVERED:
        return []
    return [
        f"{share:.0%} of the tokens stand for no character of the texts: the model's vocabulary hardly covers their "
        "language. Take a model that was pretrained on it, with --model."
    ]


def _encoded(tokenizer: Any, texts: list[str], pairs: Sequence[str] | None, **options: Any) -> list[list[int]]:
    return tokenizer(texts, pairs, verbose=False, **options)["input_ids"]


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= 30 else label[:29] + "…"
