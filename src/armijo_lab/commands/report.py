"""`armijo report`: tables and figures from the records of `armijo study`; it reads and never trains."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Annotated

import typer

from armijo_lab.errors import BadInputError
from armijo_lab.names import slug

__all__ = ["report"]


def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="The studies; without one, all that have records. After a single one, the options it was run with.",
            metavar="NAME… [KEY=VALUE…]",
        ),
    ] = None,
    results: Annotated[Path, typer.Option("--results", help="The folder of the records.")] = Path("results"),
    output: Annotated[Path, typer.Option("--output", help="Where the pages go.")] = Path("docs/lab"),
) -> None:
    """Write a page for each study: tables as Markdown and CSV, figures as PNG.

    It reads the records, results/*.jsonl, and for a study NAME a person's
    conclusions in results/NAME.md. Cells without a record are named as "not
    run". A study that was run with other options has its own page; give the
    same options here.

    \b
    Examples:
      armijo report
      armijo report rivals paper-small
      armijo report rivals protocol=clean model=roberta-base
      armijo report rivals --results ../other/results --output pages
    """  # noqa: D301 (\b, which keeps the lines that follow as they are, is one character)
    from armijo_lab.commands.progress import output as terminal
    from armijo_lab.results import cells, store
    from armijo_lab.results.page import Page, write
    from armijo_lab.results.run_folder import write_text
    from armijo_lab.studies import plan

    given = [name for name in names or () if "=" in name]
    names = [name for name in names or () if "=" not in name]
    for name in names:
        if name not in plan.STUDIES:
            raise BadInputError(f"There is no study {name!r}; choose one of {', '.join(plan.STUDIES)}.")
    if given and len(names) != 1:
        raise BadInputError(f"{given[0]} is an option of one study; name that study before it.")
    # The options of `armijo study` are accepted; those that decide where and how runs are done do not change the page.
    results = next((Path(option.partition("=")[2]) for option in given if option.startswith("results=")), results)
    given = [option for option in given if option.partition("=")[0] not in plan.EXECUTION_OPTIONS]
    if not results.is_dir():
        raise BadInputError(f"There is no folder {results} with records; run a study first: armijo study NAME.")
    known = store.read(results)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    written: list[plan.Study] = []
    for study in plan.STUDIES.values():
        if names and study.name not in names:
            continue
        planned = [
            (config, [store.identity(plan.as_dict(run)) for run in runs])
            for config, runs in plan.cells(plan.read(study.name, given))
        ]
        study_cells = cells.collect(planned, study.varied, known)
        if not any(cell.ended or cell.failed for cell in study_cells):
            continue
        notes = results / f"{study.name}.md"
        page = Page(
            "-".join([study.name, *(slug(option) for option in given)]),
            study.title,
            study.question,
            shlex.join(["armijo", "study", study.name, "data_dir=glue", *given]),
            shlex.join(["armijo", "report", study.name, *given]),
            notes.read_text(encoding="utf-8") if notes.is_file() else None,
            study.tables,
            study.figures,
        )
        write(page, study_cells, output)
        written.append(study)
        done = sum(len(cell.ended) for cell in study_cells)
        total = sum(len(cell.records) for cell in study_cells)
        terminal.print(f"{output / page.name}.md: {done} of {total} runs", markup=False, highlight=False)
    missing = [name for name in names if all(study.name != name for study in written)]
    if missing or not written:
        what = f"{' and '.join(missing)} with these options" if missing else "a study with its usual options"
        place = [] if results == Path("results") else ["--results", str(results)]
        commands = dict.fromkeys(
            shlex.join(
                ["armijo", "report", entry["study"], *plan.recover_options(entry["study"], entry["config"]), *place]
            )
            for entry in known.values()
            if entry["study"] in (missing or plan.STUDIES)
        )
        remedy = f"There are records for: {'; '.join(commands)}." if commands else "Run it first: armijo study NAME."
        raise BadInputError(f"No record in {results} is of {what}. {remedy}")
    if not names:
        lines = [f"- [{study.title}]({study.name}.md): {study.question}" for study in written]
        not_run = [f"`{study.name}`" for study in plan.STUDIES.values() if study not in written]
        lines += ["", f"Not run: {', '.join(not_run)}."] if not_run else []
        write_text(output / "index.md", "# The laboratory\n\n" + "\n".join(lines) + "\n")
