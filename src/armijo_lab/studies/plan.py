"""The studies: for each a list of training configurations, which options change, and what its page shows."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch

from armijo_lab import methods
from armijo_lab.errors import BadInputError
from armijo_lab.results import extra_tables
from armijo_lab.results.cells import Cell
from armijo_lab.results.published import published_table
from armijo_lab.tasks import glue
from armijo_lab.training import TrainingConfig

__all__ = [
    "EXECUTION_OPTIONS",
    "STUDIES",
    "Options",
    "Study",
    "as_dict",
    "cells",
    "label",
    "read",
    "recover_options",
    "runs",
]


@dataclass
class Options:
    """The options of any study; `None` leaves a value to the study.

    Attributes:
        study: A name of `STUDIES`.
        seeds: How many seeds, 0 the first.
        tasks: Tasks of GLUE, separated by commas.
        select: A regular expression; only cells whose optimizer it matches completely are run.
        model: A folder, a name on the hub, or `random:SHAPE`; `None` for the embedded weights.
        data_dir: The folder of GLUE's files; `None` for the hub.
        limit: The most rows to train on; 0 for all.
        evaluation_limit: The most rows to evaluate on after each epoch; 0 for all.
        epochs: Epochs of each run.
        batch_size: Rows per step, where the study does not vary it.
        max_length: Tokens after which a text is cut.
        protocol: `paper` (no dropout, rows in their order, a linear head) or `clean` (dropout, shuffled rows).
        precision: fp32, bf16 or fp64, where the study does not vary it.
        device: auto, cpu, cuda.
        threads: Threads of each run; `None` leaves it to torch.
        processes: Processes of each run, which share its rows; with CUDA each has its own GPU.
        checkpoint_every: Steps between checkpoints, for long runs.
        results: The folder of the records.
        work: The folder of unfinished runs.
    """

    study: str = "???"
    seeds: int | None = None
    tasks: str | None = None
    select: str | None = None
    model: str | None = None
    data_dir: str | None = None
    limit: int | None = None
    evaluation_limit: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    max_length: int | None = None
    protocol: str | None = None
    precision: str | None = None
    device: str = "auto"
    threads: int | None = None
    processes: int | None = None
    checkpoint_every: int | None = None
    results: str = "results"
    work: str = "runs/studies"


EXECUTION_OPTIONS = ("results", "work", "data_dir", "device", "threads", "checkpoint_every")
"""The options that decide where and how a run is done, but not what it computes."""


@dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it.

    Attributes:
        name: As in `armijo study NAME`.
        title: A few words.
        question: The question that it answers, one sentence.
        cells: The runs without their seeds: what differs from `base`, in the order of the table.
        base: What all runs have in common, where no option changes it.
        tasks: The tasks of each cell that names none.
        seeds: The number of seeds, where no option changes it.
        varied: The fields that distinguish cells of one task and optimizer.
        tables: What the study's page shows after the common tables: functions from cells to Markdown, `""` for none.
        figures: The figures of its page, names of `results.page_figures.FIGURES`.
    """

    name: str
    title: str
    question: str
    cells: Callable[[], Iterable[dict[str, Any]]]
    base: dict[str, Any]
    tasks: tuple[str, ...] = ("sst2",)
    seeds: int = 3
    varied: tuple[str, ...] = ()
    tables: tuple[Callable[[Sequence[Cell]], str], ...] = ()
    figures: tuple[str, ...] = ("accuracy", "epochs", "step-sizes")


SMALL: dict[str, Any] = {
    "limit": 500,
    "evaluation_limit": 400,
    "evaluate_all": True,
    "epochs": 5,
    "batch_size": 32,
    "max_length": 128,
    "paper_protocol": True,
}
"""The paper's small sets and protocol; texts are cut at 128 tokens instead of 256."""
FULL: dict[str, Any] = {**SMALL, "limit": None, "evaluation_limit": None, "evaluate_all": False, "max_length": 256}
"""The paper's whole sets."""

