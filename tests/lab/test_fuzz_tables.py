"""Generated files against the reader: a task or one sentence, whatever the bytes."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armijo_lab.cli import main
from armijo_lab.errors import BadInputError
from armijo_lab.results.run_folder import read_run
from armijo_lab.tasks import TaskData, tables
from lab import tiny
from processes import forked

CELLS: tuple[Callable[[random.Random], Any], ...] = (
    lambda draw: "".join(chr(draw.randrange(32, 0x2FF)) for _ in range(draw.randrange(0, 40))),
    lambda draw: "".join(draw.choice("\",;\t\n\r\\'") for _ in range(draw.randrange(1, 8))),
    lambda draw: draw.choice(["", " ", "NA", "null", "None", "nan", "1", "1.0", "01", "1e5", "True", "2020-01-01"]),
    lambda draw: draw.choice(["\x00", "\ufeff", "\u2028", "\U0001f600", "e\u0301", "\x1b[31m", "\x85"]),
    lambda draw: draw.choice([None, True, False, 0, 1, -3, 2.5, float("nan"), float("inf"), 10**30]),
    lambda draw: draw.choice([[], {}, [1], {"a": 1}, ["x", "y"]]),
)


def _cell(draw: random.Random, odd: float) -> Any:
    return draw.choice(CELLS)(draw) if draw.random() < odd else "a good film number " + str(draw.randrange(9))


def _rows(draw: random.Random) -> list[dict[str, Any]]:
    odd = draw.choice([0.0, 0.0, 0.0, 0.05, 0.3])
    sound = [["good", "bad"], ["1", "2", "3"], [1, 2], [True, False]]
    labels = draw.choice([*sound * 4, ["one"], ["good", ""]])
    return [
        {"text": _cell(draw, odd), "label": draw.choice(labels) if draw.random() > odd / 4 else _cell(draw, 1.0)}
        for _ in range(draw.choice([0, 1, 5, 12, 12, 20, 20]))
    ]


def _separated(draw: random.Random, rows: list[dict[str, Any]], mark: str) -> bytes:
    def field(value: Any) -> str:
        shown = "" if value is None else str(value)
        if quoting or (any(character in shown for character in ',\t\n\r"') and draw.random() < 0.9):
            return '"' + shown.replace('"', '""') + '"'
        return shown if draw.random() < 0.998 else '"' + shown

    quoting = draw.random() < 0.3

    lines = [mark.join(draw.choice([["text", "label"]] * 18 + [["text"], ["text", "text"]]))]
    for row in rows:
        cells = [field(row["text"]), field(row["label"])]
        if draw.random() < 0.003:
            cells.append("more")
        lines.append(mark.join(cells))
    end = draw.choice(["\n", "\n", "\r\n", "\r"])
    return (end.join(lines) + draw.choice(["", end, end * 3])).encode("utf-8", "surrogatepass")


def _json_lines(draw: random.Random, rows: list[dict[str, Any]]) -> bytes:
    lines = [json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in rows]
    if draw.random() < 0.2:
        odd = ["null", "[]", "{", "3", '{"text": 1, "text": 2}', "", '{"text": "\\ud800", "label": "good"}', "NaN"]
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(odd))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _parquet(draw: random.Random, rows: list[dict[str, Any]]) -> bytes:
    import io

    import pyarrow
    from pyarrow import parquet

    def column(name: str) -> Any:
        values = [row[name] for row in rows]
        try:
            return pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError):
            return pyarrow.array([None if value is None else str(value) for value in values])

    file = io.BytesIO()
    names = draw.choice([["text", "label"]] * 8 + [["text"], ["label", "text", "more"]])
    table = pyarrow.table({name: column(name if name != "more" else "text") for name in names})
    parquet.write_table(table, file)
    return file.getvalue()


def _damaged(draw: random.Random, data: bytes) -> bytes:
    """Now and then cut short, with other bytes in it, doubled, or of another encoding."""
    kind = draw.random()
    if kind < 0.75 or not data:
        return data
    if kind < 0.82:
        return data[: draw.randrange(len(data))]
    if kind < 0.92:
        spoilt = bytearray(data)
        for _ in range(draw.randrange(1, 6)):
            spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
        return bytes(spoilt)
    if kind < 0.95:
        return data * 2
    if kind < 0.98:
        return data.decode("utf-8", "replace").encode(draw.choice(["utf-16", "latin-1"]), "replace")
    return draw.randbytes(draw.randrange(200))


def write(seed: int, folder: Path) -> Path:
    """The generated file of a seed."""
    draw = random.Random(seed)
    ending = (".csv", ".tsv", ".jsonl", ".parquet")[seed % 4]
    rows = _rows(draw)
    if ending == ".jsonl":
        data = _json_lines(draw, rows)
    elif ending == ".parquet":
        data = _parquet(draw, rows)
    else:
        data = _separated(draw, rows, "," if ending == ".csv" else "\t")
    path = folder / f"rows-{seed}{ending}"
    path.write_bytes(_damaged(draw, data))
    return path


def read(seed: int, folder: Path) -> str:
    """What became of the file of a seed; anything but a task or one sentence is raised."""
    path = write(seed, folder)
    before = sorted(folder.iterdir())
    try:
        task = tables.load(path, None, text="text", text_pair=None, label="label")
    except BadInputError as error:
        sentence = str(error)
        assert sentence.endswith("."), sentence
        assert "\n" not in sentence, sentence
        assert len(sentence) < 1000, sentence
        found = "refused"
    else:
        assert isinstance(task, TaskData)
        assert len(task.labels) >= 2
        assert len(task.train) > 0 < len(task.evaluation)
        assert all(text.strip() for split in (task.train, task.evaluation) for text in split.texts)
        found = "read"
    assert sorted(folder.iterdir()) == before, "reading leaves nothing behind"
    path.unlink()
    return found


def _through_the_command(seed: int, folder: Path) -> str:
    """The same with the command itself: a trained model, or exit code 2, one sentence and no folder."""
    path, output = write(seed, folder), folder / "run"
    if not (folder / "model").is_dir():
        tiny.save_model(folder / "model")
    arguments = [
        *("finetune", "--model", str(folder / "model"), "--train", str(path), "--text", "text", "--label", "label"),
        *("--epochs", "1", "--max-length", "8", "--device", "cpu", "--output", str(output)),
    ]
    done = forked(main, *arguments)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode == 2:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert not output.exists(), "nothing is written"
    else:
        assert read_run(output).summary["status"] == "completed"
        shutil.rmtree(output)
    path.unlink()
    return "read" if done.returncode == 0 else "refused"


def _run(seeds: range, one: Callable[[int, Path], str], folder: Path, tally: Any, what: str) -> None:
    found: Counter[str] = Counter()
    for seed in seeds:
        try:
            found[one(seed, folder)] += 1
        except Exception as error:
            raise AssertionError(f"the file of seed {seed}") from error
    assert found["read"] > 0 < found["refused"], found
    for kind, number in found.items():
        tally(f"generated files {kind}{what}", number)


def test_generated_files_are_read_or_refused_with_a_sentence(tmp_path: Path, tally: Any) -> None:
    _run(range(200), read, tmp_path, tally, "")


def test_generated_files_through_the_command(tmp_path: Path, tally: Any) -> None:
    _run(range(300, 304), _through_the_command, tmp_path, tally, " through the command")


@pytest.mark.soak
@pytest.mark.parametrize("part", range(20))
def test_ten_thousand_generated_files(tmp_path: Path, part: int, tally: Any) -> None:
    _run(range(1000 + 500 * part, 1500 + 500 * part), read, tmp_path, tally, "")


@pytest.mark.soak
@pytest.mark.parametrize("part", range(5))
def test_fifty_generated_files_through_the_command(tmp_path: Path, part: int, tally: Any) -> None:
    _run(range(20_000 + 10 * part, 20_010 + 10 * part), _through_the_command, tmp_path, tally, " through the command")
