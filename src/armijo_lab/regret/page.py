"""The page of the study: regret of each optimizer, cell by cell and in the mean, and the figure."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from armijo_lab.regret.grid import CELLS, CHOSEN_ON, CONFIRMED_ON, EVERYWHERE, OTHERS, RATES, RATES_OF, REGIMES, Cell

__all__ = [
    "OPTIMIZERS",
    "SWEEP",
    "WITHOUT",
    "Scores",
    "belongs",
    "bootstrap",
    "identity",
    "mean_regret",
    "read",
    "regret",
    "sweep",
    "write",
]

OURS = "adamsls"
BEFORE = "growing-adamsls"
SWEEP = tuple(f"adamw:lr={rate},warmup=0.1" for rate in RATES)
WITHOUT = {
    "adamsls:beta1=0.9": "with momentum, β1 = 0.9",
    "adamsls:guess=growth": "`Growth` instead of `Hypergradient`",
    "adamsls:share=inf": "without the bound η ≤ f/(2S)",
    "adamsls:share=1": "the bound η ≤ f/S",
    "adamsls:when=always": "a search in each step",
    "adamsls:c=0.1": "c = 0.1",
}
"""The default with one of its parts exchanged, and what the page calls it."""
COMPONENTS = {"plasls": "PLASLS by layer", "growing-plasls": "PLASLS until November 2026, by layer"}
"""More than one step size, and what the page calls it; of heads, which have one layer, there is none."""
GRADIENT = {"sgdsls": "SGDSLS", "growing-sgdsls": "SGDSLS until November 2026"}
"""Along the gradient."""
OPTIMIZERS = (OURS, *WITHOUT, BEFORE, *COMPONENTS, *GRADIENT, *SWEEP, *OTHERS)
"""All that the study runs; of the sweep, in each cell, the rates of its regime."""


def sweep(cell: Cell) -> tuple[str, ...]:
    """AdamW with the rates of the cell's regime."""
    return tuple(f"adamw:lr={rate},warmup=0.1" for rate in RATES_OF[cell.regime])


def belongs(optimizer: str, cell: Cell) -> bool:
    """Whether an optimizer is run in a cell: rates in those of their regime, exchanged parts with heads alone."""
    if optimizer in SWEEP:
        return optimizer in sweep(cell)
    return (cell.regime != "head") if optimizer in COMPONENTS else (cell.regime == "head" or optimizer not in WITHOUT)


Scores = Mapping[tuple[Cell, str, int], float]
"""A score of each run, higher is better, by cell, optimizer and seed."""

_DRAWS = 2000
"""Of the bootstrap."""


def read(folder: Path) -> list[dict[str, Any]]:
    """The records, in the order in which they were written."""
    lines = (line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines())
    return [json.loads(line) for line in lines if line.strip()]


def identity(record: Mapping[str, Any]) -> tuple[Cell, str, int]:
    """Cell, optimizer and seed of a record."""
    cell = Cell(record["task"], record["regime"], record["rows"], record["batch_size"])
    return cell, record["optimizer"], record["seed"]


def scores(records: Iterable[Mapping[str, Any]], which: str = "last", metric: str = "accuracy") -> dict[Any, float]:
    """A score of each run: its accuracy, or its negated log loss (that of a diverged run is infinite)."""
    found: dict[Any, float] = {}
    for record in records:
        value = record[which][metric]
        found[identity(record)] = value if metric == "accuracy" else -math.inf if value is None else -value
    return found


def regret(table: Scores, cell: Cell, optimizer: str, seeds: Sequence[int]) -> float:
    """The best rate's mean score in a cell, in hindsight, less the optimizer's; NaN where runs are missing."""

    def mean(name: str) -> float:
        values = [table.get((cell, name, seed), math.nan) for seed in seeds]
        return sum(values) / len(values)

    best = [mean(name) for name in sweep(cell)]
    return math.nan if any(map(math.isnan, best)) else max(best) - mean(optimizer)


def foresight_regret(table: Scores, cell: Cell, optimizer: str, seeds: Sequence[int]) -> float:
    """As `regret`, against the rate whose mean over the other seeds is best, seed by seed.

    The best of nine noisy means is better than the same rate would be again; here a rate is chosen on runs that it is
    not judged on. NaN with one seed.
    """
    lost = []
    for seed in seeds:
        others = [other for other in seeds if other != seed]
        if not others:
            return math.nan
        chosen = max(sweep(cell), key=lambda name: sum(table.get((cell, name, s), math.nan) for s in others))
        lost.append(table.get((cell, chosen, seed), math.nan) - table.get((cell, optimizer, seed), math.nan))
    return statistics.mean(lost)


