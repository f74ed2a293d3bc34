"""Every example runs, on the real model and on few rows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy
EXAMPLES = Path(__file__).parents[2] / "examples"
FEW = ("--rows", "32", "--epochs", "1")
MORE = {"torch_compile": ("--backend", "eager")}  # inductor takes minutes to compile


@pytest.mark.parametrize("path", [p for p in sorted(EXAMPLES.glob("*.py")) if p.stem != "texts"], ids=lambda p: p.stem)
def test_an_example_runs_and_says_what_was_reached(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, str(path), *FEW, *MORE.get(path.stem, ())]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"(accuracy|loss)\D{0,12}\d", done.stdout), done.stdout[-1000:]
