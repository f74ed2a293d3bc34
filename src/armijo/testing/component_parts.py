"""The contracts of selections, mergings and partitions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace

from armijo.components.merging import Merge
from armijo.families import is_whole
from armijo.search.memory import Memory
from armijo.search.values import Line, Outcome, SearchResult, Status, Trial
from armijo.testing.contract import Contract, is_step_size

__all__ = ["check_merging", "check_partition", "check_selection"]


def check_selection(contract: Contract) -> None:
    """Check that blocks hold existing places, also after merges and when groups are added."""
    for n in range(1, 13):
        contract.start_anew()
        size = n
        for step in range(3 * n + 6):
            memory = contract.open_memory()
            loss, sign = contract.random.choice([0.0, 1.0, 0.97**step]), contract.random.choice([-1.0, 0.0, 1.0, 1.0])
            lines = [replace(line, loss=loss, slope=sign * line.slope) for line in contract.lines(size)]
            due = contract.call("due", lambda: 1.0, step, memory)
            contract.require(
                isinstance(due, bool),
                f"answered {due!r} from due",
                "It says whether to search at this step at all: True or False.",
            )
            kept = deepcopy(memory)
            expected = contract.call("expected_block", size, step, memory) if due else None
            contract.require(
                memory == kept,
                "changed its memory in expected_block",
                "It tells what blocks() is going to return, and blocks() is called after it.",
            )
            blocks = _blocks(contract, lines, step, memory) if due else []
            contract.require(
                expected is None or (bool(blocks) and tuple(expected) == blocks[0]),
                f"expected to search {expected!r} first at step {step} of {size} components, and selected {blocks}",
                "Answer None where the first block depends on the lines: a wrong answer costs time.",
            )
            contract.call("remember", _searches(contract, lines, blocks), step, memory)
            if size > 1 and step in (n + 1, 2 * n + 2):
                size -= 1
                contract.call("merged", size, memory)
            elif step == 3 * n:
                size += 1  # add_param_group
            contract.close_memory(memory)


def _blocks(contract: Contract, lines: Sequence[Line], step: int, memory: Memory) -> list[tuple[int, ...]]:
    selected, places = contract.call("blocks", lines, step, memory), set(range(len(lines)))
    where = f"at step {step} of {len(lines)} components"
    try:
        blocks = [tuple(block) for block in selected]
    except TypeError:
        contract.fail(
            f"selected {selected!r} {where}",
            "Return a tuple of blocks, each a tuple of places: ((0, 1),); () for none.",
        )
    for block in blocks:
        contract.require(
            bool(block) and all(map(is_whole, block)) and len(set(block)) == len(block) and set(block) <= places,
            f"selected the block {block} {where}",
            f"A block holds places in 0..{len(lines) - 1}, at least one, and none twice. Merges and new groups change "
            "their number.",
        )
        answer = contract.call("moved_before", block)
        moved = tuple(answer) if isinstance(answer, Iterable) else (None,)
        contract.require(
            all(map(is_whole, moved)) and set(moved) <= places - set(block),
            f"returned {answer!r} from moved_before({block}) {where}",
            f"It returns a tuple of places in 0..{len(lines) - 1} outside the block.",
        )
    return blocks


def _searches(contract: Contract, lines: Sequence[Line], blocks: Sequence[tuple[int, ...]]) -> tuple[SearchResult, ...]:
    """What a step tells a selection: searches that ended in any way, of blocks in which something may move."""
    results: list[SearchResult] = []
    stays: set[int] = set()
    for block in blocks:
        if set(block) <= stays:
            continue
        line, first = replace(lines[block[0]], slope=sum(lines[place].slope for place in block)), 0.1
        trial = Trial(contract.random.choice([first, 0.5 * first]), line.loss - 0.01)
        outcome, trials = contract.random.choice(
            [
                (Outcome(trial.step_size, Status.ACCEPTED, trial.loss), (trial,)),
                (Outcome(trial.step_size, Status.ACCEPTED, trial.loss), (Trial(2 * first, math.inf), trial)),
                (Outcome(0.0, Status.EXHAUSTED), (Trial(first, math.inf), Trial(0.0, line.loss))),
                (Outcome(first, Status.SKIPPED), ()),
                (Outcome(first, Status.UNSEARCHED), ()),
                (Outcome(0.0, Status.ASCENT), ()),
            ]
        )
        stays = stays - set(block) if outcome.step_size else stays | set(block)
        results.append(SearchResult(block, line, first, outcome, trials))
    return tuple(results)


def check_merging(contract: Contract) -> None:
    """Check that each proposal is None or merges two existing places into a step size > 0."""
    for n in range(1, 13):
        contract.start_anew()
        sizes = [10 ** contract.random.uniform(-14, 0) if n % 2 else 1e-13 for _ in range(n)]
        for step in range(3 * n + 6):
            memory = contract.open_memory()
            merge = contract.call("propose", list(sizes), memory)
            contract.close_memory(memory)
            if merge is not None:
                whole = isinstance(merge, Merge) and isinstance(merge.kept, int) and isinstance(merge.absorbed, int)
                contract.require(
                    whole and 0 <= merge.kept < merge.absorbed < len(sizes) and is_step_size(merge.step_size),
                    f"proposed {merge!r} for the step sizes {sizes}",
                    f"Return None, or a Merge with 0 ≤ kept < absorbed < {len(sizes)} and a finite step size > 0.",
                )
                sizes[merge.kept] = float(merge.step_size)
                del sizes[merge.absorbed]
            sizes = [max(1e-30, size * 10 ** contract.random.uniform(-1, 0.9)) for size in sizes]
            if step % 7 == 6:
                sizes.append(0.1)  # add_param_group


def check_partition(contract: Contract) -> None:
    """Check that every group lies in one component, in ascending order."""
    draws = [[contract.random.choice("abc") for _ in range(n)] for n in range(1, 9)]
    for labels in (["head"], ["body.0", "body.1", "head", "body.0"], ["head", "body", "body"], *draws):
        answer, where = contract.call("components", labels), f"for the labels {labels}"
        try:
            components = [(component.label, tuple(component.groups)) for component in answer]
        except (TypeError, AttributeError):
            contract.fail(f"returned {answer!r} {where}", "Return a tuple of armijo.Component(label, groups).")
        groups = [indices for _, indices in components]
        contract.require(
            sorted(index for indices in groups for index in indices) == list(range(len(labels))) and all(groups),
            f"makes the components {groups} {where}",
            f"Each group, 0..{len(labels) - 1}, lies in exactly one component, and no component is empty.",
        )
        contract.require(
            groups == sorted(groups) and all(indices == tuple(sorted(indices)) for indices in groups),
            f"makes the components {groups} {where}",
            "Order the groups in each component, and the components by their first group: a merged component stays at "
            "the place of its first.",
        )
        names = [label for label, _ in components]
        contract.require(
            all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names),
            f"labels its components {names} {where}",
            "Reports and merged groups name components by their labels: distinct strings, and none empty.",
        )
        contract.require(
            tuple(contract.call("components", list(labels))) == tuple(answer),
            f"makes other components when it is asked again {where}",
            "It is asked several times a step: the answer depends on the labels alone.",
        )