def mean_regret(table: Scores, cells: Sequence[Cell], optimizer: str, seeds: Sequence[int]) -> float:
    """The mean over cells."""
    return sum(regret(table, cell, optimizer, seeds) for cell in cells) / len(cells)


def bootstrap(number: Callable[[Sequence[int]], float], seeds: Sequence[int]) -> tuple[float, float]:
    """A 95 % interval of a number that depends on seeds, by drawing them with replacement, paired over optimizers."""
    draw = random.Random(0)
    values = sorted(number(draw.choices(seeds, k=len(seeds))) for _ in range(_DRAWS))
    return values[int(0.025 * _DRAWS)], values[int(0.975 * _DRAWS)]


def complete(records: Sequence[Mapping[str, Any]]) -> tuple[list[Cell], list[int]]:
    """The seeds that are done in some cell, sweep and default, and the cells in which all of these are."""
    done = {identity(record) for record in records}

    def has(cell: Cell, seed: int) -> bool:
        return all((cell, name, seed) in done for name in (OURS, *sweep(cell)))

    seeds = [seed for seed in sorted({seed for *_, seed in done}) if any(has(cell, seed) for cell in CELLS)]
    return [cell for cell in CELLS if seeds and all(has(cell, seed) for seed in seeds)], seeds


def write(folder: Path, pages: Path) -> None:
    """Write `regret.md` and `images/regret.png` into the folder of pages.

    Args:
        folder: The folder of the records, and of `notes.md`, a person's conclusions.
        pages: Where the page goes.
    """
    found, notes = read(folder), folder / "notes.md"
    records = [record for record in found if record["seed"] in CHOSEN_ON]
    confirming = [record for record in found if record["seed"] in CONFIRMED_ON]
    parts = ["# Regret", _INTRODUCTION, "![Accuracy over the rate of AdamW, by regime](images/regret.png)"]
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    regimes = []
    for regime in REGIMES:
        chosen = [record for record in records if record["regime"] == regime]
        cells, seeds = complete(chosen)
        if cells:
            regimes.append((regime, chosen, cells, seeds))
    if len(regimes) > 1:
        parts += ["## One rate for everything", *_everywhere(regimes)]
    for regime, chosen, cells, seeds in regimes:
        parts += [f"## {_TITLES[regime]}", *_regime(chosen, cells, seeds)]
    for regime in REGIMES:
        chosen = [record for record in confirming if record["regime"] == regime]
        cells, seeds = complete(chosen)
        if cells:
            parts += [f"## Confirmation: {_NAMES[regime]}", *_regrets(chosen, cells, seeds)[1]]
    (pages / "images").mkdir(parents=True, exist_ok=True)
    (pages / "regret.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    _draw(records, pages / "images" / "regret.png")


_TITLES = {"head": "A head on frozen features", "lora": "LoRA", "whole": "The whole model"}
_NAMES = {"head": "a head on frozen features", "lora": "LoRA", "whole": "the whole model"}
"""The same, within a line."""
_INTRODUCTION = """\
How much does a default lose that knows no rate?

    armijo study regret data_dir=glue            # or python -m armijo_lab.regret data_dir=glue
    python -m armijo_lab.regret report

In each cell (task, rows, batch size) AdamW was run with several rates, warm-up and linear decay. *Regret* is the mean
score of the rate that was best in that cell, seen in hindsight, less the score of an optimizer that has no such
hindsight: 0 is as good as a sweep, negative is better. Accuracy in points on all held-out rows after the last step; log
loss in nats. Intervals: 95 %, over seeds drawn with replacement; the best rate is found anew in each draw. The best of
several noisy means flatters the sweep: *rate chosen on other seeds* is the regret against the rate that was best on the
seeds other than the one it is judged on."""


def _everywhere(regimes: Sequence[tuple[str, Sequence[Mapping[str, Any]], list[Cell], list[int]]]) -> list[str]:
    """AdamSLS and each rate that all regimes have, over the regimes."""
    titles = " | ".join(_NAMES[regime] for regime, *_ in regimes)
    table = [f"| regret, mean | {titles} | mean of these | worst cell |\n|---|{'---|' * (len(regimes) + 2)}"]
    rates = [f"adamw:lr={rate},warmup=0.1" for rate in EVERYWHERE]
    for name, which in [(OURS, "last"), (OURS, "average"), *((rate, "last") for rate in rates)]:
        means, worst = list[float](), -math.inf
        for _, records, cells, seeds in regimes:
            judged = [record for record in records if record["optimizer"] == name]
            scored = {**scores(records), **scores(judged, which)}
            lost = [100 * regret(scored, cell, name, seeds) for cell in cells]
            means.append(statistics.mean(lost))
            worst = max(worst, *lost)
        shown = _shown(name) + (", its average" if which == "average" else "")
        numbers = " | ".join(f"{mean:.2f}" for mean in means)
        table.append(f"| {shown} | {numbers} | {statistics.mean(means):.2f} | {worst:.1f} |")
    return ["\n".join(table)]


def _regime(records: Sequence[Mapping[str, Any]], cells: Sequence[Cell], seeds: Sequence[int]) -> list[str]:
    """The tables of a regime."""
    accuracy, loss = scores(records), scores(records, metric="log_loss")
    names, regrets = _regrets(records, cells, seeds)
    compared = [name for name in names if name not in SWEEP]
    table = ["| cell | best rate | its accuracy | " + " | ".join(_shown(n) for n in compared) + " |"]
    table.append("|" + "---|" * table[0].count("|", 1))
    for cell in cells:
        best = max(sweep(cell), key=lambda name: statistics.mean(accuracy[cell, name, seed] for seed in seeds))
        shown_rate = best.partition("lr=")[2].partition(",")[0]
        table.append(
            f"| {cell.task}, {cell.rows} rows, {cell.batch_size} | {shown_rate} | "
            + " | ".join(
                [_spread([accuracy[cell, best, seed] for seed in seeds])]
                + [_spread([accuracy[cell, name, seed] for seed in seeds]) for name in compared]
            )
            + " |"
        )
    return [*regrets, *_ranks(accuracy, cells, seeds, compared), *_without(accuracy, loss, cells), "\n".join(table)]


def _regrets(
    records: Sequence[Mapping[str, Any]], cells: Sequence[Cell], seeds: Sequence[int]
) -> tuple[list[str], list[str]]:
    """The optimizers that were run in all cells with all seeds, and the table of their regret."""
    accuracy, loss = scores(records), scores(records, metric="log_loss")
    names = [
        name
        for name in OPTIMIZERS
        if name not in WITHOUT and all((cell, name, seed) in accuracy for cell in cells for seed in seeds)
    ]
    rows: list[tuple[str, Scores, Scores, str]] = [(_shown(name), accuracy, loss, name) for name in names]
    if OURS in names:
        rows.insert(1, (f"{_shown(OURS)}, its average", *_averaged(records, accuracy, loss), OURS))
    shown = [(identity(record), record) for record in records]
    counted = [(key, record) for key, record in shown if key[0] in cells and key[2] in seeds]
    forwards = {name: statistics.mean(r["forwards"] for key, r in counted if key[1] == name) for name in names}
    lines = [
        f"{len(cells)} cells, seeds {', '.join(map(str, seeds))}.",
        "| | regret, mean | 95 % | worst cell | rate chosen on other seeds | log loss, mean | worst | one class only "
        "| forwards |\n|---|---|---|---|---|---|---|---|---|",
    ]
    for shown, table, losses, name in rows:
        each = [100 * regret(table, cell, name, seeds) for cell in cells]
        low, high = (100 * end for end in bootstrap(lambda s, t=table, n=name: mean_regret(t, cells, n, s), seeds))
        foresight = statistics.mean(100 * foresight_regret(table, cell, name, seeds) for cell in cells)
        nats = [regret(losses, cell, name, seeds) for cell in cells]
        collapsed = sum(record["last"]["majority"] == 1 for key, record in counted if key[1] == name)
        lines[-1] += (
            f"\n| {shown} | {statistics.mean(each):.2f} | {low:.2f} to {high:.2f} | {max(each):.1f} | "
            f"{foresight:.2f} | {statistics.mean(nats):.3f} | {max(nats):.3f} | {collapsed} | {forwards[name]:.2f} |"
        )
    return names, lines


def _ranks(accuracy: Scores, cells: Sequence[Cell], seeds: Sequence[int], names: Sequence[str]) -> list[str]:
    """Mean ranks of the optimizers without a rate, and what AdamSLS is ahead of each, with a paired test over cells."""
    from scipy.stats import rankdata, wilcoxon

    if OURS not in names or len(names) < 2:
        return []
    means = {(cell, name): statistics.mean(accuracy[cell, name, s] for s in seeds) for cell in cells for name in names}
    ranks = [rankdata([-means[cell, name] for name in names]) for cell in cells]
    table = ["| without a rate | mean rank | AdamSLS is ahead by | 95 % | cells won | p |\n|---|---|---|---|---|---|"]
    for place, name in enumerate(names):
        mean_rank = statistics.mean(float(each[place]) for each in ranks)
        if name == OURS:
            table.append(f"| {_shown(name)} | {mean_rank:.2f} | | | | |")
            continue
        ahead = [100 * (means[cell, OURS] - means[cell, name]) for cell in cells]

        def gap(drawn: Sequence[int], other: str = name) -> float:
            return 100 * statistics.mean(
                accuracy[cell, OURS, s] - accuracy[cell, other, s] for cell in cells for s in drawn
            )

        low, high = bootstrap(gap, seeds)
        test: Any = wilcoxon(ahead) if any(ahead) else None
        p = 1.0 if test is None else float(test.pvalue)
        won = sum(each > 0 for each in ahead)
        table.append(
            f"| {_shown(name)} | {mean_rank:.2f} | {statistics.mean(ahead):.2f} | {low:.2f} to {high:.2f} | "
            f"{won} of {len(cells)} | {p:.2g} |"
        )
    return ["p: Wilcoxon's signed-rank test over cells, two-sided.", "\n".join(table)]


def _without(accuracy: Scores, loss: Scores, cells: Sequence[Cell]) -> list[str]:
    """The table of the default with one part exchanged, over the seeds with which all of these were run."""
    names = (OURS, *WITHOUT)
    seeds = [
        seed
        for seed in sorted({seed for *_, seed in accuracy})
        if all((cell, name, seed) in accuracy for cell in cells for name in (*names, *sweep(cell)))
    ]
    if not seeds:
        return []
    table = ["| one part exchanged | regret, mean | worst cell | log loss, mean | worst |\n|---|---|---|---|---|"]
    for name in names:
        points = [100 * regret(accuracy, cell, name, seeds) for cell in cells]
        nats = [regret(loss, cell, name, seeds) for cell in cells]
        numbers = f"{statistics.mean(points):.2f} | {max(points):.1f} | {statistics.mean(nats):.3f} | {max(nats):.3f}"
        table.append(f"| {_shown(name)} | {numbers} |")
    return [f"The default with one part exchanged, seeds {', '.join(map(str, seeds))}:", "\n".join(table)]


def _averaged(records: Sequence[Mapping[str, Any]], accuracy: Scores, loss: Scores) -> tuple[Scores, Scores]:
    """The scores, AdamSLS's by its average."""
    ours = [record for record in records if record["optimizer"] == OURS]
    return {**accuracy, **scores(ours, "average")}, {**loss, **scores(ours, "average", "log_loss")}


def _shown(name: str) -> str:
    if name in SWEEP:
        return f"AdamW, {name.partition('lr=')[2].partition(',')[0]}"
    return {OURS: "**AdamSLS**", BEFORE: "AdamSLS until November 2026", **WITHOUT, **COMPONENTS, **GRADIENT}.get(
        name, name
    )


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def _draw(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against AdamW's rate in each regime, in the mean over cells, and AdamSLS, which has none."""
    from armijo.observers.matplotlib import PALETTE, new_figure, style

    figure = new_figure(6.5, 3.8)
    axes = figure.subplots()
    style(figure)
    for colour, regime in zip(PALETTE, REGIMES, strict=False):
        chosen = [record for record in records if record["regime"] == regime]
        cells, seeds = complete(chosen)
        if not cells:
            continue
        table = scores(chosen)

        def mean(name: str, t: Scores = table, c: Sequence[Cell] = cells, s: Sequence[int] = seeds) -> float:
            return statistics.mean(t[cell, name, seed] for cell in c for seed in s)

        rates = RATES_OF[regime]
        label = f"{_NAMES[regime].removeprefix('a ').removeprefix('the ').partition(' on ')[0]}, {len(cells)} cells"
        accuracies = [mean(f"adamw:lr={rate},warmup=0.1") for rate in rates]
        axes.plot([float(rate) for rate in rates], accuracies, color=colour, marker="o", ms=3, label=label)
        axes.axhline(mean(OURS), color=colour, linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of AdamW; dashed: AdamSLS, which has none")
    axes.set_ylabel("accuracy, held out")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(REGIMES))
    figure.savefig(path, dpi=150)
