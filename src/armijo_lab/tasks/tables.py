"""Tables: a user's own texts and labels, from CSV, TSV, JSON lines, Parquet (through `datasets`) and Excel.

Nothing about a cell is guessed. CSV and TSV are read as text throughout: left to themselves the readers turn
`123` into a number, `NA` and an empty cell into "missing", and whole numbers beside a missing one into `1.0`.
"""

import bz2
import contextlib
import csv
import glob
import gzip
import io
import json
import logging
import lzma
import math
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from armijo_lab.errors import BadInputError
from armijo_lab.tasks import Split, TaskData

logger = logging.getLogger("armijo")

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_OTHER_SEPARATORS = (",", "\t", ";", "|")
_PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_JSON = (".jsonl", ".json")
_LONGEST_FIELD = 1 << 24
_ENDINGS = (*_SEPARATORS, *_JSON, ".parquet", ".xlsx")


class MissingColumnError(BadInputError):
    """A file lacks a column that was asked for.

    Attributes:
        column: The column.
    """

    def __init__(self, column: str, sentence: str) -> None:
        super().__init__(sentence)
        self.column = column


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
    boolean `True` or `False`), and `1.0` of a numeric column becomes `1`; classes are ordered as numbers if all of
    them are whole numbers, else alphabetically.

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
    rows, names = _labelled(train, text, text_pair, label)
    labels = _ordered(set(names))
    if len(labels) == 1:
        raise BadInputError(f"All rows of {train} have the label {labels[0]!r}; at least two classes are needed.")
    index = {name: i for i, name in enumerate(labels)}
    rows = Split(rows.texts, rows.pairs, tuple(index[name] for name in names))
    provenance: dict[str, str | int | float | None] = {"train": str(train)}
    if evaluation is None:
        rows, held_out = _divided(rows, train, holdout, seed)
        provenance |= {"evaluation": None, "holdout": holdout, "seed": seed}
        source = train.name
    else:
        held_out, names = _labelled(evaluation, text, text_pair, label)
        unknown = _ordered(set(names) - set(labels))
        if unknown:
            raise BadInputError(
                f"{evaluation} has the label {unknown[0]!r} (row {names.index(unknown[0]) + 1}), which {train} does "
                f"not have; its labels are {_listed(labels)}."
            )
        held_out = Split(held_out.texts, held_out.pairs, tuple(index[name] for name in names))
        provenance["evaluation"] = str(evaluation)
        source = f"{train.name} and {evaluation.name}"
    return TaskData(
        name=train.stem,
        description=f"The user's own rows from {source}: {label} to be predicted from {text}"
        + (f" and {text_pair}." if text_pair is not None else "."),
        labels=labels,
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
        columns = _read(path, [text] if text_pair is None else [text, text_pair])
    except MissingColumnError as error:
        option = options[0] if error.column == text else options[1]
        raise BadInputError(f"{str(error).removesuffix('.')}; name it with {option}.") from error
    pairs = None if text_pair is None else _texts(path, text_pair, columns[text_pair])
    return Split(_texts(path, text, columns[text]), pairs, ())


def columns(path: Path) -> str | None:
    """The names of a file's columns, for a sentence; `None` where they cannot be read at a glance."""
    names: list[str] = []
    try:
        ending = _ending(path)
        if ending in _SEPARATORS:
            names = next(_reader(filter(str.strip, _lines(_read_text(path))), _SEPARATORS[ending]), [])
        elif ending in _JSON:
            with io.StringIO(_unpacked(path).decode("utf-8-sig")) as stream:
                names = list(json.loads(stream.readline()))
        elif ending == ".xlsx":
            import pandas

            names = pandas.read_excel(path, nrows=0).columns.tolist()
        elif ending == ".parquet":
            from pyarrow import parquet

            names = parquet.read_schema(path).names
    except Exception:  # whatever is wrong with the file is said when it is read
        return None
    return _listed(names) or None


def _labelled(path: Path, text: str, text_pair: str | None, label: str) -> tuple[Split, tuple[str, ...]]:
    """The file's texts and, row by row, its labels' names."""
    columns = _read(path, [text, label] if text_pair is None else [text, text_pair, label])
    pairs = None if text_pair is None else _texts(path, text_pair, columns[text_pair])
    names = _labels(path, label, columns[label])
    return Split(_texts(path, text, columns[text]), pairs, ()), names


def _texts(path: Path, column: str, values: list[Any]) -> tuple[str, ...]:
    for row, value in enumerate(values, 1):
        if not isinstance(value, str):
            found = "missing" if value is None else f"no text but {_excerpt(value)}"
            raise BadInputError(f"The {column} in row {row} of {path} is {found}; every row needs a text there.")
        if not value.strip():
            raise BadInputError(f"The {column} in row {row} of {path} is empty; every row needs a text there.")
    return tuple(values)


def _labels(path: Path, column: str, values: list[Any]) -> tuple[str, ...]:
    """The labels as strings: alike for all kinds of files, where the same number may be 1, 1.0 or "1.0"."""
    names = [_label(path, column, row, value) for row, value in enumerate(values, 1)]
    numbers = [_number(name) for name in names]
    if all(number is not None for number in numbers):
        fraction = next((row for row, number in enumerate(numbers, 1) if number is not None and number % 1), None)
        if fraction is not None:
            raise BadInputError(
                f"The {column} in row {fraction} of {path} is {names[fraction - 1]}, and all others are numbers too: "
                "scores, of which each would be a class. Regression is not offered; round the numbers to a few "
                "classes, or name the classes with words."
            )
        if any("." in name for name in names):
            return tuple(str(int(number)) for number in numbers if number is not None)
    return tuple(names)


def _number(name: str) -> float | None:
    try:
        number = float(name) if name.isascii() and "_" not in name else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _label(path: Path, column: str, row: int, value: Any) -> str:
    # A whole number stands as 1.0 where the reader had to make room for a missing one beside it.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise BadInputError(f"The {column} in row {row} of {path} is missing; every row needs a label.")
    if not isinstance(value, str | int | float):
        raise BadInputError(
            f"The {column} in row {row} of {path} is {_excerpt(value)}; a label is a string, a whole number or a "
            "boolean."
        )
    return str(value).strip()


def _ordered(labels: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(labels))


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


def _read(path: Path, wanted: list[str]) -> dict[str, list[Any]]:
    """The wanted columns of a file, cell by cell as the file has them."""
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
            columns = _separated(path, _SEPARATORS[ending], wanted)
        elif ending in _JSON:
            columns = _json_lines(path, wanted)
        elif ending == ".xlsx":
            columns = _excel(path, wanted)
        else:
            columns = _parquet(path, wanted)
    except BadInputError:
        raise
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{path} cannot be read, because it is not text in UTF-8 ({error.reason}); save it as UTF-8."
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
    if not columns[wanted[0]]:
        raise BadInputError(f"{path} has no rows.")
    return columns


def _separated(path: Path, usual: str, wanted: list[str]) -> dict[str, list[Any]]:
    lines = _lines(_read_text(path))
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise BadInputError(f"{path} is empty.")
    separator, header = _header(path, lines[first], usual, wanted)
    _check_columns(path, header, wanted)
    rows = _rows(path, lines[first + 1 :], first + 2, separator, len(header))
    return {name: [row[header.index(name)] for row in rows] for name in wanted}


def _lines(text: str) -> list[str]:
    """The lines of a text with their ends. Not by `splitlines`, to which a form feed and others are ends too."""
    return list(io.StringIO(text, newline=""))


def _read_text(path: Path) -> str:
    """The whole file, unpacked, in UTF-8, in UTF-16 with its mark, or else in Windows-1252, which is then said."""
    content = _unpacked(path)
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig" or b"\0" in content:
            raise
        text = content.decode("cp1252")
        logger.warning(
            "%s is not in UTF-8; it was read as Windows-1252. If letters look wrong, save it as UTF-8.", path
        )
    if "\0" in text or (encoding == "utf-16" and "\n" not in text):
        raise BadInputError(f"{path} cannot be read, because it is not text.")
    return text


def _unpacked(path: Path) -> bytes:
    opener = _PACKED.get(path.suffix.lower())
    if opener is None:
        return path.read_bytes()
    with opener(path) as stream:
        return stream.read()


def _header(path: Path, line: str, usual: str, wanted: list[str]) -> tuple[str, list[str]]:
    """The separator and the names. Where the usual one does not give the wanted names, another that does is taken."""
    for separator in (usual, *(other for other in _OTHER_SEPARATORS if other != usual)):
        names = next(_reader([line], separator), [])
        if len(names) > 1 and set(wanted) <= set(names):
            return separator, names
    return usual, next(_reader([line], usual), [])


def _reader(lines: Iterable[str], separator: str, *, strict: bool = False) -> Any:
    return csv.reader(lines, delimiter=separator, strict=strict)


def _rows(path: Path, lines: list[str], first: int, separator: str, n: int) -> list[list[str]]:
    """The rows below the header, each with n fields.

    Read strictly, because a lenient reader takes a text that begins with a quote for one that goes on to the next
    quote, and swallows the rows between. Where the quotes do not add up but every line has n fields as it stands, each
    line is a row. In TSV that reading comes first: there a quote is mostly just a character of the text.

    Raises:
        BadInputError: a row has more than n fields, or its quotes do not add up, with the number of its line.
    """
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        one_each = all(line.rstrip("\r\n").count(separator) == n - 1 for line in lines if line.strip("\r\n"))
        found, error = _strict_rows(path, lines, first, separator, n)
        n_lines = sum(bool(line.strip("\r\n")) for line in lines)
        if error is None and not (separator == "\t" and one_each and len(found) < n_lines):
            return [row + [""] * (n - len(row)) for row in found]
        if one_each:
            return _rows_of_lines(lines, separator, n)
        assert error is not None
        raise error
    finally:
        csv.field_size_limit(limit)


def _strict_rows(
    path: Path, lines: list[str], first: int, separator: str, n: int
) -> tuple[list[list[str]], BadInputError | None]:
    kind = path.suffix.lower()[1:] if path.suffix.lower() not in _PACKED else path.suffixes[-2].lower()[1:]
    marks = {"\t": "tabs", ",": "commas", ";": "semicolons"}.get(separator, repr(separator))
    begun: list[str] = []  # the lines of the row that is read

    def given() -> Iterator[str]:
        for line in lines:
            begun.append(line)
            yield line

    reader, rows = _reader(given(), separator, strict=True), []
    line = first
    try:
        for row in reader:
            line = first + reader.line_num - len(begun)
            if len(row) > n:
                return rows, BadInputError(
                    f"{path} cannot be read: the row in line {line} has {len(row)} columns and the header {n}; put "
                    f"texts that contain {marks} in double quotes."
                )
            if row:
                rows.append(row)
            begun.clear()
    except csv.Error as error:
        line = first + reader.line_num - len(begun)
        what = "never closed" if "end of data" in str(error) else "closed in the middle of the text"
        return rows, BadInputError(
            f"{path} cannot be read as {kind}: the row that begins in line {line} has a double quote that is {what}; "
            f"put texts that contain {marks} or double quotes in double quotes, and write each one inside them twice."
        )
    return rows, None


def _rows_of_lines(lines: list[str], separator: str, n: int) -> list[list[str]]:
    """Each line as a row: unquoted where its quotes add up, else as it stands."""
    rows = []
    for line in lines:
        text = line.rstrip("\r\n")
        if not text:
            continue
        row = next(_reader([text], separator))
        rows.append(row if len(row) == n and "\n" not in "".join(row) else text.split(separator))
    return rows


def _excel(path: Path, wanted: list[str]) -> dict[str, list[Any]]:
    try:
        import openpyxl  # noqa: F401
        import pandas
    except ImportError as error:
        raise BadInputError(
            f"Reading {path} needs the library openpyxl, which is not installed: pip install openpyxl; or save it as "
            ".csv."
        ) from error
    sheet = pandas.read_excel(path, header=None, dtype=str, na_filter=False)
    if not len(sheet):
        raise BadInputError(f"{path} has no rows in its first sheet.")
    header, *rows = sheet.astype(str).to_numpy().tolist()
    _check_columns(path, header, wanted)
    return {name: [row[header.index(name)] for row in rows] for name in wanted}


def _json_lines(path: Path, wanted: list[str]) -> dict[str, list[Any]]:
    # Not by datasets' own reader: it makes dates of texts that look like dates, makes 1 of the label "01" beside a
    # number, and a line `null` ends the whole process (datasets 5.2 with pyarrow 26).
    rows: list[dict[str, Any]] = []
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
    if rows:
        _check_columns(path, list(dict.fromkeys(name for row in rows for name in row)), wanted)
    return {name: [row.get(name) for row in rows] for name in wanted}


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which no key may be lost."""
    found = dict(items)
    if len(found) < len(items):
        raise ValueError(f"a name stands twice among {', '.join(name for name, _ in items)}")
    return found


def _parquet(path: Path, wanted: list[str]) -> dict[str, list[Any]]:
    from pyarrow import parquet

    _check_columns(path, parquet.read_schema(path).names, wanted)
    return _through_datasets("parquet", path, wanted, columns=list(dict.fromkeys(wanted)))


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
        # Quoted where blanks at an end would not be seen.
        shown = [name if (name := str(each)) == name.strip() != "" else repr(name) for each in names if str(each)]
        raise MissingColumnError(
            missing, f"{path} has no column {missing!r}; its columns are {_listed(shown) or 'without names'}."
        )


def _listed(names: list[str] | tuple[str, ...], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _excerpt(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:60] + "..."
