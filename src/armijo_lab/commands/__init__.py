"""The commands of `armijo`, one module each; what two of them need stands here."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import typer

from armijo_lab.errors import BadInputError
from armijo_lab.names import slug

__all__ = ["command_line", "new_folder", "only_resume", "prepare_output"]


def command_line(context: typer.Context) -> str | None:
    """The command as it was typed, if `armijo_lab.cli.main` started it."""
    return context.obj if isinstance(context.obj, str) else None


def only_resume(context: typer.Context) -> None:
    """Refuse options beside `--resume`: the run's own are in its checkpoint.

    Raises:
        BadInputError: One was given; the sentence names it.
    """
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name != "resume" and source is not None and source.name == "COMMANDLINE":
            raise BadInputError(
                f"--resume continues a run with the options it was started with; leave out {parameter.opts[0]}."
            )


def new_folder(kind: str) -> Path:
    """A folder `runs/DATE-TIME-kind` that does not exist yet."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{slug(kind)}"
    folder, number = Path("runs") / stem, 2
    while folder.exists():
        folder, number = Path("runs") / f"{stem}-{number}", number + 1
    return folder


@contextlib.contextmanager
def writing(what: str, remedy: str) -> Iterator[None]:
    """Turn what the file system refuses into a sentence: `what`, the reason, `remedy`.

    Raises:
        BadInputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BadInputError(f"{what} ({reason}); {remedy}.") from error


def prepare_output(folder: Path) -> None:
    """Make sure that `folder` holds nothing of another run and can be made and written to; it is left as it was.

    Raises:
        BadInputError: It does, or it cannot.
    """
    from armijo_lab.results.run_folder import refuse_used

    missing: list[Path] = []
    try:
        with writing(f"The output folder {folder} cannot be written to", "name another with --output"):
            refuse_used(folder)
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
