"""`python -m armijo_lab.regret key=value …`: the runs that have no record yet, one after the other.

With `show` before the options they are listed instead, with `report` the page is written.

Options: `data_dir`, the folder of GLUE's files (without it, the hub); `regimes`, `tasks`, `rows`, `batch_sizes` and
`seeds` (`0-4`), each a part of the grid, separated by commas; `optimizers`, instead of all; `results`, the folder of
the records; `cache`, the folder of features; `pages`, the folder of the page.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from armijo_lab.errors import BadInputError
from armijo_lab.regret import grid, page, runs
from armijo_lab.results import store
from armijo_lab.results.run_folder import environment

_DEFAULTS = {
    "data_dir": "",
    "regimes": ",".join(grid.REGIMES),
    "tasks": ",".join(dict.fromkeys(cell.task for cell in grid.CELLS)),
    "rows": ",".join(dict.fromkeys(str(cell.rows) for cell in grid.CELLS)),
    "batch_sizes": ",".join(dict.fromkeys(str(cell.batch_size) for cell in grid.CELLS)),
    "seeds": f"{grid.CHOSEN_ON[0]}-{grid.CHOSEN_ON[-1]}",
    "optimizers": ",".join(page.OPTIMIZERS),
    "results": "results/regret",
    "cache": "runs/features",
    "pages": "docs",
}


_Run = tuple[int, grid.Cell, str]
"""Seed, cell and optimizer."""

_OF_CELLS = {"task": "tasks", "regime": "regimes", "rows": "rows", "batch_size": "batch_sizes"}
"""The option that chooses each field of a cell."""


def main(arguments: Sequence[str]) -> int:
    """Do the runs or write the page, and return the exit code."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    try:
        verb = arguments[0] if arguments and arguments[0] in ("report", "show") else ""
        options = _read(arguments[1:] if verb else arguments)
        if verb == "report":
            page.write(Path(options["results"]), Path(options["pages"]))
        elif verb == "show":
            _show(options)
        else:
            _run(options)
        return 0
    except BadInputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; the same command does the rest.\n")
        return 130


def _read(arguments: Sequence[str]) -> dict[str, str]:
    options = dict(_DEFAULTS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in options:
            raise BadInputError(f"There is no option {argument!r}; write key=value with one of {', '.join(options)}.")
        options[key] = value
    return options


def _seeds(text: str) -> list[int]:
    try:
        spans = [span.split("-") for span in text.split(",")]
        return [seed for span in spans for seed in range(int(span[0]), int(span[-1]) + 1)]
    except ValueError:
        raise BadInputError(f"seeds={text} cannot be read; write 0-4, or 0,2.") from None


def _show(options: dict[str, str]) -> None:
    planned, todo = _runs(options)
    for seed, cell, name in todo:
        sys.stdout.write(f"not run: {cell.name}, seed {seed}, {name}\n")
    sys.stdout.write(f"{len(planned) - len(todo)} of {len(planned)} runs done.\n")


def _runs(options: dict[str, str]) -> tuple[list[_Run], list[_Run]]:
    """The runs that are planned, and those of them that have no record."""
    wanted = {name: set(options[key].split(",")) for name, key in _OF_CELLS.items()}
    cells = [cell for cell in grid.CELLS if all(str(getattr(cell, name)) in wanted[name] for name in wanted)]
    if not cells:
        asked = ", ".join(f"{key}={options[key]}" for key in _OF_CELLS.values())
        known = ", ".join(f"{key}={_DEFAULTS[key]}" for key in _OF_CELLS.values())
        raise BadInputError(f"No cell of the grid has {asked}; choose among {known}.")
    every = itertools.product(_seeds(options["seeds"]), cells, _split(options["optimizers"]))
    planned = [run for run in every if page.belongs(run[2], run[1])]
    done = {page.identity(record) for record in page.read(Path(options["results"]))}
    return planned, [(seed, cell, name) for seed, cell, name in planned if (cell, name, seed) not in done]


def _run(options: dict[str, str]) -> None:
    _, todo = _runs(options)
    results = Path(options["results"])
    torch.set_num_threads(1)
    provenance = {key: value for key, value in environment().items() if key in ("commit", "versions")}
    start = time.monotonic()
    for number, (seed, cell, name) in enumerate(todo, 1):
        data_dir = Path(options["data_dir"]) if options["data_dir"] else None
        record: dict[str, Any] = runs.do(cell, name, seed, data_dir, Path(options["cache"]))
        store.append(results / f"{cell.regime}.jsonl", {**record, **provenance})
        left = (time.monotonic() - start) / number * (len(todo) - number) / 60
        score = json.dumps(record["last"]["accuracy"])
        sys.stderr.write(f"{cell.name}, seed {seed}, {name}: {score[:5]} ({number} of {len(todo)}, {left:.0f} min)\n")


def _split(text: str) -> list[str]:
    """Optimizers separated by commas, each with arguments that are separated by commas too."""
    names: list[str] = []
    for part in text.split(","):
        if "=" in part and ":" not in part and names:
            names[-1] += f",{part}"
        else:
            names.append(part)
    return names


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