_PAPER = ("adam", "paper-sgdsls", "paper-adamsls", "paper-plasls", "paper-plasls:n_groups=layers")
_OURS = ("sgdsls", "adamsls", "plasls")
_BEFORE = (
    "growing-sgdsls",
    "growing-adamsls",
    "growing-adamsls:c=0.5",
    "growing-plasls",
    "growing-plasls:split=projection",
)
"""What they were until November 2026."""
_RATES = ("1e-5", "2e-5", "5e-5", "1e-4", "2e-4", "5e-4")


def _optimizers(*names: str) -> list[dict[str, Any]]:
    return [{"optimizer": name} for name in names]


def _paper() -> list[dict[str, Any]]:
    return _optimizers(*_PAPER, "adamsls", "growing-adamsls", "growing-plasls")


def _granularity() -> list[dict[str, Any]]:
    splits = [f"split=layer,n_groups={groups}" for groups in (1, 2, 4)]
    names = ["adamsls", "plasls", "plasls:split=projection"]
    names += [
        "growing-adamsls",
        *(f"growing-plasls:{split}" for split in splits),
        "growing-plasls",
        "growing-plasls:n_groups=layers",
    ]
    names += [f"growing-plasls:split={split}" for split in ("projection", "module", "tensor")]
    names += ["growing-plasls:schedule=each", "growing-plasls:split=projection,schedule=each"]
    return _optimizers(*names)


def _merging() -> list[dict[str, Any]]:
    # 1e-12 is the default.
    thresholds = [
        "growing-plasls",
        *(f"growing-plasls:merge_below={below}" for below in ("1e-8", "1e-6", "1e-5", "1e-4")),
    ]
    rules = [f"growing-plasls:merge={rule},merge_below=1e-4" for rule in ("geometric_mean", "minimum", "neighbour")]
    return _optimizers(*thresholds, *rules, "growing-plasls:merge=never")


def _frozen() -> list[dict[str, Any]]:
    names = [f"paper-plasls:baseline={baseline}" for baseline in ("isolated", "moved")]
    cells = [{"optimizer": name, "precision": p} for p in ("fp32", "fp64", "bf16") for name in names]
    cells += [{"optimizer": "growing-plasls", "precision": p} for p in ("fp32", "fp64", "bf16")]
    return cells


def _rivals() -> list[dict[str, Any]]:
    names = [*_OURS, *_BEFORE]
    names += [
        f"{name}:lr={rate},schedule={schedule},warmup=0.1"
        for name in ("adam", "adamw")
        for schedule in ("cosine", "linear")
        for rate in _RATES
    ]
    names += [f"sgd:lr={rate},schedule=cosine" for rate in ("1e-3", "1e-2", "1e-1")]
    names += ["salsa", "prodigy", "prodigy:schedule=cosine", "dadaptation", "mechanic", "dog", "ldog", "momo"]
    names += ["momo-adam", "schedulefree", "schedulefree:lr=1e-4", "schedulefree:lr=5e-4", "gen"]
    return _optimizers(*names)


def _sensitivity() -> list[dict[str, Any]]:
    # By default the first guess is 0.1, c is 0.1, and in the paper's search growth is 2^(1/500) and shrink 0.9.
    names = ["growing-adamsls", "growing-plasls", "paper-adamsls"]
    names += [f"{name}:initial_step_size={value}" for name in names[:2] for value in ("1e-5", "1e-3", "1", "10")]
    names += [
        f"{name}:c={value}" for name in ("growing-adamsls", "growing-plasls") for value in ("0.01", "0.3", "0.5", "0.9")
    ]
    names += [f"paper-adamsls:growth={value}" for value in ("1", "1.01", "1.1", "2")]
    names += [f"paper-adamsls:shrink={value}" for value in ("0.5", "0.7")]
    names += [f"growing-plasls:joint_steps={value}" for value in (0, 20)]
    cells = _optimizers(*names)
    cells += [{"optimizer": name, "batch_size": b} for name in names[:2] for b in (4, 8, 16, 64, 128, 256)]
    # What suits one task may not suit the next.
    asked = ("growing-adamsls", "growing-adamsls:c=0.5")
    cells += [{"optimizer": name, "task": task} for task in _ALL[1:] for name in asked]
    return cells


