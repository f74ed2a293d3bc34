"""`armijo compare`: several optimizers on the same data, batches, initial weights and seeds, in one process."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armijo_lab.commands import command_line, new_folder, only_resume, options, prepare_output
from armijo_lab.errors import BadInputError
from armijo_lab.names import counted, slug

if TYPE_CHECKING:
    from armijo_lab.training import TrainingConfig

__all__ = ["DEFAULT_OPTIMIZERS", "Plan", "compare"]

logger = logging.getLogger("armijo")

# The paper's baseline is a weak one on small sets, so a rate that does well there stands beside it.
DEFAULT_OPTIMIZERS = (
    "adamsls",
    "plasls",
    "sgdsls",
    "adam:lr=2e-5,schedule=cosine",
    "adamw:lr=1e-4,schedule=cosine,warmup=0.1",
)
_PLAN = "plan.json"
_OURS = (_PLAN, "comparison.md", "comparison.csv", "comparison.json")


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        config: All that the runs have in common; its `seed` is the first.
        optimizers: What `methods.parse` reads, each another.
        seeds: How many seeds, ≥ 1: `config.seed`, the next number, and so on.
    """

    config: TrainingConfig
    optimizers: tuple[str, ...]
    seeds: int

    def check(self) -> None:
        """Look at every value.

        Raises:
            BadInputError: A value is out of its range, or an optimizer stands there twice.
        """
        if self.seeds < 1:
            raise BadInputError(
                f"--seeds is {self.seeds}; it counts the runs of each optimizer and must be at least 1."
            )
        for optimizer in self.optimizers:
            dataclasses.replace(self.config, optimizer=optimizer).check()
        dataclasses.replace(self.config, seed=self.config.seed + self.seeds - 1).check()
        names = [slug(optimizer) for optimizer in self.optimizers]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise BadInputError(f"The optimizer {self.optimizers[place]!r} is given twice; give each once.")

    def runs(self) -> list[tuple[TrainingConfig, str]]:
        """The configuration and the folder's name of each run, in the order in which they run.

        Seed by seed, and each seed begins with another optimizer, so that a busy or a warm machine meets all alike.
        """
        planned = []
        for number in range(self.seeds):
            start = number % len(self.optimizers)
            for optimizer in self.optimizers[start:] + self.optimizers[:start]:
                seed = self.config.seed + number
                config = dataclasses.replace(self.config, optimizer=optimizer, seed=seed)
                planned.append((config, f"{slug(optimizer)}-seed{seed}"))
        return planned

    def write(self, folder: Path) -> None:
        """Keep the plan in `folder`, which is made, for `--resume`."""
        from armijo_lab.results.run_folder import write_json

        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _PLAN, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan that `write` kept.

        Raises:
            BadInputError: There is none.
        """
        from armijo_lab.training import TrainingConfig

        try:
            plan = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
            return cls(TrainingConfig(**plan["config"]), tuple(plan["optimizers"]), plan["seeds"])
        except OSError:
            raise BadInputError(f"There is no comparison in {folder} to resume: it holds no {_PLAN}.") from None
        except (ValueError, TypeError, KeyError) as error:
            raise BadInputError(f"{folder / _PLAN} is not the plan of a comparison; the file was changed.") from error


def compare(
    context: typer.Context,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            "--optimizer",
            help=f"Once for each optimizer. {options.OPTIMIZER_HELP}",
            metavar="NAME[:KEY=VALUE,…]",
            rich_help_panel="Model and optimizer",
            show_default=" ".join(DEFAULT_OPTIMIZERS),
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", help="Runs of each optimizer: --seed and the next N-1.", metavar="N", rich_help_panel="Training"
        ),
    ] = 3,
    task: options.Task = None,
    data_dir: options.DataDir = None,
    train: options.Train = None,
    evaluation: options.Evaluation = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    limit: options.Limit = None,
    evaluation_limit: options.EvaluationLimit = None,
    model: options.Model = None,
    paper_protocol: options.PaperProtocol = False,
    epochs: options.Epochs = 5,
    batch_size: options.BatchSize = 32,
    max_length: options.MaxLength = None,
    seed: options.Seed = 0,
    precision: options.Precision = "fp32",
    device: options.Device = "auto",
    output: Annotated[Path | None, options.output("TASK-compare")] = None,
    checkpoint_every: options.CheckpointEvery = None,
    save_models: Annotated[
        bool, typer.Option("--save-models", help="Keep each run's models too.", rich_help_panel="Output")
    ] = False,
    resume: Annotated[Path | None, options.resume("a comparison")] = None,
) -> None:
    """Compare optimizers: same data, same batches, same initial weights, same seeds, one process.

    Each run gets a folder below the output folder, with its figures. The
    table (accuracy as mean ± standard deviation over the seeds, training loss,
    mean log loss, forward passes a step, training time against Adam) is shown
    and written there as comparison.md, .csv and .json, with
    figures/comparison.png.

    Ctrl-C leaves what is finished, and a checkpoint of the run that is going
    on; --resume does the rest.

    \b
    Examples:
      armijo compare --seeds 1
      armijo compare --optimizer adamsls --optimizer plasls:split=projection
      armijo compare --task sst2 --data-dir glue --limit 500 --paper-protocol
      armijo compare --resume runs/20260101-120000-sst2-compare
    """  # noqa: D301 (\b, which keeps the lines that follow as they are, is one character)
    from armijo_lab import training
    from armijo_lab.commands.finetune import data_name
    from armijo_lab.commands.progress import errors, interrupted

    if resume is not None:
        only_resume(context)
        folder = resume
        plan = Plan.read(folder)
        plan.check()
    else:
        base = training.TrainingConfig(
            model=model,
            task=task,
            data_dir=None if data_dir is None else str(data_dir),
            train=None if train is None else str(train),
            evaluation=None if evaluation is None else str(evaluation),
            text=text,
            text_pair=text_pair,
            label=label,
            limit=limit,
            evaluation_limit=evaluation_limit,
            epochs=epochs,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            precision=precision,
            device=device,
            paper_protocol=paper_protocol,
            checkpoint_every=checkpoint_every,
            save_models=save_models,
        )
        named = tuple(name.strip().removesuffix(":") for name in optimizer or DEFAULT_OPTIMIZERS)
        plan = Plan(base, named, seeds)
        plan.check()
        folder = output if output is not None else new_folder(f"{data_name(base)}-compare")
        if any((folder / name).exists() for name in _OURS):
            raise BadInputError(
                f"The output folder {folder} holds another comparison already; name a new folder, or continue that one "
                "with --resume."
            )
        prepare_output(folder)
    again = f"Continue with: armijo compare --resume {shlex.quote(str(folder))}"
    try:
        folders = run_all(plan, folder, command_line(context))
    except training.InterruptedRunError as run:
        interrupted(f"Interrupted after {run.step} of {run.total_steps} steps of {run.folder.name}. {again}")
    except training.CheckpointError as error:
        errors.print(f"{error} {again}", markup=False, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        started = (folder / _PLAN).is_file()
        interrupted(f"Interrupted. {again}" if started else "Interrupted; nothing was started yet.")
    report(folders, folder)


def run_all(plan: Plan, folder: Path, command: str | None) -> list[Path]:
    """Do all runs of the plan that are not complete yet; their folders, optimizer by optimizer.

    Raises:
        BadInputError: The data or the model cannot be used; nothing is written.
        InterruptedRunError: Ctrl-C.
    """
    from armijo_lab import models, training
    from armijo_lab.commands.progress import show

    task = training.load_task(plan.config)
    planned = plan.runs()
    # All that can be refused is refused before the first run, and not after it.
    model, tokenizer = models.load(plan.config.model, task, paper_protocol=plan.config.paper_protocol)
    for config, _ in planned[: len(plan.optimizers)]:
        training.check_fit(config, model, tokenizer)
    plan.write(folder)
    for number, (config, name) in enumerate(planned, 1):
        run_folder = folder / name
        status = _status(run_folder)
        if status == "ended":
            continue
        with show(f"[{number}/{len(planned)}] {config.optimizer}, seed {config.seed}") as observe:
            if status == "resumable":
                training.resume(run_folder, observe=observe)
                continue
            # Read anew for each run: equal seeds give equal weights.
            model, tokenizer = models.load(config.model, task, paper_protocol=config.paper_protocol, seed=config.seed)
            if run_folder.exists():
                shutil.rmtree(run_folder)  # what a killed run of this plan left, without a checkpoint
            training.train(config, task, model, tokenizer, run_folder, observe=observe, command=command)
            del model
            gc.collect()
    ordered = sorted(planned, key=lambda run: plan.optimizers.index(run[0].optimizer))
    return [folder / name for _, name in ordered]


def report(folders: Sequence[Path], folder: Path) -> None:
    """Write the table and the figure of runs that came to their end to `folder`, show the table, name what diverged."""
    from rich.measure import Measurement

    from armijo_lab.commands.progress import errors, output
    from armijo_lab.results import figures, tables
    from armijo_lab.results.run_folder import divergence, read_run, write_json, write_text

    runs = [read_run(path) for path in folders]
    rows = tables.comparison(runs)
    summary = runs[0].summary
    task, hardware = summary["task"], summary["hardware"]
    note = (
        f"{task['description']} {task['train_rows']} rows to train on, {task['eval_rows']} held out. "
        f"± is the standard deviation over the seeds. Training time on {hardware.get('gpu', hardware['cpu'])}, "
        f"{counted(hardware['threads'], 'thread')}, as a ratio within this comparison."
    )
    write_text(folder / "comparison.md", f"# {task['name']}\n\n{tables.to_markdown(rows)}\n{note}\n")
    write_text(folder / "comparison.csv", tables.to_csv(rows))
    write_json(folder / "comparison.json", [dataclasses.asdict(row) for row in rows])
    try:
        for path in folders:
            figures.draw_run(path)
        figures.draw_comparison(runs, folder / "figures" / "comparison.png")
    except ImportError:
        logger.warning("No figures were drawn, because matplotlib is not installed: pip install 'armijo[lab]'.")
    if output.is_terminal:
        table = tables.to_rich(rows)
        # Narrower than its words the table could not be read; the terminal wraps its lines then.
        needed = Measurement.get(output, output.options.update(width=1000), table).minimum
        output.print(table, width=max(output.width, needed))
    else:
        output.print(tables.to_markdown(rows), markup=False, highlight=False)
    output.print(f"written to {folder}", markup=False, highlight=False)
    for run in runs:
        sentence = divergence(run.summary)
        if sentence is not None:
            errors.print(f"{run.folder.name}: {sentence}", markup=False, highlight=False)


def _status(folder: Path) -> str:
    from armijo_lab.results.run_folder import read_run

    if (folder / "checkpoint" / "state.pt").is_file():
        return "resumable"
    if (folder / "summary.json").is_file() and read_run(folder).summary.get("status") in ("completed", "diverged"):
        return "ended"
    return "new"
