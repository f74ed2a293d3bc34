"""Words and names for people: counted nouns, texts without hidden commands, and texts as parts of a file's name."""

import re

__all__ = ["counted", "slug", "visible"]

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def counted(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def visible(text: str) -> str:
    r"""`text` with control characters and those that turn the direction of writing as escapes, such as `\x1b`.

    A label or a file's name may come from anywhere, and what a terminal or a page obeys must not come with it.
    """
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


def slug(text: str) -> str:
    """`text` as a part of a folder's name."""
    return re.sub(r"[^\w.=+-]+", "_", text).strip("_")
