"""`armijo predict`: what a fine-tuned model says of a text; torch is loaded where it is first needed."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armijo_lab.commands import options, writing
from armijo_lab.errors import BadInputError
from armijo_lab.names import counted, visible
from armijo_lab.tasks import Split

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Format", "Prediction", "Predictor", "load_predictor", "predict", "predict_command"]


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned model, ready to be asked.

    Attributes:
        model: On the device where it runs, in evaluation mode.
        tokenizer: Its tokenizer.
        labels: The classes' names in the order of the outputs; `()` for a regression.
        max_length: Tokens after which a text is cut, as in training; `None` for no limit.
        pairs: Whether it was trained on pairs of texts; `None` where nothing says so.
    """

    model: nn.Module
    tokenizer: Any
    labels: tuple[str, ...]
    max_length: int | None
    pairs: bool | None


@dataclass(frozen=True)
class Prediction:
    """What a model says of one text.

    Attributes:
        label: The most probable class; `None` for a regression.
        probabilities: Of each class, in the order of `Predictor.labels`; `()` for a regression.
        score: The predicted number; `None` for a classification.
    """

    label: str | None
    probabilities: tuple[float, ...]
    score: float | None


class Format(StrEnum):
    """How predictions are printed."""

    TABLE = "table"
    TSV = "tsv"
    JSONL = "jsonl"


def load_predictor(folder: Path) -> Predictor:
    """Load a model that `armijo finetune` wrote, or any classifier that transformers saved, from this machine alone.

    Args:
        folder: A run's folder (its `best` is taken) or a model's own.

    Raises:
        BadInputError: There is no such folder, or it holds no model that was trained to classify.
    """
    import torch

    from armijo_lab import models
    from armijo_lab.results import run_folder

    place = _model_folder(folder)
    try:
        model, tokenizer, labels = (_paper if (place / "head.json").is_file() else _standard)(place)
    except BadInputError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors raise errors of a dozen kinds here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise BadInputError(
            f"The model in {place} cannot be read ({reason}); train it again, or name another."
        ) from error
    run = run_folder.read_summary(place.parent) if place.name in ("best", "last") else {}
    # A summary.json beside the folder may be another program's.
    max_length = run.get("config", {}).get("max_length", models.max_length(model, tokenizer))
    pairs = run.get("task", {}).get("pairs")
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return Predictor(model.to(device).eval(), tokenizer, labels, max_length, pairs)


def predict(
    predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] | None = None, batch_size: int = 32
) -> list[Prediction]:
    """What the model says of each text, in their order.

    Args:
        predictor: The model.
        texts: The texts, at least one, none empty.
        pairs: The second text of each, if the model was trained on pairs.
        batch_size: Texts that are read at once, ≥ 1; it changes speed and memory, and results by rounding alone.

    Raises:
        BadInputError: A text is empty, there is none, one has no partner, or the model's answer is not finite.
    """
    import torch

    _check(predictor, texts, pairs)
    device = next(predictor.model.parameters()).device
    cut = {} if predictor.max_length is None else {"truncation": True, "max_length": predictor.max_length}
    found: list[Prediction] = []
    with torch.inference_mode():
        for first in range(0, len(texts), batch_size):
            rows = slice(first, first + batch_size)
            second = None if pairs is None else list(pairs[rows])
            inputs = predictor.tokenizer(list(texts[rows]), second, padding=True, return_tensors="pt", **cut)
            logits = predictor.model(**inputs.to(device)).logits.float().cpu()
            if not torch.isfinite(logits).all():
                raise BadInputError(
                    "The model's answer is not a finite number: its weights are spoilt. Look at the run's training "
                    "loss, and train it again."
                )
            found += (_answer(predictor.labels, row) for row in logits)
    return found


