"""Every example runs, on the real model and on few rows."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from processes import forked

pytestmark = pytest.mark.heavy
EXAMPLES = Path(__file__).parents[2] / "examples"
FEW = ("--rows", "32", "--epochs", "1")
MORE = {"torch_compile": ("--backend", "eager")}  # inductor takes minutes to compile


@pytest.mark.parametrize("path", [p for p in sorted(EXAMPLES.glob("*.py")) if p.stem != "texts"], ids=lambda p: p.stem)
def test_an_example_runs_and_says_what_was_reached(path: Path, tmp_path: Path) -> None:
    def run(_: list[str]) -> None:
        sys.path.insert(0, str(EXAMPLES))
        runpy.run_path(str(path), run_name="__main__")

    done = forked(run, *FEW, *MORE.get(path.stem, ()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"(accuracy|loss)\D{0,12}\d", done.stdout), done.stdout[-1000:]
