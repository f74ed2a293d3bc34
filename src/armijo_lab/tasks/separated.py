"""CSV, TSV and their like: every row arrives as it was written, or the file is refused with the number of its line."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from armijo_lab.errors import BadInputError
from armijo_lab.names import counted

__all__ = ["Row", "names_of", "read"]

logger = logging.getLogger("armijo")

_SEPARATORS = (",", "\t", ";", "|")
_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons"}
_LONGEST_FIELD = 1 << 24
_QUOTED_AFTER_BLANKS = re.compile(' +"')


class Row(NamedTuple):
    """A row, and the first and the last line of the file that it takes."""

    cells: list[str]
    line: int
    last: int


@dataclass(frozen=True)
class _Layout:
    """What the header says of the rows below it, which begin in line `first`."""

    path: Path
    separator: str
    header: list[str]
    first: int

    @property
    def required(self) -> int:
        """The columns up to the last one with a name: spreadsheets write columns without names, and leave them out."""
        return max((number for number, name in enumerate(self.header, 1) if name.strip()), default=1)

    def complete(self, line: str) -> bool:
        """Whether a line has all the columns, if quotes are characters like others."""
        return self.required <= line.count(self.separator) + 1 <= len(self.header)

    @property
    def kind(self) -> str:
        return next(suffix for suffix in reversed(self.path.suffixes) if suffix.lower() in (".csv", ".tsv")).lower()[1:]

    @property
    def marks(self) -> str:
        return _NAMES.get(self.separator, repr(self.separator))


def names_of(text: str, usual: str) -> list[str]:
    """The names in the header, read at a glance."""
    return _fields(next(filter(str.strip, _lines(text)), ""), usual)


def read(
    path: Path, text: str, usual: str, wanted: Sequence[str], check: Callable[[list[str]], None]
) -> tuple[list[str], list[Row]]:
    """The names in the header, and the rows below it, each with a cell for each name.

    Read strictly, because a lenient reader takes a text that begins with a quote for one that goes on to the next
    quote, and swallows the rows between. Where the quotes do not add up but every line has all columns as it stands,
    each line is a row. In a TSV of several columns that reading comes first: there a quote is mostly just a character
    of the text.

    Args:
        path: The file, for sentences.
        text: Its content.
        usual: The separator of its kind; another that gives the wanted names is taken where this one does not.
        wanted: The names that the header is to have.
        check: Called with the names before the rows are read.

    Raises:
        BadInputError: The file is empty, a row has more or fewer columns than the header, its quotes do not add up or
            swallow other rows, or the header stands among the rows: with the number of the line.
    """
    lines = _lines(text)
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise BadInputError(f"{path} is empty.")
    separator, header = _header(path, lines[first], first + 1, usual, wanted)
    check(header)
    layout = _Layout(path, separator, header, first + 2)
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        rows = _rows(layout, lines[first + 1 :])
    finally:
        csv.field_size_limit(limit)
    for row in rows:
        if [cell.removeprefix("\ufeff") for cell in row.cells] == header:
            raise BadInputError(
                f"{path} has its header once more in line {row.line}, as where files were put together; remove that "
                "line, or give the columns other names if it is a row."
            )
    return header, rows


def _lines(text: str) -> list[str]:
    """The lines of a text with their ends. Not by `splitlines`, to which a form feed and others are ends too."""
    return list(io.StringIO(text, newline=""))


def _reader(lines: Iterable[str], separator: str, **options: Any) -> Any:
    return csv.reader(lines, delimiter=separator, **options)


def _fields(line: str, separator: str) -> list[str]:
    names = next(_reader([line], separator), [])
    if any(map(_QUOTED_AFTER_BLANKS.match, names)):
        return next(_reader([line], separator, skipinitialspace=True))
    return names


def _header(path: Path, line: str, number: int, usual: str, wanted: Sequence[str]) -> tuple[str, list[str]]:
    """The separator and the names. Where the usual one does not give the wanted names, another that does is taken."""
    for separator in (usual, *(other for other in _SEPARATORS if other != usual)):
        names = _fields(line, separator)
        if len(names) > 1 and set(wanted) <= set(names):
            return separator, names
    if any("\n" in name or "\r" in name for name in _fields(line, usual)):
        raise BadInputError(
            f"{path} cannot be read: the header in line {number} has a double quote that is not closed in that line; "
            "close it, or leave it out."
        )
    return usual, _fields(line, usual)


def _rows(layout: _Layout, lines: list[str]) -> list[Row]:
    rows, error = _strict(layout, lines)
    if any(_QUOTED_AFTER_BLANKS.match(cell) for row in rows for cell in row.cells):
        # Written as in `"a", "b"`, where to the letter the quotes belong to the second cell.
        without_blanks, another = _strict(layout, lines, skipinitialspace=True)
        if another is None:
            rows, error = without_blanks, None
    one_each = all(layout.complete(line) for line in lines if line.strip("\r\n"))
    several = len(layout.header) > 1
    if error is not None:
        # In a single column every line is complete, and texts of several lines would be cut into pieces.
        if one_each and (several or all(row.line == row.last for row in rows)):
            return _rows_of_lines(layout, lines)
        raise error
    joined = [row for row in rows if several and row.line < row.last and _looks_like_rows(layout, lines, row)]
    if joined:
        if one_each and layout.separator == "\t":
            return _rows_of_lines(layout, lines)
        _refuse_or_tell(layout, lines, joined)
    for row in rows:
        if len(row.cells) < layout.required:
            raise BadInputError(
                f"{layout.path} cannot be read: the row in line {row.line} has {counted(len(row.cells), 'column')} and "
                f"the header {len(layout.header)}; write empty cells too, and put texts that contain line breaks in "
                "double quotes."
            )
    return [row._replace(cells=row.cells + [""] * (len(layout.header) - len(row.cells))) for row in rows]


def _looks_like_rows(layout: _Layout, lines: list[str], row: Row) -> bool:
    """Whether the first and the last line of a row are each a row as they stand, and no writer has quoted its text."""
    if any('"' in cell for cell in row.cells if "\n" in cell or "\r" in cell):  # each stands twice in the file
        return False
    return all(layout.complete(lines[number - layout.first]) for number in (row.line, row.last))


def _refuse_or_tell(layout: _Layout, lines: list[str], joined: list[Row]) -> None:
    """Says that rows may have been swallowed: an error, unless other lines show that the file does quote its texts."""
    inside = {number for row in joined for number in range(row.line, row.last + 1)}
    others = (line for number, line in enumerate(lines, layout.first) if number not in inside and line.strip("\r\n"))
    row = joined[0]
    what = f"a double quote that opens in line {row.line} and closes in line {row.last} makes one row of lines that"
    remedy = "put a text that contains double quotes in double quotes, and write each one inside it twice"
    if all(map(layout.complete, others)):
        raise BadInputError(
            f"{layout.path} cannot be read as {layout.kind}: {what} look like rows; if they are, {remedy}; if they are "
            "one text, write blanks for its line breaks."
        )
    logger.warning(
        "%s: %s might be rows%s. If they are, %s.",
        layout.path,
        what,
        f" ({len(joined)} such rows in all)" if len(joined) > 1 else "",
        remedy,
    )


def _strict(layout: _Layout, lines: list[str], **options: Any) -> tuple[list[Row], BadInputError | None]:
    """The rows up to the first that cannot be read, that one included if it is just too long, and what it is about."""
    begun = 0  # the lines of the row that is read

    def given() -> Iterator[str]:
        nonlocal begun
        for line in lines:
            begun += 1
            yield line

    path, n = layout.path, len(layout.header)
    reader, rows = _reader(given(), layout.separator, strict=True, **options), []
    try:
        for cells in reader:
            last = layout.first + reader.line_num - 1
            row = Row(cells, last - begun + 1, last)
            begun = 0
            if cells:
                rows.append(row)
            if len(cells) > n:
                return rows, BadInputError(
                    f"{path} cannot be read: the row in line {row.line} has {len(cells)} columns and the header {n}; "
                    f"put texts that contain {layout.marks} in double quotes."
                )
    except csv.Error as error:
        line = layout.first + reader.line_num - begun
        if "limit" in str(error):
            return rows, BadInputError(
                f"{path} cannot be read as {layout.kind}: the row that begins in line {line} has a text of more than "
                f"{_LONGEST_FIELD:,} characters; a double quote in it may never be closed, or else shorten it."
            )
        what = "never closed" if "end of data" in str(error) else "closed in the middle of the text"
        return rows, BadInputError(
            f"{path} cannot be read as {layout.kind}: the row that begins in line {line} has a double quote that is "
            f"{what}; put texts that contain {layout.marks} or double quotes in double quotes, and write each one "
            "inside them twice."
        )
    return rows, None


def _rows_of_lines(layout: _Layout, lines: list[str]) -> list[Row]:
    """Each line as a row: unquoted where its quotes add up, else as it stands."""
    rows, n = [], len(layout.header)
    for number, line in enumerate(lines, layout.first):
        text = line.rstrip("\r\n")
        if not text:
            continue
        try:
            cells = next(_reader([text], layout.separator, strict=True))
        except csv.Error:
            cells = []
        if not layout.required <= len(cells) <= n:
            cells = text.split(layout.separator)
        rows.append(Row(cells + [""] * (n - len(cells)), number, number))
    return rows
