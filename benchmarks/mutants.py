"""The share of mutants that the tests kill: cosmic-ray's mutations of the search, the components and the step.

A random sample of all mutants is tried, each on a copy of the repository, by the quick tests that know the module. What
cannot change anything is left out: operators in type annotations, options of dataclasses, and comparisons by identity
of numbers. Survivors are printed as differences, to be looked at one by one: a missing test, or a mutant that behaves
the same.

Run: pip install cosmic-ray; python benchmarks/mutants.py [--sample 150] [--seed 1] [--workers 2]
"""

from __future__ import annotations

import argparse
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from queue import Queue
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
TARGETS = ("search", "components", "step", "snapshot.py")
TESTS = (
    *("test_optimizer.py", "faults/test_stateful.py", "faults/test_unsearchable.py", "contracts"),
    *("faults/test_found_by_attack.py", "test_paper_lockstep.py", "evaluation", "torch_contract", "components"),
    *("test_properties.py", "faults/test_checkpoints.py"),
)
FIRST = {"splitting.py": ("components",), "merging.py": ("contracts", "test_paper_lockstep.py")}
FIRST |= dict.fromkeys(("base.py", "backtracking.py", "bracketing.py", "criteria.py", "guesses.py"), ("contracts",))
ONLY = {"splitting.py"}
ARITHMETIC = {"Mul_Div", "Div_Mul", "Add_Sub", "Sub_Add", "Pow_Mul", "Sub_Mul", "Mod_FloorDiv", "FloorDiv_Div"}

Mutant = tuple[Path, str, int]


def is_of_interest(operator: str) -> bool:
    kind, _, change = operator.partition("/")[2].partition("Operator_")
    if kind == "ReplaceBinary":
        return change in ARITHMETIC
    if kind == "ReplaceComparison":
        before, after = change.split("_")
        return before.startswith("Is") == after.startswith("Is")
    return True


def mutants() -> list[Mutant]:
    found: list[Mutant] = []
    for target in TARGETS:
        place = ROOT / "src" / "armijo" / target
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            nodes = list(ast_nodes(get_ast(path.read_text(encoding="utf-8"))))
            for name in filter(is_of_interest, operator_names()):
                kind: Any = get_operator(name)
                if not kind.arguments():
                    positions = [p for node in nodes for p in kind().mutation_positions(node)]
                    found += [(path.relative_to(ROOT), name, number) for number in range(len(positions))]
    return found


def mutated(mutant: Mutant) -> tuple[str, str]:
    """The module before and after."""
    path, name, number = mutant
    before = (ROOT / path).read_text(encoding="utf-8")
    return before, mutate_code(before, get_operator(name)(), number) or before


def difference(mutant: Mutant) -> list[str]:
    before, after = (code.splitlines() for code in mutated(mutant))
    return list(difflib.unified_diff(before, after, str(mutant[0]), mutant[1], n=1, lineterm=""))


def changes_behaviour(mutant: Mutant) -> bool:
    """Whether the mutant does more than to change an option of a dataclass, as slots=True."""
    added = [line for line in difference(mutant) if line.startswith("+") and not line.startswith("+++")]
    return bool(added) and not any(line[1:].lstrip().startswith("@dataclass") for line in added)


def survives(mutant: Mutant, copy: Path, seconds: float) -> str | None:
    """The difference that the mutant makes, if no test fails."""
    path = mutant[0]
    before, after = mutated(mutant)
    first = FIRST.get(path.name, ())
    tests = [*first, *(test for test in TESTS if test not in first and path.name not in ONLY)]
    (copy / path).write_text(after, encoding="utf-8")
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                *(f"tests/{test}" for test in tests),
            ],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=seconds,
            check=False,
        )
        killed = done.returncode != 0
    except subprocess.TimeoutExpired:
        killed = True
    finally:
        (copy / path).write_text(before, encoding="utf-8")
    return None if killed else "\n".join(difference(mutant))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1500.0, help="after so long a mutant counts as killed")
    args = parser.parse_args()
    every = mutants()
    random.Random(args.seed).shuffle(every)
    sample = list(islice(filter(changes_behaviour, every), args.sample))
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for number in range(args.workers):
            copies.put(Path(folder) / str(number))
            shutil.copytree(ROOT, Path(folder) / str(number), ignore=shutil.ignore_patterns(".venv", ".git", "site"))

        def one(mutant: Mutant) -> str | None:
            copy = copies.get()
            try:
                return survives(mutant, copy, args.seconds)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(args.workers) as pool:
            for number, difference in enumerate(pool.map(one, sample), 1):
                if difference is not None:
                    survivors += 1
                    print(difference, flush=True)
                print(f"{number} of {len(sample)} tried, {number - survivors} killed", flush=True)
    killed = len(sample) - survivors
    print(f"{killed} of {len(sample)} mutants killed ({killed / len(sample):.0%}), drawn from {len(every)}")


if __name__ == "__main__":
    main()
