"""The layers of docs/design.md, enforced by reading the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
STDLIB, TORCH, ANY = "stdlib", "torch", "any"

# module prefix -> (what of ours it may import, what else it may import)
LAYERS: dict[str, tuple[tuple[str, ...], str]] = {
    "armijo.errors": ((), STDLIB),
    "armijo.interrupts": ((), STDLIB),
    "armijo.families": (("armijo.errors",), STDLIB),
    "armijo.search": (("armijo.errors", "armijo.families", "armijo.search"), STDLIB),
    "armijo.components": (("armijo.errors", "armijo.families", "armijo.search", "armijo.components"), STDLIB),
    "armijo.evaluation": (("armijo.errors", "armijo.evaluation"), TORCH),
    "armijo.directions": (("armijo.errors", "armijo.families", "armijo.directions"), TORCH),
    "armijo.snapshot": ((), TORCH),
    "armijo.checks": (("armijo.errors", "armijo.search", "armijo.directions"), TORCH),
    "armijo.observers.report": (("armijo.search",), STDLIB),
    "armijo.observers.health": (("armijo.search", "armijo.observers.report"), STDLIB),
    "armijo.observers.recorder": (("armijo.errors", "armijo.search", "armijo.observers.report"), TORCH),
    # Drawing and tensorboard need a package each, and nothing else of ours may import them.
    "armijo.observers.matplotlib": (("armijo.errors", "armijo.search", "armijo.observers"), ANY),
    "armijo.observers.tensorboard": (("armijo.errors", "armijo.search", "armijo.observers"), ANY),
    "armijo.observers": ((), STDLIB),
    "armijo.step": (
        (
            "armijo.errors",
            "armijo.interrupts",
            "armijo.families",
            "armijo.checks",
            "armijo.search",
            "armijo.components",
            "armijo.evaluation",
            "armijo.directions",
            "armijo.snapshot",
            "armijo.observers.report",
            "armijo.step",
        ),
        TORCH,
    ),
    "armijo.optimizer": (
        (
            "armijo.errors",
            "armijo.interrupts",
            "armijo.families",
            "armijo.checks",
            "armijo.search",
            "armijo.components",
            "armijo.evaluation",
            "armijo.directions",
            "armijo.snapshot",
            "armijo.observers.report",
            "armijo.observers.health",
            "armijo.step",
        ),
        TORCH,
    ),
    "armijo.recipes": (("armijo.search", "armijo.components", "armijo.directions", "armijo.optimizer"), TORCH),
    "armijo.paper": (("armijo.search", "armijo.components", "armijo.directions", "armijo.optimizer"), TORCH),
    "armijo.testing": (
        (
            "armijo.errors",
            "armijo.interrupts",
            "armijo.families",
            "armijo.checks",
            "armijo.search",
            "armijo.components",
            "armijo.evaluation",
            "armijo.directions",
            "armijo.snapshot",
            "armijo.observers",
            "armijo.step",
            "armijo.optimizer",
            "armijo.recipes",
            "armijo.paper",
            "armijo.testing",
        ),
        TORCH,
    ),
    "armijo.integrations": (("armijo",), ANY),
    "armijo": (("armijo",), TORCH),
    "armijo_lab": (("armijo", "armijo_lab"), ANY),
}
OPTIONAL = ("armijo.integrations", "armijo.observers.matplotlib", "armijo.observers.tensorboard")


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def layer_of(module: str) -> str:
    return next(layer for layer in LAYERS if within(module, layer))


def within(module: str, layer: str) -> bool:
    return module == layer or module.startswith(layer + ".")


def imports(path: Path) -> list[str]:
    """Every module named by an import outside `if TYPE_CHECKING`, also those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found.append(node.module or "")
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_from_its_own_layer_and_below(module: str) -> None:
    ours, others = LAYERS[layer_of(module)]
    for imported in imports(modules()[module]):
        root = imported.split(".")[0]
        if root in ("armijo", "armijo_lab"):
            assert any(within(imported, layer) for layer in ours), f"{module} must not import {imported}"
        elif others != ANY:
            allowed = root in sys.stdlib_module_names or (others == TORCH and root == "torch")
            assert allowed, f"{module} must not import {imported}"


def test_importing_armijo_needs_torch_alone() -> None:
    blocked = ["transformers", "datasets", "sklearn", "scipy", "pandas", "matplotlib", "rich", "typer", "armijo_lab"]
    blocked += ["accelerate", "lightning", "peft", "tensorboard", "numpy"]
    code = f"import sys\nfor m in {blocked}: sys.modules[m] = None\nimport armijo\nprint(armijo.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_library_imports_nothing_that_needs_another_package() -> None:
    for module, path in modules().items():
        if within(module, "armijo") and not any(within(module, optional) for optional in OPTIONAL):
            for imported in imports(path):
                assert not any(within(imported, optional) for optional in OPTIONAL), module


def test_nothing_imports_the_checks_for_parts_of_users() -> None:
    for module, path in modules().items():
        if not within(module, "armijo.testing"):
            assert not any(within(imported, "armijo.testing") for imported in imported_modules(path)), module


def test_results_never_train() -> None:
    for module, path in modules().items():
        if module.startswith("armijo_lab.results"):
            for imported in imports(path):
                assert not within(imported, "armijo_lab.training"), f"{module} reads results; it must not train"


def test_the_modules_of_the_laboratory_import_each_other_in_no_circle() -> None:
    lab = {module: set(imported_modules(path)) for module, path in modules().items() if within(module, "armijo_lab")}
    # A package's __init__ re-exports its modules.
    lab = {module: names & lab.keys() - {module} for module, names in lab.items() if not is_package(module)}
    while lab:
        leaves = {module for module, names in lab.items() if not names & lab.keys()}
        assert leaves, f"circular imports among {sorted(lab)}"
        lab = {module: names for module, names in lab.items() if module not in leaves}


def is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py"


def imported_modules(path: Path) -> list[str]:
    """`imports`, with `from package import module` as `package.module`."""
    found = imports(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found