def _overhead() -> list[dict[str, Any]]:
    names = ("adam", "growing-sgdsls", "growing-adamsls", "growing-plasls")
    once = {"epochs": 2, "evaluation_limit": 64, "evaluate_all": False}
    cells = [{**once, "limit": rows, "optimizer": name} for rows in (128, 256, 512) for name in names]
    cells += [{**once, "limit": 256, "batch_size": b, "optimizer": name} for b in (8, 128) for name in names]
    cells += [{**once, "limit": 256, "max_length": 16, "optimizer": name} for name in names]
    counted = (
        "growing-plasls:n_groups=1",
        "growing-plasls:split=projection",
        "growing-plasls:split=module",
        "growing-plasls:schedule=each",
    )
    cells += [{**once, "limit": 256, "optimizer": name} for name in counted]
    # Small batches, so that a model that takes seconds a step takes more than a few.
    for shape, rows in (("tiny", 256), ("mini", 256), ("small", 256), ("base", 64), ("large", 64)):
        few = {**once, "limit": rows, "batch_size": 8, "model": f"random:bert-{shape}"}
        cells += [{**few, "optimizer": name} for name in names]
    return cells


def _annealing() -> list[dict[str, Any]]:
    adams = ("adam:lr=1e-4,schedule=cosine", "adamw:lr=1e-4,schedule=linear")
    return _optimizers(*adams, "growing-sgdsls", "adamsls", "growing-adamsls", "growing-plasls")


def _generalise() -> list[dict[str, Any]]:
    clean: dict[str, Any] = {"paper_protocol": False}
    whole: dict[str, Any] = {**clean, "limit": None, "evaluation_limit": None, "evaluate_all": False}
    ours, tuned = ("adamsls", "plasls", "growing-adamsls", "growing-plasls"), "adamw:lr={},schedule=cosine,warmup=0.1"
    cells: list[dict[str, Any]] = []
    for name in (*ours, tuned.format("1e-4")):
        # The model of the option `model`, on the embedded set.
        cells.append({**whole, "task": None, "optimizer": name})
    untrained = [("sst2", f"{family}-tiny", clean) for family in ("bert", "roberta", "distilbert")]
    untrained += [("digits", "vit-tiny", whole), ("digits", "resnet-tiny", whole), ("characters", "gpt-tiny", whole)]
    rates = ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2")
    exchanged = ("adamsls:guess=growth", "adamsls:share=inf")
    for task, shape, settings in untrained:
        for name in (*ours, *exchanged, *map(tuned.format, rates)):
            cells.append({**settings, "task": task, "model": f"random:{shape}", "optimizer": name})
    return cells


_ALL = ("sst2", "mrpc", "qnli", "mnli")

_STUDIES = (
    Study(
        "paper-small",
        "The paper's small sets",
        "Do SGDSLS, ADAMSLS and PLASLS, to the letter of the paper, beat its Adam on 500 rows?",
        _paper,
        SMALL,
        _ALL,
        seeds=5,
        tables=(published_table("small"), extra_tables.ranks),
    ),
    Study(
        "paper-full",
        "The paper's whole sets",
        "And on the whole sets?",
        _paper,
        FULL,
        _ALL,
        seeds=5,
        tables=(published_table("full"), extra_tables.ranks, extra_tables.peaks),
    ),
    Study(
        "granularity",
        "How many step sizes",
        "Does a step size for each part of the network help, and how fine should the parts be?",
        _granularity,
        SMALL,
        ("sst2", "mrpc"),
        tables=(extra_tables.against_rivals,),
    ),
    Study(
        "merging",
        "Merging components",
        "When should two components become one, and by which rule?",
        _merging,
        SMALL,
        ("sst2", "mrpc"),
    ),
    Study(
        "overhead",
        "What a step costs",
        "How much longer than with Adam does an epoch take?",
        _overhead,
        SMALL,
        ("sst2",),
        seeds=1,
        varied=("limit", "batch_size", "max_length", "model"),
        tables=(extra_tables.costs,),
        figures=("time", "step-sizes"),
    ),
    Study(
        "frozen",
        "What drives step sizes to zero",
        "Is it rounding, or the order in which components move?",
        _frozen,
        SMALL,
        ("sst2",),
        varied=("precision",),
        tables=(extra_tables.decidability,),
    ),
    Study(
        "annealing",
        "Long runs",
        "Does accuracy fall after its peak?",
        _annealing,
        {**SMALL, "epochs": 20},
        ("mrpc",),
        tables=(extra_tables.peaks,),
    ),
    Study(
        "generalise",
        "Other models, other data",
        "Does a component freeze or a run collapse elsewhere?",
        _generalise,
        SMALL,
        ("sst2",),
        varied=("model",),
    ),
    Study(
        "rivals",
        "Against the rivals",
        "What does a user get who picks another optimizer, and what does tuning one cost?",
        _rivals,
        SMALL,
        _ALL,
        tables=(extra_tables.against_rivals,),
    ),
    Study(
        "sensitivity",
        "What the numbers of the search decide",
        "How far may first guess, growth, c, shrink, joint steps and batch size be off?",
        _sensitivity,
        SMALL,
        ("sst2",),
        varied=("batch_size",),
    ),
)
STUDIES: dict[str, Study] = {study.name: study for study in _STUDIES}
"""Every study, by name."""


