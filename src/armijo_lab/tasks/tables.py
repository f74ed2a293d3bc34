"""Tables: a user's own texts and labels, from CSV, TSV, JSON lines, Parquet (through `datasets`) and Excel.

Nothing about a cell is guessed. CSV and TSV are read as text throughout: left to themselves the readers turn
`123` into a number, `NA` and an empty cell into "missing", and whole numbers beside a missing one into `1.0`.
"""

import bz2
import contextlib
import glob
import gzip
import io
import json
import logging
import lzma
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armijo_lab.errors import BadInputError
from armijo_lab.tasks import Split, TaskData, labels, separated

logger = logging.getLogger("armijo")

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_JSON = (".jsonl", ".json")
_ENDINGS = (*_SEPARATORS, *_JSON, ".parquet", ".xlsx")
_OTHER_KINDS = {
    b"\x1f\x8b": "packed by gzip; let its name end with .gz as well",
    b"BZh91AY&SY": "packed by bzip2; let its name end with .bz2 as well",
    b"\xfd7zXZ\0": "packed by xz; let its name end with .xz as well",
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or let its name end with .xlsx",
    b"PAR1\x15": "a Parquet file; let its name end with .parquet",
    b"\xd0\xcf\x11\xe0": "an Excel workbook of the old kind; save it as .xlsx or .csv",
}
"""What a file that is no text is, by its first bytes."""
_TITLE_ROWS = 20


class MissingColumnError(BadInputError):
    """A file lacks a column that was asked for.

    Attributes:
        column: The column.
    """

    def __init__(self, column: str, sentence: str) -> None:
        super().__init__(sentence)
        self.column = column


@dataclass(frozen=True)
class _Table:
    """The wanted columns of a file, cell by cell as the file has them.

    Attributes:
        columns: The cells of each.
        unit: What the file's rows are counted in, as in `line`.
        numbers: Of each row the line or the row of the file where it begins, from 1.
    """

    columns: dict[str, list[Any]]
    unit: str
    numbers: Sequence[int]

    def place(self, index: int) -> str:
        """Where a row stands, as in `line 7`."""
        return f"{self.unit} {self.numbers[index]}"


def load(
    train: Path,
    evaluation: Path | None,
    *,
    text: str,
    text_pair: str | None,
    label: str,
    holdout: float = 0.2,
    seed: int = 0,
) -> TaskData:
    """Reads a classification task from one or two files.

    Labels may be strings, whole numbers or booleans. Each becomes a string without white space around it (a
    boolean `True` or `False`). Where all are whole numbers, `1.0` becomes `1`, unless zeros stand in front of one;
    classes are ordered as numbers if all of them are whole numbers, else alphabetically.

    Args:
        train: A file whose name ends with .csv, .tsv, .jsonl, .json (JSON lines), .parquet or .xlsx (the first
            sheet). CSV and TSV have one header line; they may be packed (.csv.gz, .bz2, .xz), separated by semicolons
            or `|`, and in UTF-16 or Windows-1252. JSON lines are in UTF-8 and may be packed.
        evaluation: The held-out rows in a file of any of these kinds with the same columns, or `None`.
        text: The column of the texts.
        text_pair: The column of the second texts, or `None`.
        label: The column of the labels.
        holdout: Without `evaluation`, the fraction of each class's rows to hold out, in (0, 1). A class of two
            rows or more has at least one row on either side; that of one row is trained on.
        seed: Decides which rows are held out.

    Returns:
        The task, rows in the files' order, judged by accuracy.

    Raises:
        BadInputError: A file that is not there, is empty, is broken or of an unknown kind; a missing column;
            a text that is not text; a missing label; one class only; a held-out label unknown to training.
    """
    if not 0 < holdout < 1:
        raise BadInputError(f"The fraction of rows to hold out must lie between 0 and 1, and {holdout} does not.")
    rows, names, _ = _labelled(train, text, text_pair, label)
    classes = labels.ordered(set(names))
    if len(classes) == 1:
        raise BadInputError(f"All rows of {train} have the label {classes[0]!r}; at least two classes are needed.")
    index = {name: i for i, name in enumerate(classes)}
    rows = Split(rows.texts, rows.pairs, tuple(index[name] for name in names))
    provenance: dict[str, str | int | float | None] = {"train": str(train)}
    if evaluation is None:
        rows, held_out = _divided(rows, train, holdout, seed)
        provenance |= {"evaluation": None, "holdout": holdout, "seed": seed}
        source = train.name
    else:
        held_out, names, place = _labelled(evaluation, text, text_pair, label)
        unknown = next((row for row, name in enumerate(names) if name not in index), None)
        if unknown is not None:
            raise BadInputError(
                f"{evaluation} has the label {names[unknown]!r} ({place(unknown)}), which {train} does not have; its "
                f"labels are {_listed(classes)}."
            )
        held_out = Split(held_out.texts, held_out.pairs, tuple(index[name] for name in names))
        provenance["evaluation"] = str(evaluation)
        source = f"{train.name} and {evaluation.name}"
    return TaskData(
        name=train.stem,
        description=f"The user's own rows from {source}: {label} to be predicted from {text}"
        + (f" and {text_pair}." if text_pair is not None else "."),
        labels=classes,
        train=rows,
        evaluation=held_out,
        metrics=("accuracy",),
        provenance=provenance,
    )