def _check(predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] | None) -> None:
    if not texts:
        raise BadInputError("There is no text to predict for.")
    if pairs is None and predictor.pairs is True:
        raise BadInputError(
            "The model was trained on pairs of texts; give the second one with --text-pair, or with "
            "--text-pair-column for a file."
        )
    if pairs is not None and predictor.pairs is False:
        raise BadInputError("The model was trained on single texts; leave out the second one.")
    if pairs is not None and len(pairs) != len(texts):
        raise BadInputError(f"There are {len(texts)} texts and {len(pairs)} second texts; each text needs one.")
    for name, column in (("text", texts), ("second text", pairs or ())):
        for number, text in enumerate(column, 1):
            if not text.strip():
                raise BadInputError(f"The {name} number {number} is empty; give it words to judge.")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise BadInputError(f"The {name} number {number} is not valid UTF-8; convert it first.") from None


def _answer(labels: tuple[str, ...], logits: torch.Tensor) -> Prediction:
    if not labels:
        return Prediction(None, (), logits.item())
    probabilities = logits.double().softmax(-1)
    return Prediction(labels[int(probabilities.argmax())], tuple(probabilities.tolist()), None)


# ----------------------------------------------------------------------------------------------- loading


def _model_folder(folder: Path) -> Path:
    """Where the model itself lies."""
    from armijo_lab import models
    from armijo_lab.results import run_folder

    if not folder.is_dir():
        is_file = "is a file" if folder.exists() else "does not exist"
        raise BadInputError(f"The folder {folder} {is_file}; name the output folder of an armijo finetune.")
    if (folder / "best").is_dir():
        folder = folder / "best"
    elif any((folder / name).exists() for name in (run_folder.SUMMARY, run_folder.METRICS, "checkpoint")):
        raise BadInputError(
            f"The run in {folder} has no model yet, because it ended before its first evaluation or was told to keep "
            f"none; if it was interrupted, continue it with: armijo finetune --resume {shlex.quote(str(folder))}"
        )
    models.check_folder(folder, "name the output folder of an armijo finetune")
    return folder


def _standard(folder: Path) -> tuple[nn.Module, Any, tuple[str, ...]]:
    import transformers

    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, **_SAFE
    )
    if report["missing_keys"]:
        raise BadInputError(
            f"The model in {folder} was not trained to classify (it lacks {min(report['missing_keys'])}); fine-tune it "
            "with armijo finetune --model first."
        )
    config = model.config
    regression = config.problem_type == "regression" or config.num_labels == 1
    labels = () if regression else tuple(config.id2label[place] for place in range(config.num_labels))
    return model, _tokenizer(folder), labels


def _paper(folder: Path) -> tuple[nn.Module, Any, tuple[str, ...]]:
    """The encoder with its linear head, as `--paper-protocol` writes them."""
    import transformers
    from safetensors.torch import load_file

    from armijo_lab import models

    labels = tuple(json.loads((folder / "head.json").read_text(encoding="utf-8"))["labels"])
    head = load_file(folder / "head.safetensors")
    # A pooler that the file lacks is drawn at random and never asked.
    encoder = transformers.AutoModel.from_pretrained(folder, **_SAFE)
    model = models.EncoderClassifier(encoder, max(1, len(labels)))
    model.head.load_state_dict(head)
    return model, _tokenizer(folder), labels


# Nothing is fetched, and no code that lies beside the weights is run.
_SAFE: dict[str, Any] = {
    "local_files_only": True,
    "trust_remote_code": False,
    "use_safetensors": True,
    "dtype": "float32",
}


def _tokenizer(folder: Path) -> Any:
    import transformers

    from armijo_lab import models

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    models.check_tokenizer(tokenizer, f"the model folder {folder}")
    return tokenizer


# ----------------------------------------------------------------------------------------- the command


