"""`python -m armijo_lab.studies NAME key=value …`: a study in one process, with torch and transformers alone.

The options are those of `armijo study`. Use it where Hydra is not installed: it does the runs one after the other and
writes the same records.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from armijo_lab.errors import BadInputError
from armijo_lab.names import counted
from armijo_lab.results import store
from armijo_lab.studies import plan, worker
from armijo_lab.training import InterruptedRunError


def main(arguments: Sequence[str]) -> int:
    """Do a study, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        chosen = plan.read(arguments[0] if arguments else "", arguments[1:])
        planned = plan.runs(chosen)
        known = store.read(Path(chosen.results))
        todo = [config for config in planned if not worker.is_done(config, known)]
        worker.check_sources(todo, chosen)
    except BadInputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    start, failed = time.monotonic(), 0
    for number, config in enumerate(todo, 1):
        try:
            entry = worker.do(chosen.study, config, results=Path(chosen.results), work=Path(chosen.work))
        except (InterruptedRunError, KeyboardInterrupt):
            sys.stderr.write("Interrupted; the same command does the rest.\n")
            return 130
        failed += entry["status"] == "failed"
        remaining = (time.monotonic() - start) / number * (len(todo) - number)
        line = store.line(entry, plan.label(chosen.study, config))
        sys.stderr.write(f"{line}\n{number} of {counted(len(todo), 'run')}, about {remaining / 60:.0f} min left\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
