"""Tasks of the laboratory that are no classification of texts: digits for image models, characters for a small GPT.

Both come with what is installed: the digits with scikit-learn, the characters with Python's standard library.
"""

from __future__ import annotations

from typing import Any

import torch

from armijo_lab.errors import BadInputError
from armijo_lab.tasks import Split, TaskData, Tensors, embedded

__all__ = ["TASKS", "load"]

TASKS = ("digits", "characters")
"""The names that `load` knows."""

_HELD_OUT = 400
_CONTEXT = 64
# Code points 32 to 126 are themselves; index 0 stands for all others.
_FIRST, _LAST = 32, 126


def load(name: str) -> TaskData:
    """Read a task of `TASKS`.

    Raises:
        BadInputError: scikit-learn, from which the digits come, is not installed.
    """
    return _digits() if name == "digits" else _characters()


def _digits() -> TaskData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BadInputError(
            "The digits come with scikit-learn, which is not installed; install it with: pip install 'armijo[lab]'."
        ) from error
    found: Any = load_digits()
    rows = [tuple(float(pixel) for pixel in image.reshape(-1)) for image in found.images]
    targets = [int(target) for target in found.target]
    # The file is ordered by writer, so the last rows are hands that training has not seen.
    split = len(rows) - _HELD_OUT
    return TaskData(
        name="digits",
        description="Digits: which digit is an image of 8 by 8 pixels?",
        labels=tuple(str(digit) for digit in range(10)),
        train=Split(tuple(rows[:split]), None, tuple(targets[:split])),
        evaluation=Split(tuple(rows[split:]), None, tuple(targets[split:])),
        metrics=("accuracy",),
        provenance={"source": "scikit-learn, load_digits"},
        encode=_pixels,
    )


def _pixels(split: Split) -> Tensors:
    pixels = torch.tensor(split.texts, dtype=torch.float32).view(-1, 1, 8, 8)
    return {"pixel_values": pixels / 8 - 1}, torch.tensor(split.targets)


def _characters() -> TaskData:
    source = embedded.load()
    train, evaluation = ("\n".join(split.texts) for split in (source.train, source.evaluation))
    return TaskData(
        name="characters",
        description="Characters: which character of a docstring comes next?",
        labels=("other", *(chr(code) for code in range(_FIRST, _LAST + 1))),
        train=_windows(train),
        evaluation=_windows(evaluation),
        metrics=("accuracy",),
        provenance=source.provenance,
        encode=_codes,
    )


def _windows(text: str) -> Split:
    starts = range(0, len(text) - _CONTEXT - 1, _CONTEXT)
    windows = [text[start : start + _CONTEXT + 1] for start in starts]
    # What is to be predicted at each place is the character after it.
    return Split(tuple(window[:-1] for window in windows), None, tuple(tuple(map(_code, w[1:])) for w in windows))


def _code(character: str) -> int:
    code = ord(character)
    return code - _FIRST + 1 if _FIRST <= code <= _LAST else 0


def _codes(split: Split) -> Tensors:
    return {"input_ids": torch.tensor([[_code(c) for c in text] for text in split.texts])}, torch.tensor(split.targets)