def read_texts(
    path: Path, *, text: str, text_pair: str | None, options: tuple[str, str] = ("text", "text_pair")
) -> Split:
    """Reads texts to predict for: as `load` reads them, without labels (`targets` is empty).

    Args:
        path: As for `load`.
        text: The column of the texts.
        text_pair: The column of the second texts, or `None`.
        options: What the user names these two columns with; a sentence on a missing column says it.

    Raises:
        BadInputError: As `load`, labels aside.
    """
    try:
        table = _read(path, [text] if text_pair is None else [text, text_pair])
    except MissingColumnError as error:
        option = options[0] if error.column == text else options[1]
        raise BadInputError(f"{str(error).removesuffix('.')}; name it with {option}.") from error
    pairs = None if text_pair is None else _texts(path, text_pair, table)
    return Split(_texts(path, text, table), pairs, ())


def columns(path: Path) -> str | None:
    """The names of a file's columns, for a sentence; `None` where they cannot be read at a glance."""
    names: list[str] = []
    try:
        ending = _ending(path)
        if ending in _SEPARATORS:
            names = separated.names_of(_read_text(path), _SEPARATORS[ending])
        elif ending in _JSON:
            with io.StringIO(_unpacked(path).decode("utf-8-sig")) as stream:
                names = list(json.loads(stream.readline()))
        elif ending == ".xlsx":
            names = next(iter(_sheets(path).values()))[0][1]
        elif ending == ".parquet":
            from pyarrow import parquet

            names = parquet.read_schema(path).names
    except Exception:  # whatever is wrong with the file is said when it is read
        return None
    return _listed(names) or None


def _labelled(
    path: Path, text: str, text_pair: str | None, label: str
) -> tuple[Split, tuple[str, ...], Callable[[int], str]]:
    """The file's texts, row by row its labels' names, and where a row stands."""
    table = _read(path, [text, label] if text_pair is None else [text, text_pair, label])
    pairs = None if text_pair is None else _texts(path, text_pair, table)
    names = labels.names(table.columns[label], lambda row: f"The {label} in {table.place(row)} of {path}")
    return Split(_texts(path, text, table), pairs, ()), names, table.place


def _texts(path: Path, column: str, table: _Table) -> tuple[str, ...]:
    for row, value in enumerate(table.columns[column]):
        if isinstance(value, str) and value.strip():
            continue
        shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:60] + "..."
        found = "missing" if value is None else "empty" if isinstance(value, str) else f"no text but {shown}"
        raise BadInputError(f"The {column} in {table.place(row)} of {path} is {found}; every row needs a text there.")
    return tuple(table.columns[column])