def predict_command(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The output folder of an armijo finetune, or a model's own.",
            metavar="FOLDER",
            parser=options.given("FOLDER", "the output folder of an armijo finetune", Path),
        ),
    ],
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text; may be given several times.", show_default=False)
    ] = None,
    text_pair: Annotated[
        list[str] | None,
        typer.Option("--text-pair", help="The second text of each --text, for a model of pairs.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            help="A file with texts: .csv, .tsv, .jsonl, .parquet.",
            show_default=False,
            metavar="FILE",
            parser=options.given("--file", "a file with texts", Path),
        ),
    ] = None,
    text_column: Annotated[str, typer.Option("--text-column", help="The file's column with the text.")] = "text",
    text_pair_column: Annotated[
        str | None,
        typer.Option("--text-pair-column", help="The file's column with the second text.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Write there, .csv or .jsonl, instead of printing.",
            show_default=False,
            metavar="FILE",
            parser=options.given("--output", "a file to write to", Path),
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="How to print.  [default: table on a terminal, else tsv]", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Texts read at once.", min=1, metavar="N")] = 32,
) -> None:
    """Labels and their probabilities for texts, from a fine-tuned model.

    For one text:  armijo predict runs/first --text "A film to remember."

    For a file:  armijo predict runs/first --file new.csv --text-column review --output answers.csv
    """
    if output is not None:
        _check_output(output, file, form)
    asked = _asked(text, text_pair, file, text_column, text_pair_column)
    _quieten()
    predictor = load_predictor(folder)
    predictions = predict(predictor, asked.texts, asked.pairs, batch_size)
    if predictor.max_length is not None:
        from armijo_lab.commands.progress import errors
        from armijo_lab.tasks.notices import cut_texts

        for line in cut_texts(asked, predictor.tokenizer, predictor.max_length, "text", "The rest is not read."):
            errors.print(line, markup=False, highlight=False)
    if output is not None:
        _write(output, "".join((_csv if output.suffix == ".csv" else _jsonl)(predictor.labels, asked, predictions)))
        typer.echo(visible(f"Wrote {counted(len(predictions), 'prediction')} to {output}."))
        return
    if form is None:
        form = Format.TABLE if sys.stdout.isatty() else Format.TSV
    if form is Format.TABLE:
        _print_table(predictor.labels, asked, predictions)
        return
    for line in (_tsv if form is Format.TSV else _jsonl)(predictor.labels, asked, predictions):
        # Another program gets the texts as they are, and a person's terminal obeys none of them.
        typer.echo(visible(line) if sys.stdout.isatty() else line, nl=False)


def _check_output(output: Path, file: Path | None, form: Format | None) -> None:
    if form is not None:
        raise BadInputError("--format says how to print, and with --output nothing is printed; leave one of them out.")
    if output.suffix not in (".csv", ".jsonl"):
        raise BadInputError(f"The name of the output file {output} must end with .csv or .jsonl.")
    if not output.parent.is_dir():
        raise BadInputError(f"There is no folder {output.parent} to write {output.name} into; make it first.")
    if output.is_dir():
        raise BadInputError(f"{output} is a folder; name a file.")
    if file is not None and file.exists() and output.exists() and output.samefile(file):
        raise BadInputError(f"--output and --file are both {file}; the texts would be overwritten. Name another file.")
    if output.exists():
        raise BadInputError(f"There is a file {output} already; name another with --output, or remove that one first.")
    what = f"The folder {output.parent} cannot be written to"
    with writing(what, "name a file in another with --output"), tempfile.TemporaryFile(dir=output.parent):
        pass


def _write(output: Path, text: str) -> None:
    from armijo_lab.results import run_folder

    with writing(f"The predictions could not be written to {output}", "make room, or name another file"):
        run_folder.write_text(output, text)


def _asked(
    text: list[str] | None,
    text_pair: list[str] | None,
    file: Path | None,
    text_column: str,
    text_pair_column: str | None,
) -> Split:
    """The texts that the options name."""
    if (not text) == (file is None):
        raise BadInputError("Give the texts with --text or with --file: one of them, and not both.")
    if file is not None:
        if text_pair:
            raise BadInputError("--text-pair belongs to --text; for a file name the column with --text-pair-column.")
        from armijo_lab.tasks import tables

        return tables.read_texts(
            file, text=text_column, text_pair=text_pair_column, options=("--text-column", "--text-pair-column")
        )
    if text_pair_column is not None:
        raise BadInputError("--text-pair-column belongs to --file; with --text give the second text by --text-pair.")
    return Split(tuple(text or ()), tuple(text_pair) if text_pair else None, ())


def _quieten() -> None:
    """Keep transformers' progress bars and its remarks on loading out of what is printed."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


# ------------------------------------------------------------------------------------------- printing


def _columns(labels: tuple[str, ...], asked: Split) -> list[str]:
    texts = ["text"] if asked.pairs is None else ["text", "text_pair"]
    return [*texts, *(["label", *(f"p({label})" for label in labels)] if labels else ["score"])]


def _cells(asked: Split, predictions: Sequence[Prediction]) -> Iterator[tuple[list[str], list[str], list[float]]]:
    """Of each row the texts, the label if there is one, and the numbers."""
    for place, prediction in enumerate(predictions):
        texts = [asked.texts[place]] if asked.pairs is None else [asked.texts[place], asked.pairs[place]]
        if prediction.label is None:
            yield texts, [], [math.nan if prediction.score is None else prediction.score]
        else:
            yield texts, [prediction.label], list(prediction.probabilities)


def _jsonl(labels: tuple[str, ...], asked: Split, predictions: Sequence[Prediction]) -> Iterator[str]:
    for place, prediction in enumerate(predictions):
        row: dict[str, Any] = {"text": asked.texts[place]}
        if asked.pairs is not None:
            row["text_pair"] = asked.pairs[place]
        if labels:
            row |= {
                "label": prediction.label,
                "probabilities": dict(zip(labels, prediction.probabilities, strict=True)),
            }
        else:
            row["score"] = prediction.score
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _csv(labels: tuple[str, ...], asked: Split, predictions: Sequence[Prediction]) -> Iterator[str]:
    out = io.StringIO()
    # All strings in quotes: a lone carriage return is the end of a row to many readers, and to the writer it is not.
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(_columns(labels, asked))
    writer.writerows([*texts, *label, *numbers] for texts, label, numbers in _cells(asked, predictions))
    yield out.getvalue()


def _tsv(labels: tuple[str, ...], asked: Split, predictions: Sequence[Prediction]) -> Iterator[str]:
    # One row a line and no quotes, for cut and awk: white space inside a cell becomes one blank.
    lines = [[*texts, *label, *(f"{n:.6g}" for n in numbers)] for texts, label, numbers in _cells(asked, predictions)]
    for line in (_columns(labels, asked), *lines):
        yield "\t".join(" ".join(cell.split()) for cell in line) + "\n"


def _print_table(labels: tuple[str, ...], asked: Split, predictions: Sequence[Prediction]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from armijo_lab.commands.progress import Terminal

    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    table.add_column("text")
    if asked.pairs is not None:
        table.add_column("text_pair")
    if labels:
        table.add_column("label", style="bold")
        table.add_column("probability", justify="right")
        table.add_column("else", style="dim")
    else:
        table.add_column("score", justify="right")
    for place, prediction in enumerate(predictions):
        cells = [asked.texts[place]] if asked.pairs is None else [asked.texts[place], asked.pairs[place]]
        if prediction.score is None:
            first, *others = sorted(zip(prediction.probabilities, labels, strict=True), key=lambda pair: -pair[0])
            # A terminal has no room for a column of each class; the other formats have.
            cells += [first[1], f"{first[0]:.3f}", ", ".join(f"{label} {p:.3f}" for p, label in others[:2])]
        else:
            cells.append(f"{prediction.score:.4g}")
        # Text, because brackets in what the user typed are no markup; escaped here, so that a column is wide enough.
        table.add_row(*map(Text, map(visible, cells)))
    Terminal().print(table)
