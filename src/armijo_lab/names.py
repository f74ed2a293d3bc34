"""Words and names for people: counted nouns, and what a text is called as a part of a file's name."""

import re

__all__ = ["counted", "slug"]


def counted(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def slug(text: str) -> str:
    """`text` as a part of a folder's name."""
    return re.sub(r"[^\w.=+-]+", "_", text).strip("_")