def read(study: str, arguments: Sequence[str]) -> Options:
    """Read the options of a study from `key=value`, without Hydra.

    Raises:
        BadInputError: One cannot be read.
    """
    hints = get_type_hints(Options)
    values: dict[str, Any] = {"study": study}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in hints or key == "study":
            keys = ", ".join(key for key in hints if key != "study")
            what = f"There is no option {argument!r}" if equals else f"The option {argument!r} cannot be read"
            raise BadInputError(f"{what}; write key=value with one of {keys}.")
        try:
            if value == "null" and hints[key] is str:
                raise BadInputError(f"The option {key} cannot be left empty.")
            values[key] = None if value == "null" else int(value) if hints[key] == int | None else value
        except ValueError:
            raise BadInputError(f"The option {key} is {value!r}; it must be a whole number.") from None
    return Options(**values)


def runs(options: Options) -> list[TrainingConfig]:
    """Return the runs of a study, seed by seed, so that an unfinished study has complete seeds.

    Raises:
        BadInputError: There is no such study, or an option is out of its range.
    """
    if options.study not in STUDIES:
        raise BadInputError(f"There is no study {options.study!r}; choose one of {', '.join(STUDIES)}.")
    if options.protocol not in (None, "paper", "clean"):
        raise BadInputError(f"There is no protocol {options.protocol!r}; choose paper or clean.")
    counts = (("seeds", "runs of each cell"), ("threads", "threads of a run"), ("processes", "processes of a run"))
    for key, what in counts:
        value = getattr(options, key)
        if value is not None and value < 1:
            raise BadInputError(f"{key} is {value}; it counts the {what} and must be at least 1.")
    for key in ("limit", "evaluation_limit"):
        value = getattr(options, key)
        if value is not None and value < 0:
            raise BadInputError(f"{key} is {value}; it is the most rows to use, at least 1, or 0 for all of them.")
    try:
        torch.device("cpu" if options.device == "auto" else options.device)
    except RuntimeError:
        raise BadInputError(f"There is no device {options.device!r}; choose auto, cpu, cuda, cuda:0, mps.") from None
    study = STUDIES[options.study]
    base = {**study.base, "save_models": False}
    given = {key: getattr(options, key) for key in ("epochs", "batch_size", "max_length", "precision", "model")}
    given |= {key: getattr(options, key) for key in ("limit", "evaluation_limit")}
    base |= {key: value for key, value in given.items() if value is not None}
    if options.protocol is not None:
        base["paper_protocol"] = options.protocol == "paper"
    base |= {"data_dir": options.data_dir, "device": options.device, "checkpoint_every": options.checkpoint_every}
    base["processes"] = options.processes if options.processes != 1 else None
    given |= {"paper_protocol": options.protocol, "task": options.tasks}
    for key, value in given.items():
        if value is not None and all(key in cell for cell in study.cells()):
            raise BadInputError(
                f"The study {study.name} sets {_OPTION_NAMES.get(key, key)} itself; leave the option out."
            )
    tasks = study.tasks if options.tasks is None else tuple(task.strip() for task in options.tasks.split(","))
    for task in tasks:
        if task not in glue.TASKS:
            raise BadInputError(f"There is no task {task!r}; tasks takes names of {', '.join(glue.TASKS)}.")
    planned: list[TrainingConfig] = []
    seeds = options.seeds if options.seeds is not None else study.seeds
    pattern = _pattern(options.select)
    for seed, task, cell in itertools.product(range(seeds), tasks, study.cells()):
        if not pattern.fullmatch(cell["optimizer"]):
            continue
        values = {"task": task, **base, **cell, "seed": seed}
        if values["task"] not in glue.TASKS:
            values["data_dir"] = None
        for key in ("limit", "evaluation_limit"):
            values[key] = values[key] or None
        if not methods.parse(cell["optimizer"]).resumable:
            values["checkpoint_every"] = None
        config = TrainingConfig(**values)
        # The device is checked on the machine that runs it.
        dataclasses.replace(config, device="auto").check()
        if config not in planned:
            planned.append(config)
    if not planned:
        names = list(dict.fromkeys(cell["optimizer"] for cell in study.cells()))
        kinds = list(dict.fromkeys(name.partition(":")[0] for name in names))
        raise BadInputError(
            f"select={options.select} matches no whole optimizer name of {study.name}. The names start with "
            f"{', '.join(kinds)}, for example {max(names, key=len)}; "
            f"select='{kinds[0]}.*' selects all that start with {kinds[0]}."
        )
    return planned


