"""Labels: what a file's cells are called as classes, alike for all kinds of files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from armijo_lab.errors import BadInputError
from armijo_lab.names import counted

__all__ = ["names", "number", "ordered"]

_CURRENCY = re.compile(r"([-+]?)\s*[$€£¥]\s*")
_UNIT = re.compile(r"\s*[%$€£¥]$")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))(?:\.0+)?", re.ASCII)


def names(values: list[Any], where: Callable[[int], str]) -> tuple[str, ...]:
    """The labels as strings; the same number may be 1, 1.0 or "1.0" in the file, and is `1`.

    Args:
        values: The cells, row by row.
        where: Of a row's index the beginning of a sentence, as in `The label in line 3 of rows.csv`.

    Raises:
        BadInputError: A label is missing or is none, or they are scores.
    """
    found = [_name(value, where, index) for index, value in enumerate(values)]
    _refuse_scores(found, where)
    # By their digits, because a float merges long numbers; and not where zeros in front say that they are codes.
    whole = {name: _WHOLE.fullmatch(name) for name in set(found)}
    if all(whole.values()):
        return tuple(match[1] for name in found if (match := whole[name]))
    return tuple(found)


def number(name: str) -> float | None:
    """The number that a label is, with a decimal comma, a percent sign or a currency too; `None` for a word."""
    bare = _UNIT.sub("", _CURRENCY.sub(r"\1", name, count=1) if _CURRENCY.match(name) else name)
    if _THOUSANDS.fullmatch(bare):
        bare = bare.replace(",", "")
    elif bare.count(",") == 1 and "." not in bare:
        bare = bare.replace(",", ".")
    try:
        value = float(bare) if bare.isascii() and "_" not in bare else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def ordered(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels as numbers if all of them are whole numbers, else alphabetically."""
    try:
        return tuple(sorted(labels, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(labels))


def _name(value: Any, where: Callable[[int], str], index: int) -> str:
    # A whole number stands as 1.0 where the reader had to make room for a missing one beside it.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise BadInputError(f"{where(index)} is missing; every row needs a label.")
    if not isinstance(value, str | int | float):
        shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:60] + "..."
        raise BadInputError(f"{where(index)} is {shown}; a label is a string, a whole number or a boolean.")
    return str(value).strip()


def _refuse_scores(found: list[str], where: Callable[[int], str]) -> None:
    numbers = {name: number(name) for name in set(found)}
    fractions = {name for name, value in numbers.items() if value is not None and value % 1}
    words = {name for name, value in numbers.items() if value is None}
    if not fractions or 2 * len(words) >= len(numbers):
        return
    first = next(index for index, name in enumerate(found) if name in fractions)
    odd = [index for index, name in enumerate(found) if name in words]
    others = "all others are numbers too"
    if odd:
        place = where(odd[0])
        more = f" and {counted(len(odd) - 1, 'more row')}" if odd[1:] else ""
        others = f"most others are numbers too ({place[0].lower()}{place[1:]} is {found[odd[0]]!r}{more})"
    raise BadInputError(
        f"{where(first)} is {found[first]}, and {others}: scores, of which each would be a class. Regression is not "
        "offered; round the numbers to a few classes, or name the classes with words."
    )
