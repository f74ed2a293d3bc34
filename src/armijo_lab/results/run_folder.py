"""The folder of a run, written so that a crash never leaves half a line, and read back.

    summary.json    the configuration, what it ran on, the results
    metrics.jsonl   one JSON object per line: one for each step and one for each epoch
    tensorboard/    the same numbers as events

A float that is not finite is written as `null`, so that every JSON reader can read it.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import torch

from armijo_lab.errors import BadInputError

__all__ = [
    "NullLog",
    "Run",
    "RunLog",
    "divergence",
    "environment",
    "finite",
    "peak_memory",
    "read_run",
    "read_runs",
    "read_summary",
    "refuse_used",
    "reset_peak_memory",
    "sync",
    "write_json",
    "write_text",
]

logger = logging.getLogger("armijo")

SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
# Everything that a run writes; a folder that holds one of these is not written to.
_RUN_FILES = (SUMMARY, METRICS, "README.md", "best", "last", "checkpoint", "figures", "tensorboard")
_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "datasets",
    "scikit-learn",
    "numpy",
    "armijo",
)
_RIVAL_PACKAGES = (
    "SaLSa-Optimizer",
    "prodigyopt",
    "dog-optimizer",
    "momo-opt",
    "dadaptation",
    "schedulefree",
    "mechanic-pytorch",
    "gen-optim",
)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it holds either what it held before or all of `text`, even after a crash.

    Args:
        path: The file; its folder exists.
        text: The content, written as UTF-8.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(path.parent, files=False)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def sync(folder: Path, *, files: bool = True) -> None:
    """Wait until the files of a folder, and their names, are on disk; without `files` the names alone."""
    for path in folder.rglob("*") if files else ():
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    # Windows cannot open a folder, and some network file systems cannot sync one; the names are then not synced.
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, as `write_text` does; floats that are not finite become `null`.

    Args:
        path: The file; its folder exists.
        value: Dicts with string keys, lists, tuples, strings, numbers, booleans and `None`.

    Raises:
        TypeError: Something else stands in `value`; the file is as before.
    """
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A JSON value with `None` in place of NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


