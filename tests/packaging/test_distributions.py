"""Wheel and source distribution, built and installed into a clean environment that has torch alone."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).parents[2]


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return {"wheel": next(folder.glob("*.whl")), "source": next(folder.glob("*.tar.gz"))}


@pytest.fixture(scope="module")
def clean(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python of its own, with the wheel and what the wheel asks for."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pins = ("--quiet", "--constraint", ROOT / "constraints.txt")
    run(python, "-m", "pip", "install", *pins, built["wheel"], folder=folder)
    return python


def test_the_wheel_holds_the_code_and_nothing_else(built: dict[str, Path]) -> None:
    names = zipfile.ZipFile(built["wheel"]).namelist()
    source = {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src").rglob("*") if p.suffix in (".py", ".typed")}
    packed = {name for name in names if ".dist-info/" not in name}
    assert source <= packed
    assert all(name.startswith(("armijo/", "armijo_lab/")) and not name.endswith(".pyc") for name in packed)


def test_the_source_distribution_holds_what_its_tests_need(built: dict[str, Path]) -> None:
    with tarfile.open(built["source"]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = run("git", "ls-files", "src", "tests", "docs", "examples", "benchmarks", folder=ROOT).split()
    assert set(tracked) <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"} <= names


def test_in_a_clean_environment(clean: Path) -> None:
    """One test, because the environment takes a minute and each process that runs tests would make its own."""
    _the_library_alone_runs_and_is_quick_to_import(clean)
    _the_command_without_its_extra_says_what_to_install(clean)
    _an_integration_without_its_framework_is_an_import_error_that_names_it(clean)


def _the_library_alone_runs_and_is_quick_to_import(clean: Path) -> None:
    installed = run(clean, "-m", "pip", "list", "--format=freeze", folder=clean.parent).lower()
    assert not [name for name in ("transformers", "typer", "numpy", "pandas") if f"\n{name}==" in installed]
    program = """
import time, torch
before = time.perf_counter()
import armijo
print(time.perf_counter() - before)
model = torch.nn.Linear(3, 2)
optimizer = armijo.AdamSLS(model.parameters())
inputs = torch.randn(8, 3)
first, *_, last = (float(optimizer.step(lambda: (model(inputs) - 1).square().mean())) for _ in range(30))
assert last < first / 10, (first, last)
"""
    # The least of a few, because the machine may be busy with other things.
    assert min(float(run(clean, "-c", program, folder=clean.parent)) for _ in range(3)) < 0.5


def _the_command_without_its_extra_says_what_to_install(clean: Path) -> None:
    done = subprocess.run([clean.parent / "armijo", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install 'armijo[lab]'" in done.stderr
    assert "Traceback" not in done.stderr


def _an_integration_without_its_framework_is_an_import_error_that_names_it(clean: Path) -> None:
    for framework in ("transformers", "lightning"):
        module = f"armijo.integrations.{framework}"
        done = subprocess.run([clean, "-c", f"import {module}"], capture_output=True, text=True, check=False)
        assert f"No module named '{framework}" in done.stderr
