"""The options that `armijo finetune` and `armijo compare` share; nothing here loads torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from armijo_lab import methods
from armijo_lab.errors import BadInputError
from armijo_lab.tasks.glue import TASKS

Kind = TypeVar("Kind", str, Path)

_DATA, _MODEL, _TRAINING, _OUTPUT = "Data", "Model and optimizer", "Training", "Output"


def given(name: str, what: str, kind: type[Kind] = str) -> Callable[[str], Kind]:
    """Reads what was typed for `name`, and refuses an empty string: `Path("")` would be this folder."""

    def read(text: str) -> Kind:
        if not text.strip():
            raise BadInputError(f"{name} is empty; name {what}" + (", or leave it out." if name[0] == "-" else "."))
        return kind(text)

    return read


OPTIMIZER_HELP = (
    f"NAME or NAME:key=value,key=value, where NAME is one of {', '.join(methods.NAMES)}. The line searches need no "
    "key. plasls: split (layer, projection, module, tensor), n_groups, schedule (cycle, each, joint), merge. adam, "
    "adamw, sgd: lr, weight_decay, schedule (constant, linear, cosine), warmup (a fraction of the steps; by default "
    "0.1 for adam, the paper's baseline, and 0 for adamw, as in the Hugging Face Trainer; the rate of step 1 is 0 "
    "under it)."
)

Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        help=f"A task of GLUE: {', '.join(TASKS)}.",
        metavar="NAME",
        parser=given("--task", "a task of GLUE"),
        rich_help_panel=_DATA,
        show_default="the embedded set",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        parser=given("--data-dir", "the folder with GLUE's own folders", Path),
        help="The folder with GLUE's own folders (SST-2, MRPC, …); without it --task reads from the hub.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Train = Annotated[
    Path | None,
    typer.Option(
        "--train",
        metavar="FILE",
        parser=given("--train", "a file with rows", Path),
        help="A file of your own to train on: .csv, .tsv, .jsonl, .parquet. Needs --text and --label.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Evaluation = Annotated[
    Path | None,
    typer.Option(
        "--eval",
        metavar="FILE",
        parser=given("--eval", "a file with rows", Path),
        help="A file to evaluate on, with the same columns; without it a fifth of --train is held out.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        "--text",
        help="The column with the text.",
        metavar="COLUMN",
        parser=given("--text", "the column with the text"),
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
TextPair = Annotated[
    str | None,
    typer.Option(
        "--text-pair",
        help="The column with a second text, if any.",
        metavar="COLUMN",
        parser=given("--text-pair", "the column with a second text"),
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Label = Annotated[
    str | None,
    typer.Option(
        "--label",
        help="The column with the label.",
        metavar="COLUMN",
        parser=given("--label", "the column with the label"),
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        help="Train on the first N rows; the evaluation is not cut.",
        metavar="N",
        rich_help_panel=_DATA,
        show_default="all rows",
    ),
]
EvaluationLimit = Annotated[
    int | None,
    typer.Option(
        "--eval-limit",
        help="Evaluate on the first N rows.",
        metavar="N",
        rich_help_panel=_DATA,
        show_default="all rows",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A model's folder, its name on the hub, or random:bert-mini and the like for one that was never trained.",
        metavar="NAME_OR_FOLDER",
        parser=given("--model", "a model's folder, or its name on the hub"),
        rich_help_panel=_MODEL,
        show_default="the installed MiniLM of 23 million parameters",
    ),
]
PaperProtocol = Annotated[
    bool,
    typer.Option(
        "--paper-protocol",
        help="As in arXiv 2403.18506: no dropout, rows in their order, a linear layer on [CLS].",
        rich_help_panel=_MODEL,
    ),
]
Lora = Annotated[
    int | None,
    typer.Option(
        "--lora",
        help="Train LoRA adapters of this rank and the head, and leave the encoder as it is. Needs peft.",
        metavar="RANK",
        rich_help_panel=_MODEL,
        show_default="the whole model is trained",
    ),
]
LoraAlpha = Annotated[
    float | None,
    typer.Option(
        "--lora-alpha",
        help="An adapter is scaled by ALPHA / RANK.",
        metavar="ALPHA",
        rich_help_panel=_MODEL,
        show_default="twice the rank",
    ),
]
LoraTargets = Annotated[
    str | None,
    typer.Option(
        "--lora-targets",
        help="The layers that get an adapter, as in query,value.",
        metavar="NAMES",
        parser=given("--lora-targets", "the layers that get an adapter, as in query,value"),
        rich_help_panel=_MODEL,
        show_default="every linear layer of the encoder",
    ),
]
Epochs = Annotated[int, typer.Option("--epochs", help="Passes over the rows.", metavar="N", rich_help_panel=_TRAINING)]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Rows a step.", metavar="N", rich_help_panel=_TRAINING)]
Accumulate = Annotated[
    int | None,
    typer.Option(
        "--accumulate",
        help="Batches a step: the gradients of N batches are added up, and the search sees the loss of all their rows.",
        metavar="N",
        rich_help_panel=_TRAINING,
        show_default="1",
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        help="Tokens after which a text is cut.",
        metavar="N",
        rich_help_panel=_TRAINING,
        show_default="128; 256 with --paper-protocol",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", help="Of the new head, dropout and the order of the rows.", metavar="N", rich_help_panel=_TRAINING
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="fp32; bf16: float32 weights, forward passes in bfloat16; fp64: everything in float64.",
        metavar="fp32|bf16|fp64",
        rich_help_panel=_TRAINING,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto (the first of cuda, mps, cpu that there is), cpu, cuda, cuda:1, mps.",
        metavar="NAME",
        rich_help_panel=_TRAINING,
    ),
]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(
        "--checkpoint-every",
        help="Write a checkpoint every N steps.",
        metavar="N",
        rich_help_panel=_OUTPUT,
        show_default="only when interrupted",
    ),
]


def output(kind: str) -> object:
    """The option `--output` of a command whose default folder ends with `kind`."""
    return typer.Option(
        "--output",
        metavar="FOLDER",
        parser=given("--output", "the folder to write to", Path),
        help="The folder to write to; it must hold no run.",
        rich_help_panel=_OUTPUT,
        show_default=f"a new runs/DATE-TIME-{kind}",
    )


def resume(what: str) -> object:
    """The option `--resume`, which continues `what`."""
    return typer.Option(
        "--resume",
        help=f"Continue {what} in this folder with the options it was started with; takes no other option.",
        metavar="FOLDER",
        parser=given("--resume", "the folder to continue", Path),
        rich_help_panel=_OUTPUT,
        show_default=False,
    )