def _divided(rows: Split, path: Path, holdout: float, seed: int) -> tuple[Split, Split]:
    """The rows to train on and those held out, each in the file's order, every class on both sides."""
    generator = random.Random(seed)
    held_out: set[int] = set()
    for target in sorted(set(rows.targets)):
        members = [i for i, t in enumerate(rows.targets) if t == target]
        if len(members) > 1:
            count = min(max(round(holdout * len(members)), 1), len(members) - 1)
            held_out.update(generator.sample(members, count))
    if not held_out:
        raise BadInputError(
            f"No row of {path} can be held out, because each of its classes has one row only; give --eval."
        )

    def taken(wanted: bool) -> Split:
        kept = [i for i in range(len(rows)) if (i in held_out) is wanted]
        pairs = None if rows.pairs is None else tuple(rows.pairs[i] for i in kept)
        return Split(tuple(rows.texts[i] for i in kept), pairs, tuple(rows.targets[i] for i in kept))

    return taken(False), taken(True)


def _ending(path: Path) -> str:
    """The ending that says the kind of a file: of a packed CSV, TSV or JSON file the one before .gz, .bz2 or .xz."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = len(suffixes) == 2 and suffixes[1] in _PACKED and suffixes[0] in (*_SEPARATORS, *_JSON)
    return suffixes[0] if packed else path.suffix.lower()


def _read(path: Path, wanted: list[str]) -> _Table:
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; a file ending with {_listed(_ENDINGS)} is needed.")
    if not path.is_file():
        raise BadInputError(f"There is no file {path}.")
    ending = _ending(path)
    if ending not in _ENDINGS:
        raise BadInputError(f"The kind of {path} is not known by its ending; known are {_listed(_ENDINGS)}.")
    if path.stat().st_size == 0:
        raise BadInputError(f"{path} is empty.")
    try:
        if ending in _SEPARATORS:
            table = _separated(path, _SEPARATORS[ending], wanted)
        elif ending in _JSON:
            table = _json_lines(path, wanted)
        elif ending == ".xlsx":
            table = _excel(path, wanted)
        else:
            table = _parquet(path, wanted)
    except BadInputError:
        raise
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BadInputError(
            f"{path} cannot be read, because it is not text in UTF-8 ({error.reason} in line {line}); save it as UTF-8."
        ) from error
    except ImportError as error:
        raise BadInputError(
            "Reading tables needs the library datasets, which is not installed; install it with: "
            "pip install 'armijo[lab]'."
        ) from error
    # What a broken file raises is not to be foreseen (the readers of three libraries have a say in it), and
    # whatever it is, the file is to blame: the cause of datasets' own exception tells why.
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:200].split(". ")[0].rstrip(".") or "it has no rows"
        raise BadInputError(f"{path} cannot be read as {ending[1:]}: {reason}.") from error
    if not table.numbers:
        raise BadInputError(f"{path} has no rows.")
    return table


def _separated(path: Path, usual: str, wanted: list[str]) -> _Table:
    def check(names: list[str]) -> None:
        _check_columns(path, names, wanted)

    header, rows = separated.read(path, _read_text(path), usual, wanted, check)
    columns = {name: [row.cells[header.index(name)] for row in rows] for name in wanted}
    return _Table(columns, "line", [row.line for row in rows])


def _read_text(path: Path) -> str:
    """The whole file, unpacked, in UTF-8, in UTF-16 with its mark, or else in Windows-1252, which is then said."""
    content = _unpacked(path)
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig" or b"\0" in content or _mostly_utf8(content):
            raise
        text = content.decode("cp1252")
        logger.warning(
            "%s is not in UTF-8; it was read as Windows-1252. If letters look wrong, save it as UTF-8.", path
        )
    if (nul := text.find("\0")) >= 0:
        utf_16 = 5 * text.count("\0") > len(text)
        why = "it looks like UTF-16 without its mark; save it as UTF-8" if utf_16 else "remove it, or save it as UTF-8"
        raise BadInputError(
            f"{path} cannot be read, because line {text.count(chr(10), 0, nul) + 1} has a NUL character; {why}."
        )
    if encoding == "utf-16" and "\n" not in text:
        raise BadInputError(f"{path} cannot be read, because it is not text.")
    return text


def _mostly_utf8(content: bytes) -> bool:
    """Whether bytes that are not UTF-8 stand among letters that are: then a guess would spoil all those."""
    valid = content.decode("utf-8", "ignore")
    letters = sum(not character.isascii() for character in valid)
    return letters > 0 and 10 * letters >= len(content) - len(valid.encode())


def _unpacked(path: Path) -> bytes:
    opener = _PACKED.get(path.suffix.lower())
    if opener is None:
        content = path.read_bytes()
    else:
        with opener(path) as stream:
            content = stream.read()
    for beginning, kind in _OTHER_KINDS.items():
        if content.startswith(beginning):
            raise BadInputError(f"{path} cannot be read as text, because it is {kind}.")
    return content


def _excel(path: Path, wanted: list[str]) -> _Table:
    (name, rows), *others = _sheets(path).items()
    if not rows:
        raise BadInputError(f"{path} has no rows in its first sheet.")
    header = rows[0][1]
    if not set(wanted) <= set(header):
        below = next((number for number, cells in rows[:_TITLE_ROWS] if set(wanted) <= set(cells)), None)
        if below is not None:
            raise BadInputError(f"{path} has its columns in row {below}, below other rows; remove the rows above it.")
        for other, cells in others:
            if cells and set(wanted) <= set(cells[0][1]):
                raise BadInputError(
                    f"{path} has its columns in the sheet {other!r}, and the first sheet, {name!r}, is read; move "
                    "that one to the front."
                )
    _check_columns(path, header, wanted)
    for column in wanted:
        place = header.index(column)
        for number, cells in rows[1:]:
            if cells == header:
                raise BadInputError(f"{path} has its header once more in row {number}; remove that row.")
            if cells[place].startswith("#") and cells[place] in _EXCEL_ERRORS:
                raise BadInputError(
                    f"The {column} in row {number} of {path} is the error {cells[place]} of Excel; correct the cell."
                )
            if not cells[place] and _is_formula(path, number, place):
                raise BadInputError(
                    f"The {column} in row {number} of {path} is a formula without a value, because the program that "
                    "wrote it did not compute it; open the file in Excel or LibreOffice and save it there."
                )
            if not cells[place]:
                break  # a sentence on the empty cell follows, and to look for a formula reads the file again
    columns = {name: [cells[header.index(name)] for _, cells in rows[1:]] for name in wanted}
    return _Table(columns, "row", [number for number, _ in rows[1:]])


_EXCEL_ERRORS = ("#N/A", "#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!")


def _workbook(path: Path, **options: bool) -> Any:
    try:
        import openpyxl
    except ImportError as error:
        raise BadInputError(
            f"Reading {path} needs the library openpyxl, which is not installed: pip install openpyxl; or save it as "
            ".csv."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it leaves out (styles, validation) is no text
        return openpyxl.load_workbook(path, read_only=True, **options)


def _sheets(path: Path) -> dict[str, list[tuple[int, list[str]]]]:
    """Of each sheet the rows that are not blank, with their numbers, as wide as the widest; cells as text."""
    workbook = _workbook(path, data_only=True)
    found = {}
    for sheet in workbook.worksheets:
        sheet.reset_dimensions()  # some programs write wrong ones
        rows = [
            (number, [_excel_text(value) for value in row])
            for number, row in enumerate(sheet.iter_rows(values_only=True), 1)
        ]
        rows = [(number, cells) for number, cells in rows if any(cells)]
        width = max((len(cells) for _, cells in rows), default=0)
        found[sheet.title] = [(number, cells + [""] * (width - len(cells))) for number, cells in rows]
    workbook.close()
    return found


def _excel_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def _is_formula(path: Path, row: int, column: int) -> bool:
    workbook = _workbook(path, data_only=False)
    sheet = workbook.worksheets[0]
    sheet.reset_dimensions()
    cells = next(sheet.iter_rows(min_row=row, max_row=row), ())
    found = column < len(cells) and cells[column].data_type == "f"
    workbook.close()
    return found


def _json_lines(path: Path, wanted: list[str]) -> _Table:
    # Not by datasets' own reader: it makes dates of texts that look like dates, makes 1 of the label "01" beside a
    # number, and a line `null` ends the whole process (datasets 5.2 with pyarrow 26).
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    with io.StringIO(_unpacked(path).decode("utf-8-sig")) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                if not rows and line.lstrip().startswith("["):
                    raise BadInputError(
                        f"{path} cannot be read as JSON lines: it begins with a JSON list (line {number}); write one "
                        "object a line, without the brackets and commas around them."
                    )
                row = json.loads(line, object_pairs_hook=_object)
                if not isinstance(row, dict):
                    raise ValueError("it is no JSON object; write one object a line")
                # Half a surrogate pair can be escaped in JSON, and no tokenizer takes it.
                "".join(cell for cell in map(row.get, wanted) if isinstance(cell, str)).encode()
            except json.JSONDecodeError as error:
                place = f"line {number}, column {error.colno}"
                raise BadInputError(
                    f"{path} cannot be read as JSON lines: {error.msg} ({place}); write one object a line."
                ) from error
            except UnicodeError:
                raise BadInputError(
                    f"{path} cannot be read as JSON lines: line {number} has half of a surrogate pair, which stands "
                    "for no character; leave it out."
                ) from None
            except ValueError as error:
                raise BadInputError(f"{path} cannot be read as JSON lines: {error} (line {number}).") from error
            rows.append(row)
            numbers.append(number)
    if rows:
        _check_columns(path, list(dict.fromkeys(name for row in rows for name in row)), wanted)
    return _Table({name: [row.get(name) for row in rows] for name in wanted}, "line", numbers)


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which no key may be lost."""
    found = dict(items)
    if len(found) < len(items):
        raise ValueError(f"a name stands twice among {', '.join(name for name, _ in items)}")
    return found


