"""The command `armijo`: it reads options, and turns what goes wrong into a sentence and an exit code."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from armijo_lab.commands.compare import compare
from armijo_lab.commands.doctor import doctor
from armijo_lab.commands.finetune import finetune
from armijo_lab.commands.predict import predict_command
from armijo_lab.commands.progress import errors, output
from armijo_lab.commands.report import report
from armijo_lab.commands.study import study
from armijo_lab.errors import BadInputError

__all__ = ["app", "main"]

# The base of every complaint about options and arguments; typer carries click along, and exports this one alone.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="armijo",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(finetune)
app.command("predict")(predict_command)
app.command()(compare)
app.command()(study)
app.command()(report)
app.command()(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"armijo {version('armijo')}")
        raise typer.Exit


@app.callback()
def _armijo(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of a failure.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Fine-tune transformers without a learning rate: at each step a line search finds the step size.

    finetune trains a model, predict uses it, compare sets optimizers side by
    side on equal terms, doctor looks whether all works on this machine. Each
    has its own page: armijo finetune --help

    \b
    Examples:
      armijo finetune
          a first run, offline: a small BERT learns with AdamSLS which part of
          Python's standard library a docstring comes from
      armijo predict runs/FOLDER --text "Return the mean of some numbers."
          what the model of that run says about a text
      armijo finetune --train train.csv --eval test.csv \\
          --text sentence --label topic --model roberta-base
          your own rows and an encoder from the hub
      armijo finetune --task sst2 --data-dir glue --limit 500 \\
          --paper-protocol --optimizer plasls:split=projection
          a small task of GLUE as in the paper; one step size each for keys,
          queries, values and the rest
      armijo compare --task sst2 --data-dir glue --limit 500 --seeds 3
          three line searches and Adam: a table and a figure

    \b
    Exit codes:
      0    done
      1    failed
      2    bad input: one sentence says what, and nothing is written
      130  interrupted: the command says how to go on
    """  # noqa: D301 (\b, which keeps the lines that follow as they are, is one character)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with `arguments`, by default the process's own.

    Raises:
        SystemExit: Always; 0 done, 1 failed, 2 bad input, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _logged():
            code = app(
                args=arguments or ["--help"],
                prog_name="armijo",
                obj=shlex.join(["armijo", *arguments]),
                standalone_mode=False,
            )
    except _UsageError as error:
        page = shlex.join([*(error.ctx.command_path.split() if error.ctx else ["armijo"]), "--help"])
        said = " ".join(error.format_message().split()).rstrip(".")
        _fail(f"{said}. See: {page}", 2)
    except typer.Abort:
        _fail("Interrupted.", 130)
    except BadInputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("Interrupted.", 130)
    except Exception as error:
        if "--debug" in arguments:
            raise
        reason = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__
        _fail(f"The command failed ({said}). For the traceback: armijo --debug …", 1)
    if code == 130:  # typer's answer to Ctrl-C where no command had more to say
        _fail("Interrupted.", 130)
    raise SystemExit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int) -> NoReturn:
    if _rank() and code == 1:
        errors.quiet, sentence = False, f"Rank {_rank()}: {sentence}"
    errors.print(sentence, markup=False, highlight=False)
    raise SystemExit(code)


def _rank() -> int:
    """Which of the ranks that torchrun started this is, without importing torch for it."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


@contextmanager
def _logged() -> Iterator[None]:
    """What the library and the lab log goes to the terminal, above the progress bar."""
    from rich.logging import RichHandler

    # Of the ranks that torchrun starts the first speaks for all, but for what goes wrong on another.
    if _rank():
        errors.quiet = output.quiet = True
        logging.getLogger("armijo").setLevel(logging.CRITICAL)
    handler = RichHandler(console=errors, show_time=False, show_path=False, rich_tracebacks=False)
    handler.setLevel(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("armijo", "armijo_lab")]
    for logger in loggers:
        logger.addHandler(handler)
    # Its own remarks on each new attempt; what comes of them is said in our own sentence.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
