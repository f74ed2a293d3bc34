"""GLUE: nine tasks, from a folder in the official layout or from the hub.

Source: Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding",
ICLR 2019. The official files are tab-separated without quoting (a `"` is text), one row a line.
"""

import csv
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from armijo_lab.errors import BadInputError
from armijo_lab.tasks import Split, TaskData, metrics

if TYPE_CHECKING:
    import datasets

_logger = logging.getLogger(__name__)

_HUB = "nyu-mll/glue"
# The longest field; the csv module's own default refuses some web pages.
_LONGEST_FIELD = 1 << 24


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE, as its files and the hub spell it.

    Attributes:
        description: One sentence on the task.
        folder: The official folder's name.
        text: The file's column that holds the (first) text.
        pair: The file's column that holds the second text, or `None`.
        label: The file's column that holds the label or the score.
        labels: The classes in the official order; `()` for a regression.
        values: What stands in the files' label column, in the order of `labels`.
        metrics: The task's own, the primary one first.
        hub_columns: The hub's names for text and pair.
        columns: The columns of files without a header line; `()` where there is one.
        evaluation: The held-out file's name.
        hub_evaluation: The hub's name for the held-out rows.
        skip_ragged: Pass over rows with a wrong number of fields instead of refusing the file.
    """

    description: str
    folder: str
    text: str
    pair: str | None
    label: str
    labels: tuple[str, ...]
    values: tuple[str, ...]
    metrics: tuple[str, ...]
    hub_columns: tuple[str, ...]
    columns: tuple[str, ...] = ()
    evaluation: str = "dev.tsv"
    hub_evaluation: str = "validation"
    skip_ragged: bool = False


_ENTAILMENT = ("entailment", "not_entailment")

TASKS: dict[str, GlueTask] = {
    "sst2": GlueTask(
        description="SST-2: is a sentence from a film review negative or positive?",
        folder="SST-2",
        text="sentence",
        pair=None,
        label="label",
        labels=("negative", "positive"),
        values=("0", "1"),
        metrics=("accuracy",),
        hub_columns=("sentence",),
    ),
    "mrpc": GlueTask(
        description="MRPC: do two sentences from the news say the same?",
        folder="MRPC",
        text="#1 String",
        pair="#2 String",
        label="Quality",
        labels=("not_equivalent", "equivalent"),
        values=("0", "1"),
        metrics=("accuracy", "f1"),
        hub_columns=("sentence1", "sentence2"),
    ),
    "qnli": GlueTask(
        description="QNLI: does a sentence from Wikipedia answer a question?",
        folder="QNLI",
        text="question",
        pair="sentence",
        label="label",
        labels=_ENTAILMENT,
        values=_ENTAILMENT,
        metrics=("accuracy",),
        hub_columns=("question", "sentence"),
    ),
    "mnli": GlueTask(
        description="MNLI: does a premise entail a hypothesis, contradict it, or neither (matched genres)?",
        folder="MNLI",
        text="sentence1",
        pair="sentence2",
        label="gold_label",
        labels=("entailment", "neutral", "contradiction"),
        values=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        hub_columns=("premise", "hypothesis"),
        evaluation="dev_matched.tsv",
        hub_evaluation="validation_matched",
    ),
    "cola": GlueTask(
        description="CoLA: is a sentence acceptable English?",
        folder="CoLA",
        text="sentence",
        pair=None,
        label="label",
        labels=("unacceptable", "acceptable"),
        values=("0", "1"),
        metrics=("matthews", "accuracy"),
        hub_columns=("sentence",),
        columns=("source", "label", "star", "sentence"),
    ),
    "rte": GlueTask(
        description="RTE: does one text entail another?",
        folder="RTE",
        text="sentence1",
        pair="sentence2",
        label="label",
        labels=_ENTAILMENT,
        values=_ENTAILMENT,
        metrics=("accuracy",),
        hub_columns=("sentence1", "sentence2"),
    ),
    "qqp": GlueTask(
        description="QQP: do two questions from Quora ask the same?",
        folder="QQP",
        text="question1",
        pair="question2",
        label="is_duplicate",
        labels=("not_duplicate", "duplicate"),
        values=("0", "1"),
        metrics=("accuracy", "f1"),
        hub_columns=("question1", "question2"),
        # A few questions of the official files contain line breaks, which tear their rows apart.
        skip_ragged=True,
    ),
    "stsb": GlueTask(
        description="STS-B: how similar are two sentences, from 0 to 5?",
        folder="STS-B",
        text="sentence1",
        pair="sentence2",
        label="score",
        labels=(),
        values=(),
        metrics=("pearson", "spearman"),
        hub_columns=("sentence1", "sentence2"),
    ),
    "wnli": GlueTask(
        description="WNLI: does a sentence entail the same with its pronoun replaced?",
        folder="WNLI",
        text="sentence1",
        pair="sentence2",
        label="label",
        labels=("not_entailment", "entailment"),
        values=("0", "1"),
        metrics=("accuracy",),
        hub_columns=("sentence1", "sentence2"),
    ),
}


def load(task: str, data_dir: Path | None) -> TaskData:
    """Reads a task of GLUE.

    Args:
        task: A key of `TASKS`.
        data_dir: The folder that holds the official folders (`SST-2`, `MRPC`, ...), which needs no other
            library; `None` reads from the hub through `datasets`.

    Returns:
        The task, rows in the files' order, labels in the official order. Metrics whose library is missing are
        left out. `provenance` tells the source, and how many torn rows of QQP's files were passed over.

    Raises:
        BadInputError: An unknown task; a missing folder, file or column; an empty file; a row with a wrong
            number of fields (QQP's are passed over); an unknown label; the hub cannot be reached.
    """
    if task not in TASKS:
        raise BadInputError(f"There is no GLUE task {task}; there are {', '.join(TASKS)}.")
    spec = TASKS[task]
    names = metrics.available(spec.metrics)
    if data_dir is None:
        train, evaluation = _from_hub(task, spec)
        provenance: dict[str, str | int | float | None] = {"source": _HUB}
    else:
        files = find(task, data_dir)
        (train, torn_train), (evaluation, torn_evaluation) = (_from_file(spec, path) for path in files)
        provenance = {"source": str(files[0].parent)}
        if spec.skip_ragged:
            provenance["rows_passed_over"] = torn_train + torn_evaluation
    return TaskData(task, spec.description, spec.labels, train, evaluation, names, provenance)


def find(task: str, data_dir: Path) -> tuple[Path, Path]:
    """The official files of a task, to train on and to evaluate on, without reading them.

    Args:
        task: A key of `TASKS`.
        data_dir: The folder that holds the official folders.

    Raises:
        BadInputError: A folder or a file is missing; the sentence tells which one was looked for.
    """
    spec = TASKS[task]
    if not data_dir.is_dir():
        raise BadInputError(
            f"There is no folder {data_dir}; --data-dir (data_dir= in a study) names the folder that holds GLUE's own "
            f"folders, {spec.folder} among them."
        )
    folder = data_dir / spec.folder
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in data_dir.iterdir() if path.is_dir()))
        raise BadInputError(
            f"There is no folder {spec.folder} in {data_dir}, but {there or 'no folder at all'}; --data-dir "
            "(data_dir= in a study) names the folder that holds GLUE's own folders."
        )
    files = (folder / "train.tsv", folder / spec.evaluation)
    for path in files:
        if not path.is_file():
            raise BadInputError(f"There is no file {path.name} in {path.parent}, which the official layout has.")
    return files


def _from_file(spec: GlueTask, path: Path) -> tuple[Split, int]:
    """The rows of an official file, and how many torn ones were passed over."""
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        # utf-8-sig: the official MRPC begins with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            numbered = ((reader.line_num, row) for row in reader if row)
            return _parsed(spec, path, numbered)
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}.") from error
    except (OSError, csv.Error) as error:
        raise BadInputError(f"{path} cannot be read: {error}.") from error
    finally:
        csv.field_size_limit(limit)


def _parsed(spec: GlueTask, path: Path, rows: Iterator[tuple[int, list[str]]]) -> tuple[Split, int]:
    columns = list(spec.columns) or next(rows, (0, []))[1]
    wanted = [name for name in (spec.text, spec.pair, spec.label) if name is not None]
    if not columns:
        raise BadInputError(f"{path} is empty.")
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise BadInputError(f"{path} has no column {missing[0]}; its columns are {', '.join(columns)}.")
    text, pair, label = (
        columns.index(name) if name is not None else None for name in (spec.text, spec.pair, spec.label)
    )
    assert text is not None
    assert label is not None
    texts: list[str] = []
    pairs: list[str] = []
    targets: list[int | float] = []
    torn = 0
    for line, row in rows:
        if len(row) != len(columns):
            if spec.skip_ragged:
                torn += 1
                continue
            raise BadInputError(
                f"Line {line} of {path} has {len(row)} tab-separated fields where {len(columns)} are due."
            )
        targets.append(_target(spec, row[label], f"line {line} of {path}"))
        texts.append(row[text])
        if pair is not None:
            pairs.append(row[pair])
    if not texts:
        raise BadInputError(f"{path} has no rows.")
    if torn:
        _logger.warning("%d rows of %s with a wrong number of fields were passed over.", torn, path)
    return Split(tuple(texts), None if pair is None else tuple(pairs), tuple(targets)), torn


def _target(spec: GlueTask, value: str, place: str) -> int | float:
    if spec.labels:
        if value not in spec.values:
            raise BadInputError(f"The label {value!r} in {place} is unknown; known are {', '.join(spec.values)}.")
        return spec.values.index(value)
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise BadInputError(f"The score {value!r} in {place} is not a number.")
    return score


def _from_hub(task: str, spec: GlueTask) -> tuple[Split, Split]:
    advice = (
        f"give --data-dir (data_dir= in a study) with a folder that holds {spec.folder}/train.tsv and "
        f"{spec.folder}/{spec.evaluation}"
    )
    try:
        import datasets
    except ImportError as error:
        raise BadInputError(
            f"GLUE comes from the hub through the library datasets, which is not installed; {advice}, or install it "
            "with: pip install 'armijo[lab]'."
        ) from error
    from armijo_lab import hub

    try:
        hub.reach("dataset", _HUB, advice)
        loaded = datasets.load_dataset(_HUB, task)
    except BadInputError:
        try:
            with hub.offline():
                loaded = datasets.load_dataset(_HUB, task)
        except Exception:  # it is not on this machine, and what the hub answered is worth more than how that shows
            loaded = None
        if loaded is None:
            raise
    # A failure on the way shows as one of many exceptions of three libraries; the remedy is the same for all.
    except Exception as error:
        raise BadInputError(f"{_HUB} could not be read from the hub ({type(error).__name__}); {advice}.") from error
    return _hub_split(spec, loaded["train"]), _hub_split(spec, loaded[spec.hub_evaluation])


def _hub_split(spec: GlueTask, rows: "datasets.Dataset") -> Split:
    text, *pair = (tuple(rows[name]) for name in spec.hub_columns)
    return Split(text, pair[0] if pair else None, tuple(rows["label"]))
