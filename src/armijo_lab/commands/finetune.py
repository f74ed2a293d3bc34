"""`armijo finetune`: train one model on one task with one optimizer."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armijo_lab import methods
from armijo_lab.commands import command_line, new_folder, only_resume, options, prepare_output
from armijo_lab.names import counted

if TYPE_CHECKING:
    from armijo_lab.training import TrainingConfig

__all__ = ["finetune"]

logger = logging.getLogger("armijo")

_MOST_STEP_SIZES = 12


def finetune(
    context: typer.Context,
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
    optimizer: Annotated[
        str,
        typer.Option(
            "--optimizer",
            help=options.OPTIMIZER_HELP,
            metavar="NAME[:KEY=VALUE,…]",
            rich_help_panel="Model and optimizer",
        ),
    ] = methods.DEFAULT,
    paper_protocol: options.PaperProtocol = False,
    lora: options.Lora = None,
    lora_alpha: options.LoraAlpha = None,
    lora_targets: options.LoraTargets = None,
    epochs: options.Epochs = 5,
    batch_size: options.BatchSize = 32,
    accumulate: options.Accumulate = None,
    max_length: options.MaxLength = None,
    seed: options.Seed = 0,
    precision: options.Precision = "fp32",
    device: options.Device = "auto",
    output: Annotated[Path | None, options.output("TASK-OPTIMIZER")] = None,
    checkpoint_every: options.CheckpointEvery = None,
    resume: Annotated[Path | None, options.resume("an interrupted run")] = None,
) -> None:
    """Fine-tune a pretrained encoder on labelled texts; no learning rate is needed.

    Without options, and offline: the installed MiniLM learns with AdamSLS which
    part of Python's standard library a docstring comes from. It takes a few
    minutes on two cores.

    The folder it writes holds the best and the last epoch's model (best/,
    last/), a model card (README.md), the results (summary.json), every step
    (metrics.jsonl, tensorboard/) and figures/.

    Several GPUs, or machines, share each batch where torchrun starts the
    command: torchrun --nproc-per-node 2 -m armijo_lab finetune …

    Ctrl-C ends the run after the step that is going on, with a checkpoint;
    --resume continues it.

    \b
    Examples:
      armijo finetune
      armijo finetune --task sst2 --data-dir glue --limit 500 --paper-protocol
      armijo finetune --train mine.csv --text review --label stars
      armijo finetune --task rte --model roberta-base --precision bf16
      armijo finetune --optimizer adam:lr=2e-5,schedule=cosine --seed 1
      armijo finetune --lora 8 --batch-size 8 --accumulate 4
      armijo finetune --resume runs/20260101-120000-sst2-adamsls
    """  # noqa: D301 (\b, which keeps the lines that follow as they are, is one character)
    from armijo_lab import ranks, training
    from armijo_lab.commands.progress import errors, interrupted, show

    group = ranks.current_ranks()
    folder = resume
    if folder is not None:
        only_resume(context)
        # The first rank may already have written the report when another rank checks.
        if training.needs_report(folder) or not (group.first or training.has_checkpoint(folder)):
            if group.first:
                _report_unless_interrupted(folder)
            return
    try:
        if folder is not None:
            with show(f"resuming {folder}") as observe:
                training.resume(folder, observe=observe, command=None)
        else:
            optimizer = optimizer.strip().removesuffix(":")
            config = training.TrainingConfig(
                optimizer=optimizer,
                model=model,
                task=task,
                data_dir=_text(data_dir),
                train=_text(train),
                evaluation=_text(evaluation),
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
                lora=lora,
                lora_alpha=lora_alpha,
                lora_targets=lora_targets,
                accumulate=accumulate,
                processes=group.size if group.size > 1 else None,
                checkpoint_every=checkpoint_every,
            )
            config.check()
            folder = output if output is not None else new_folder(f"{data_name(config)}-{optimizer}")
            if group.first:
                prepare_output(folder)
            with show(f"{optimizer} on {data_name(config)}") as observe:
                training.run(config, folder, observe=observe, command=command_line(context))
    except training.InterruptedRunError as run:
        interrupted(f"Interrupted after {run.step} of {run.total_steps} steps. {_continue(run.folder)}")
    except training.CheckpointError as error:
        how = f" {_continue(folder)}" if folder is not None and training.has_checkpoint(folder) else ""
        errors.print(f"{error}{how}", markup=False, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        if folder is None or not (training.has_checkpoint(folder) or training.needs_report(folder)):
            interrupted("Interrupted; there is no checkpoint, so the run has to be started again.")
        interrupted(f"Interrupted. {_continue(folder)}")
    if group.first:
        _report_unless_interrupted(folder)


def _report_unless_interrupted(folder: Path) -> None:
    try:
        report(folder)
    except KeyboardInterrupt:
        from armijo_lab.commands.progress import interrupted

        interrupted(f"Interrupted before the figures and the card were made. {_continue(folder)}")


def _continue(folder: Path) -> str:
    return f"Continue with: armijo finetune --resume {shlex.quote(str(folder))}"


def data_name(config: TrainingConfig) -> str:
    """Return a short name of the data, for folders and titles."""
    if config.train is not None:
        return Path(config.train).stem
    return config.task if config.task is not None else "embedded"


def report(folder: Path) -> None:
    """Draw a finished run's figures, write its model card, and print its results in a few lines.

    Raises:
        typer.Exit: The training diverged; the code is 1.
    """
    from armijo_lab.commands.progress import errors, output
    from armijo_lab.results import card, figures
    from armijo_lab.results.run_folder import divergence, read_run, write_text

    try:
        figures.draw_run(folder)
    except ImportError:
        logger.warning("No figures were drawn, because matplotlib is not installed: pip install 'armijo[lab]'.")
    summary = read_run(folder).summary
    write_text(folder / "README.md", card.model_card(summary))
    for line in _lines(summary, folder):
        output.print(line, markup=False, highlight=False)
    diverged = divergence(summary)
    if diverged is not None:
        errors.print(diverged, markup=False, highlight=False)
        raise typer.Exit(1)


def _lines(summary: dict[str, Any], folder: Path) -> list[str]:
    result, metric = summary["result"], summary["task"]["metrics"][0]
    best, last = result["best"], result["last"]
    majority = "" if result["majority"] is None else f" (the majority class alone: {result['majority']:.3f})"
    lines = [
        f"{metric} {_score(best[metric])} after epoch {best['epoch']}, {_score(last[metric])} after the last{majority}",
        f"{counted(summary['steps'], 'step')}, {summary['forwards'] / summary['steps']:.2f} forward passes a step, "
        f"{summary['seconds']['training']:.0f} s of training",
    ]
    components = summary["optimizer"]["components"]
    if components:
        sizes = [f"{component['label']} {component['step_size']:.2g}" for component in components]
        if len(sizes) > _MOST_STEP_SIZES:
            ordered = sorted(component["step_size"] for component in components)
            sizes = [f"{ordered[0]:.2g} to {ordered[-1]:.2g} in {len(sizes)} components (all in summary.json)"]
        lines.append(f"step sizes at the end: {', '.join(sizes)}")
    pair = ' --text-pair "…"' if summary["task"]["pairs"] else ""
    hint = (
        f'; try: armijo predict {shlex.quote(str(folder))} --text "…"{pair}' if summary["status"] == "completed" else ""
    )
    lines.append(f"written to {folder}{hint}")
    return lines


def _score(value: float | None) -> str:
    # Summaries hold null for numbers that are not finite.
    return "not finite" if value is None else f"{value:.3f}"


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
