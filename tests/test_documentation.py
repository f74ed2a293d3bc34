"""Every example runs: in docstrings, in the README, in docs/. And every public name is documented."""

import contextlib
import doctest
import importlib
import inspect
import io
import logging
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import armijo

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = ["armijo", *sorted(m.name for m in pkgutil.walk_packages(armijo.__path__, "armijo."))]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    torch.manual_seed(0)
    failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failures == 0


def blocks(page: Path) -> list[tuple[str, str]]:
    """The Python blocks of a page, each with the output that stands right below it, if one does."""
    pattern = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def words(text: str) -> str:
    """The text without its numbers, which are those of one machine, and without line breaks."""
    return " ".join(re.sub(r"-?\d[\d.,]*(e[+-]?\d+)?|nan|inf", "#", text).split())


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_the_examples_of_a_page_run_and_print_what_it_shows(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    # Later blocks use what earlier ones made, and pickle finds their classes.
    program = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", program)
    logger = logging.getLogger("armijo")
    monkeypatch.setattr(logger, "handlers", [*logger.handlers])
    for code, output in blocks(page):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, page.name, "exec"), vars(program))
        assert not output or words(printed.getvalue()) == words(output), printed.getvalue()


@pytest.mark.parametrize("name", armijo.__all__)
def test_every_public_name_is_documented_and_on_the_page(name: str) -> None:
    thing = getattr(armijo, name)
    assert inspect.getdoc(thing)
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    error = inspect.isclass(thing) and issubclass(thing, Exception)
    assert error or f"::: armijo.{name}\n" in page
    if inspect.isclass(thing) and not error:
        for member, value in vars(thing).items():
            if inspect.isfunction(value) and not member.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{member} has no docstring"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_the_tables_of_what_a_step_costs_are_those_of_the_committed_measurements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = importlib.import_module("report")
    text = report.PAGE.read_text(encoding="utf-8")
    assert text.count("\n| ") > 30
    assert report.page(text) == text
