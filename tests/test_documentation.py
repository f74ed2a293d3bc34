"""Every example runs: in docstrings, in the README, in docs/. And every public name is documented."""

import doctest
import importlib
import inspect
import pkgutil
import re
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


def blocks(page: Path) -> str:
    """The Python blocks of a page, as one program: later blocks use what earlier ones made."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_the_examples_of_a_page_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    exec(compile(blocks(page), str(page.name), "exec"), {"__name__": "__main__"})


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