def refuse_used(folder: Path) -> None:
    """Refuse an output folder that already holds a run, before anything is loaded or written.

    Raises:
        BadInputError: `folder` is a file, or holds something that a run would overwrite.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"The output folder {folder} is a file; name a new folder.")
    existing = [name for name in _RUN_FILES if (folder / name).exists()]
    if any(name in existing for name in (SUMMARY, METRICS, "checkpoint")):
        raise BadInputError(
            f"The output folder {folder} holds another run already ({', '.join(existing)}); name a new folder, or "
            "continue that run with --resume if it was interrupted."
        )
    if existing:
        raise BadInputError(f"The output folder {folder} is not empty ({', '.join(existing)}); name a new folder.")


class RunLog:
    """Writes `metrics.jsonl` and the TensorBoard events of a run.

    Each line is written before the call returns, and nothing is kept in memory. Create it with `create` or `resume`,
    and use it as a context manager.

    Args:
        folder: The run folder, which exists.
        purge_step: TensorBoard ignores events of an earlier part of this run at this step and later ones.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        self._metrics = (folder / METRICS).open("ab")
        try:
            self._events = _events(folder / "tensorboard", purge_step)
        except BaseException:
            self._metrics.close()
            raise

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Start a run in a new folder, which is made.

        Raises:
            BadInputError: `folder` is a file or holds another run (see `refuse_used`).
        """
        refuse_used(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    @classmethod
    def resume(cls, folder: Path, step: int, epochs: int) -> Self:
        """Continue a run from its checkpoint; lines of later steps are removed, since those steps are done again.

        A line that a crash left half-written is removed too.

        Args:
            folder: The run folder.
            step: The last step that the checkpoint contains, 0 for none.
            epochs: How many epochs' evaluations it contains.

        Raises:
            BadInputError: There is no `metrics.jsonl` in `folder`.
        """
        path = folder / METRICS
        if not path.is_file():
            raise BadInputError(f"There is no run to resume in {folder}: it holds no {METRICS}.")
        kept = 0
        with path.open("rb+") as file:
            for line, record in _read_lines(file):
                if record is None or record["step"] > step or (record["kind"] == "epoch" and record["epoch"] > epochs):
                    break
                kept += len(line)
            file.truncate(kept)
        return cls(folder, purge_step=step + 1)

    def step(self, record: dict[str, Any]) -> None:
        """Write a step.

        Args:
            record: `step` and `epoch` (from 1), `loss`, `forwards`, `total_forwards`, `lr` (a number or `None`),
                `components` (dicts with `label`, `status`, `step_size`, `slope`, `trials`, `trial_loss`; empty for
                an optimizer that searches nothing), `merges` (pairs of a kept and an absorbed label) and `ties`
                (trials whose loss was that of the start, to the bit).
        """
        self._write({"kind": "step", **record})
        scalars = {"train/loss": record["loss"], "train/forwards": record["forwards"]}
        if record["lr"] is not None:
            scalars["train/lr"] = record["lr"]
        for component in record["components"]:
            scalars[f"step_size/{component['label']}"] = component["step_size"]
        self._events.scalars(record["step"], scalars)

    def epoch(self, record: dict[str, Any]) -> None:
        """Write an epoch and its evaluation.

        Args:
            record: `epoch`, `step` (its last), `train_loss` (the mean over its steps), `evaluation` (metric name
                to value, and `loss`), `seconds` since the run began (`training`, `evaluation`, `logging`).
        """
        self._write({"kind": "epoch", **record})
        scalars = {f"evaluation/{name}": value for name, value in record["evaluation"].items()}
        self._events.scalars(record["step"], {"train/epoch_loss": record["train_loss"], **scalars})

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._metrics.close()
        self._events.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._metrics.write(json.dumps(finite(record), allow_nan=False).encode() + b"\n")
        self._metrics.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NullLog:
    """The log of every rank but the first; it writes nothing."""

    def step(self, record: dict[str, Any]) -> None:
        """Write nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Write nothing."""


class _Events(Protocol):
    def scalars(self, step: int, values: dict[str, float | None]) -> None: ...
    def close(self) -> None: ...


class _NoEvents:
    def scalars(self, step: int, values: dict[str, float | None]) -> None:
        pass

    def close(self) -> None:
        pass


class _TensorBoardEvents:
    """One event file, written event by event.

    TensorBoard's own writers put the name of the machine into the file's name, and a run folder is made to be
    published; so the events are written with TensorBoard's lower layer.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        # Generated at import, so a type checker knows none of their members.
        self._event: Any = event_pb2
        self._summary: Any = summary_pb2
        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names, so the name starts with the time, in
        # nanoseconds because two files may be opened in one second.
        self._file: BinaryIO = (folder / f"events.out.tfevents.{time.time_ns()}").open("xb")
        self._writer = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            # Status 1, START: TensorBoard ignores this step and later ones in older files.
            self._add(step=purge_step, session_log=self._event.SessionLog(status=1))
        self._file.flush()

    def scalars(self, step: int, values: dict[str, float | None]) -> None:
        tagged = [
            self._summary.Summary.Value(tag=tag, simple_value=math.nan if value is None else value)
            for tag, value in values.items()
        ]
        self._add(step=step, summary=self._summary.Summary(value=tagged))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, **fields: Any) -> None:
        self._writer.write(self._event.Event(wall_time=time.time(), **fields).SerializeToString())


def _events(folder: Path, purge_step: int | None) -> _Events:
    if importlib.util.find_spec("tensorboard") is None:
        logger.info(
            "TensorBoard is not installed, so no events are written; pip install tensorboard to have them. "
            "metrics.jsonl holds the same numbers."
        )
        return _NoEvents()
    return _TensorBoardEvents(folder, purge_step)


@dataclass(frozen=True)
class Run:
    """A run that has been read.

    Attributes:
        folder: The run's folder.
        summary: The content of `summary.json`, `{}` while the run has not written it.
        steps: The lines of the steps, in order.
        epochs: The lines of the epochs, in order.
    """

    folder: Path
    summary: dict[str, Any]
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]


def read_run(folder: Path) -> Run:
    """Read a run folder; a last line that a crash left half-written is skipped.

    Raises:
        BadInputError: There is no run in `folder`, or a file of it is not what a run writes.
    """
    path = folder / METRICS
    if not path.is_file():
        raise BadInputError(f"There is no run in {folder}: it holds no {METRICS}.")
    steps: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, (line, record) in enumerate(_read_lines(file), 1):
            if record is not None:
                (steps if record["kind"] == "step" else epochs).append(record)
            elif line.endswith(b"\n"):
                raise BadInputError(
                    f"Line {number} of {path} is not a step or an epoch of a run; the file was changed."
                )
    return Run(folder, read_summary(folder), steps, epochs)


