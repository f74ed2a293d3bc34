"""A grid of runs on Hydra, which reads the options and launches the runs.

armijo study rivals                               one after the other, in this process
armijo study rivals hydra/launcher=joblib         on all cores of this machine
armijo study rivals hydra/launcher=submitit_slurm on a cluster
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from armijo_lab.errors import BadInputError
from armijo_lab.results import store
from armijo_lab.studies import plan, worker
from armijo_lab.studies.plan import Options, as_dict
from armijo_lab.training import InterruptedRunError, TrainingConfig

__all__ = ["options", "pending_runs", "run"]

_CONFIG = "armijo_study"
# Hydra's own files and logs would repeat the records.
_QUIET = {
    "hydra/job_logging": "disabled",
    "hydra/hydra_logging": "disabled",
    "hydra.output_subdir": "null",
    "hydra.sweep.dir": "${work}/hydra",
    "hydra.job.chdir": "False",
}


@dataclasses.dataclass
class _Job(Options):
    """The options, and the identity of the run that a job does."""

    run: str | None = None


def options(study: str, overrides: Sequence[str]) -> Options:
    """Read the options of a study with Hydra.

    Args:
        study: Its name.
        overrides: `key=value`, for the fields of `Options` and for Hydra's own.

    Raises:
        BadInputError: One of them cannot be read.
    """
    from hydra import compose, initialize
    from omegaconf import OmegaConf

    keys = [field.name for field in dataclasses.fields(Options) if field.name != "study"]
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not key.startswith(("hydra.", "hydra/")) and key not in keys:
            what = f"There is no option {override!r}" if equals else f"The option {override!r} cannot be read"
            raise BadInputError(f"{what}; write key=value with one of {', '.join(keys)}, or an option of Hydra.")
    _register()
    with _readable_errors(), initialize(version_base="1.3", config_path=None):
        config = compose(_CONFIG, overrides=[f"study={study}", *_quote_texts(overrides)])
        values: Any = OmegaConf.to_container(config)
    values.pop("run")
    return Options(**values)


def pending_runs(chosen: Options) -> tuple[list[TrainingConfig], list[TrainingConfig]]:
    """Return all runs of a study, and those that are not done yet."""
    planned = plan.runs(chosen)
    known = store.read(Path(chosen.results))
    return planned, [config for config in planned if not worker.is_done(config, known)]


def run(chosen: Options, overrides: Sequence[str], todo: Iterable[TrainingConfig]) -> None:
    """Do runs of a study with Hydra's launcher, and return when the last one has ended.

    Raises:
        BadInputError: Hydra cannot read the overrides.
        KeyboardInterrupt: Ctrl-C; finished runs keep their records, and the same command does the rest.
    """
    import hydra

    _register()
    names = ",".join(f"'{store.identity(as_dict(config))}'" for config in todo)
    overridden = {override.partition("=")[0].lstrip("+~") for override in overrides}
    quiet = [f"{key}={value}" for key, value in _QUIET.items() if key not in overridden]
    previous = sys.argv
    sys.argv = ["armijo study", "--multirun", f"study={chosen.study}", *quiet, *_quote_texts(overrides), f"run={names}"]
    try:
        hydra.main(version_base="1.3", config_path=None, config_name=_CONFIG)(_job)()
    except SystemExit as stop:
        if stop.code not in (0, None):
            raise BadInputError("Hydra stopped with the error above; correct the option that it names.") from None
    finally:
        sys.argv = previous


def _job(config: Any) -> None:
    """Do one run, on whichever machine the launcher started it."""
    import torch
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(config)
    name = values.pop("run")
    chosen = Options(**values)
    logging.getLogger("armijo").setLevel(logging.WARNING)
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    planned = {store.identity(as_dict(planned)): planned for planned in plan.runs(chosen)}
    # Another process of the same grid, or an earlier attempt of a cluster job, may have done it meanwhile.
    if worker.is_done(planned[name], store.read(Path(chosen.results))):
        return
    try:
        worker.do(chosen.study, planned[name], results=Path(chosen.results), work=Path(chosen.work))
    except InterruptedRunError as error:
        # Hydra ends only one job at an exception; KeyboardInterrupt ends all of them.
        raise KeyboardInterrupt from error


def _quote_texts(overrides: Sequence[str]) -> list[str]:
    """Quote text values, in which Hydra would read a comma as a sweep and a bracket as a list."""
    texts = {name for name, hint in get_type_hints(Options).items() if hint in (str, str | None)}
    quoted = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and key in texts and value != "null" and value[:1] not in ("'", '"'):
            # A backslash at the end of the text would escape the closing quote.
            escaped = value.replace("'", "\\'") + ("\\" if value.endswith("\\") else "")
            override = f"{key}='{escaped}'"
        quoted.append(override)
    return quoted


def _register() -> None:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=_CONFIG, node=_Job)


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf into one-sentence errors."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        key = getattr(cause, "full_key", None)
        message = (f"{key}: " if key else "") + str(cause).strip().splitlines()[0].rstrip(".")
        raise BadInputError(f"The options cannot be read: {message}.") from error