def _parquet(path: Path, wanted: list[str]) -> _Table:
    from pyarrow import parquet

    _check_columns(path, parquet.read_schema(path).names, wanted)
    columns = _through_datasets("parquet", path, wanted, columns=list(dict.fromkeys(wanted)))
    return _Table(columns, "row", range(1, len(columns[wanted[0]]) + 1))


def _through_datasets(kind: str, path: Path, wanted: list[str], **options: Any) -> dict[str, list[Any]]:
    """Reads the file with one of `datasets`' own readers and leaves nothing on disk."""
    import datasets

    with tempfile.TemporaryDirectory(prefix="armijo-") as cache, _quiet(datasets):
        # The reader takes its argument for a pattern, and would miss a file called a[1].csv.
        rows = datasets.load_dataset(
            kind,
            data_files=glob.escape(str(path.absolute())),
            split="train",
            cache_dir=cache,
            keep_in_memory=True,
            **options,
        )
        _check_columns(path, rows.column_names, wanted)
        return {name: rows[name][:] for name in wanted}


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Silences `datasets`: what it has to say about a broken file is said in our own sentence."""
    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def _check_columns(path: Path, names: list[str], wanted: list[str]) -> None:
    repeated = next((name for name in wanted if names.count(name) > 1), None)
    if repeated is not None:
        raise BadInputError(
            f"{path} has more than one column {repeated!r}; its columns are {_listed(names)}. Rename one of them."
        )
    missing = next((name for name in wanted if name not in names), None)
    if missing is not None:
        # Quoted where blanks at an end, or a character without width, would not be seen.
        shown = [each if each == each.strip() and each.isprintable() else repr(each) for each in names if each]
        raise MissingColumnError(
            missing, f"{path} has no column {missing!r}; its columns are {_listed(shown) or 'without names'}."
        )


def _listed(names: list[str] | tuple[str, ...], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