def cells(options: Options) -> list[tuple[dict[str, Any], list[TrainingConfig]]]:
    """Return the runs of a study by cell: what they have in common, and the run of each seed."""
    grouped: dict[str, tuple[dict[str, Any], list[TrainingConfig]]] = {}
    for config in runs(options):
        common = as_dict(config)
        del common["seed"]
        grouped.setdefault(repr(sorted(common.items())), (common, []))[1].append(config)
    return list(grouped.values())


def label(study: str, config: TrainingConfig) -> str:
    """Describe a run by task, optimizer, what the study varies, and seed."""
    parts = [config.task or "embedded", config.optimizer]
    values = as_dict(config)
    parts += [f"{key}={values[key]}" for key in STUDIES[study].varied if key in values]
    return " ".join([*parts, f"seed {config.seed}"])


def recover_options(study: str, config: Mapping[str, Any]) -> list[str]:
    """Return the options, as `key=value`, with which a study does the run of a record.

    They do not contain what the study varies.
    """
    chosen = STUDIES[study]
    named = ("task", "optimizer", *chosen.varied)
    alike = (c for c in chosen.cells() if all(config.get(key) == value for key, value in c.items() if key in named))
    base = {**chosen.base, **next(alike, {})}
    changed: list[str] = []
    for key in ("model", "limit", "evaluation_limit", "epochs", "batch_size", "max_length", "precision", "processes"):
        usual = base.get(key, _DEFAULTS[key])
        value = config.get(key, _DEFAULTS[key])
        if key not in chosen.varied and value != usual:
            changed.append(f"{key}={0 if value is None else value}")
    paper = bool(config.get("paper_protocol", False))
    if paper != base["paper_protocol"]:
        changed.append(f"protocol={'paper' if paper else 'clean'}")
    return changed


def _pattern(text: str | None) -> re.Pattern[str]:
    try:
        return re.compile(".*" if text is None else text)
    except re.error as error:
        raise BadInputError(
            f"select={text} is not a regular expression ({error}); try select='adamsls|salsa'."
        ) from None


CHANGED_DEFAULTS: dict[str, Any] = {}
"""The first default of each `TrainingConfig` field whose default has changed since; never remove an entry.

The records in results/ are found by an identity that leaves out what was the default when they were written.
"""
ALWAYS_NAMED = ("task", "optimizer", "seed", "max_length")
"""The fields that an identity always contains, so that their defaults may change."""
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainingConfig)} | CHANGED_DEFAULTS


def as_dict(config: TrainingConfig) -> dict[str, Any]:
    """Return a configuration as JSON values: the fields in `ALWAYS_NAMED`, and those that differ from their default.

    Runs keep their identity when training gets a new field, or with `CHANGED_DEFAULTS` another default.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values["max_length"] = config.tokens
    return {key: value for key, value in values.items() if key in ALWAYS_NAMED or value != _DEFAULTS[key]}


_OPTION_NAMES = {"paper_protocol": "protocol", "task": "tasks"}
