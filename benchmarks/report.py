"""Put what was measured into docs/performance.md: its tables, between the marks that name their files, and its figure.

Run: python benchmarks/report.py
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from armijo.observers.matplotlib import PALETTE, new_figure, style
from methods import BASE, as_markdown

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "results" / "performance", ROOT / "docs" / "performance.md"
FIGURE = ROOT / "docs" / "images" / "own-work.png"
_MARK = re.compile(r"<!-- (?P<name>[\w.-]+\.json) -->\n.*?<!-- end -->", re.DOTALL)
_CURVES = (
    "AdamW, foreach",
    "Growing AdamSLS, β1 = 0, foreach",
    "Growing AdamSLS",
    "Growing AdamSLS, β1 = 0",
    "Growing AdamSLS, β1 = 0, no search",
)
_COMPONENTS = re.compile(r"Growing PLASLS, β1 = 0, (?P<selection>[\w ]+), (?P<n>\d+) components")


def load(name: str) -> list[dict[str, Any]]:
    """The measurements of a file: one, or those that a GPU's file has together."""
    found = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found.get("measurements", [found])


def page(text: str) -> str:
    """The page with each marked place filled from its file."""

    def fill(mark: re.Match[str]) -> str:
        tables = "\n\n".join(map(as_markdown, load(mark["name"])))
        return f"<!-- {mark['name']} -->\n{tables}\n\n<!-- end -->"

    return _MARK.sub(fill, text)


def draw() -> None:
    """Own work against the number of parameters, and against the number of components."""
    files = sorted(RESULTS.glob("own_work_*.json"))
    measured = sorted((load(file.name)[0] for file in files), key=lambda each: each["parameters"])
    figure = new_figure(12, 4.6)
    by_size, by_components = figure.subplots(1, 2)
    for color, name in zip(PALETTE, _CURVES, strict=False):
        points = [(each["parameters"] / 1e6, _ratio(each, name)) for each in measured if name in each["seconds"]]
        _line(by_size, points, name, color)
    by_size.set(xscale="log", xlabel="parameters, millions", ylabel="own work, steps of AdamW fused")
    minilm = next(each for each in measured if each["shape"] == "minilm")
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in minilm["seconds"]:
        if match := _COMPONENTS.fullmatch(name):
            curves.setdefault(match["selection"], []).append((int(match["n"]), _ratio(minilm, name)))
    for color, (selection, points) in zip(PALETTE[3:], curves.items(), strict=False):
        _line(by_components, points, f"PLASLS, {selection}", color)
    by_components.axhline(_ratio(minilm, "Growing AdamSLS, β1 = 0"), color="0.6", linewidth=1, linestyle="--")
    by_components.text(2000, _ratio(minilm, "Growing AdamSLS, β1 = 0"), "AdamSLS", color="0.4", va="bottom", fontsize=9)
    by_components.set(xscale="log", xlabel="components", ylabel="own work, steps of AdamW fused")
    style(figure)
    for axes in (by_size, by_components):
        axes.set_ylim(bottom=0)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * 20)  # room for the names
        axes.xaxis.set_major_formatter("{x:g}")
    figure.savefig(FIGURE, dpi=110)


def _ratio(measured: dict[str, Any], name: str) -> float:
    seconds = measured["seconds"]
    return statistics.median(seconds[name]) / statistics.median(seconds[BASE])


def _line(axes: Any, points: list[tuple[float, float]], name: str, color: str) -> None:
    axes.plot(*zip(*points, strict=True), marker="o", color=color)
    axes.annotate(name, points[-1], xytext=(6, 0), textcoords="offset points", va="center", color=color, fontsize=9)


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page(text), encoding="utf-8")
    draw()


if __name__ == "__main__":
    main()