def read_runs(folder: Path) -> list[Run]:
    """Read every finished or interrupted run in `folder` and below it, in the order of their paths.

    Raises:
        BadInputError: There is none, or one is not readable.
    """
    metrics = sorted(folder.rglob(METRICS))
    runs = [read_run(path.parent) for path in metrics if (path.parent / SUMMARY).is_file()]
    if not runs:
        raise BadInputError(
            f"There is no run in {folder} nor in a folder below it: none holds {METRICS} and {SUMMARY}."
        )
    return runs


def divergence(summary: dict[str, Any]) -> str | None:
    """Say since when a run has diverged and what to do; `None` if it did not diverge."""
    if summary.get("status") != "diverged":
        return None
    if "lr" in summary["optimizer"]["arguments"]:
        remedy = "try a smaller lr, or a line search: --optimizer adamsls"
    elif summary["config"]["precision"] != "fp32":
        remedy = "try --precision fp32"
    elif summary["optimizer"]["name"].startswith("paper-"):
        remedy = f"try --optimizer {summary['optimizer']['name'].removeprefix('paper-')}"
    else:
        name = summary["optimizer"]["name"]
        remedy = f"bound the step size, as in --optimizer {name}:max_step_size=0.01, and look for odd rows in the data"
    return f"The training diverged: the loss is not finite since step {summary['diverged_at']}; {remedy}."


def read_summary(folder: Path) -> dict[str, Any]:
    """Read `summary.json` of a run folder; `{}` if there is none.

    Raises:
        BadInputError: It is not a JSON object.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(f"{path} is not valid JSON ({error}); the file was changed.") from None
    if not isinstance(summary, dict):
        raise BadInputError(f"{path} does not hold a JSON object; the file was changed.")
    return summary


def _read_lines(file: BinaryIO) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield each line with its JSON object, or with `None` if it is not a step or an epoch."""
    for line in file:
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        valid = isinstance(record, dict) and record.get("kind") in ("step", "epoch") and "step" in record
        yield line, record if valid else None


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return versions, commit and hardware, without the names of machine, user or folders.

    Args:
        device: The device of the model.

    Returns:
        `versions` (of Python and of each package that is installed), `commit` (of the checkout that this package is
        imported from, with `-dirty` after it if its sources differ; `None` outside a checkout) and `hardware`
        (`device`, `cpu`, `cores`, `threads`, `memory` in bytes; with a GPU `gpu`, `gpu_memory` in bytes, `cuda`, and
        `float32_matmul`: torch's `highest`, or `high` with TensorFloat-32; `cudnn_tf32`: whether convolutions may).
    """
    device = torch.device(device)
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in (*_PACKAGES, *_RIVAL_PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    hardware: dict[str, Any] = {
        "device": device.type,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": _memory(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware |= {"gpu": properties.name, "gpu_memory": properties.total_memory, "cuda": torch.version.cuda}
        # "highest" is float32 throughout; "high" lets matrix products go through TensorFloat-32.
        hardware["float32_matmul"] = torch.get_float32_matmul_precision()
        hardware["cudnn_tf32"] = torch.backends.cudnn.allow_tf32
    return {"versions": versions, "commit": _commit(Path(__file__).resolve().parents[3]), "hardware": hardware}


@functools.cache
def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def _commit(checkout: Path) -> str | None:
    """The commit of `checkout`, if that is the root of a repository and this package lies in its `src`."""
    try:
        root = _git(checkout, "rev-parse", "--show-toplevel")
        # A package installed inside another repository must not report that one's commit.
        if Path(root).resolve() != checkout or not (checkout / "src" / "armijo_lab").is_dir():
            return None
        commit = _git(checkout, "rev-parse", "HEAD")
        # An untracked module is imported like any other, so it counts.
        changed = _git(checkout, "status", "--porcelain", "--", "src")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Reset the counters of `peak_memory`, where the system can: CUDA, and Linux for this process."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # 5: set the peak resident set back to the present one
    except OSError:
        return


def peak_memory(device: torch.device | str = "cpu") -> dict[str, int]:
    """Return the most memory used so far: `resident` bytes of this process and, with CUDA, `cuda` bytes allocated.

    `resident` is left out where the system does not report it.
    """
    device = torch.device(device)
    peak: dict[str, int] = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        # macOS counts bytes, every other system KiB.
        unit = 1 if sys.platform == "darwin" else 1024
        peak["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak
