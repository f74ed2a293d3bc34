"""Check a part of your own against the contract of its family."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch

from armijo.components.merging import Merging
from armijo.components.partition import Partition
from armijo.components.selection import Selection
from armijo.directions.base import Direction
from armijo.errors import ConfigurationError
from armijo.evaluation.rng import RandomState
from armijo.families import check_part
from armijo.search.base import Search
from armijo.search.criteria import Criterion
from armijo.search.guesses import Guess
from armijo.testing.component_parts import check_merging, check_partition, check_selection
from armijo.testing.contract import Contract, attributes_of, check_value
from armijo.testing.directions import check_direction
from armijo.testing.search_parts import check_criterion, check_guess, check_search
from armijo.testing.whole_step import check_in_line_search

__all__ = ["assert_contract"]

_BASES: dict[str, type] = {
    "criterion": Criterion,
    "guess": Guess,
    "search": Search,
    "selection": Selection,
    "merging": Merging,
    "partition": Partition,
    "direction": Direction,
}
_CHECKS: dict[str, Callable[[Contract], None]] = {
    "criterion": check_criterion,
    "guess": check_guess,
    "search": check_search,
    "selection": check_selection,
    "merging": check_merging,
    "partition": check_partition,
    "direction": check_direction,
}


def assert_contract(part: object, *, derivatives: Sequence[str] = ("last_step", "last_gradient")) -> None:
    """Check that a part keeps the contract of its family; it takes a fraction of a second.

    The contract holds what `LineSearch` relies on and what the family's class promises, and nothing beyond: a part that
    keeps it works in every optimizer. It does not tell whether the part is a good one. The part is called as a step
    calls it: with memory that is carried from step to step, on lines that end well and badly, and at last in a
    `LineSearch` on a small problem. Equal parts get equal calls, and global random generators end where they began.

    - Every part: frozen, hashable, equal to its copy from pickle, and unchanged by use. `defaults()` names the same
      plain numbers and lists each time; nothing else is written to `memory`.
    - Criterion: a number, never NaN; negative only with `two_sided`; `inf` where the loss is NaN or infinite. While the
      memory is fresh, no step is too long on a line that falls as its slope says; later, not every step is.
    - Guess: finite step sizes > 0, whatever the line, from a slope of 1e-8 on; the same or None from `expected`.
    - Search: a finite first step size > 0, on any line; an `Outcome` after at most 1000 evaluations, none of them
      beyond `line.longest`, and without any from `without_search`. It accepts only what it evaluated, with the loss
      there. It moves to no infinite loss, and not on a line that climbs, unless it is a search that evaluates nothing
      at all.
    - Selection: blocks of existing places, none twice in one block, also after merges and when groups are added; what
      has moved before a block lies outside it; True or False from `due`.
    - Merging: None, or a `Merge` of two existing places into a finite step size > 0.
    - Partition: every group in exactly one component, components and groups in ascending order, distinct labels.
    - Direction: moments of the parameter's shape and dtype, all zero; a search phase that writes nothing; updates that
      write the moments in place; ⟨g, d⟩ > 0 at the first gradient and ≥ 0 after any commits; updates at most three
      times as long as the search direction, and equal to it where `updates_along_search` says so; finite answers to
      zero gradients; stable probes; a `kernel`, if there is one, that computes the same.

    Args:
        part: an instance of a class that derives from its family's class, such as `armijo.Criterion`. A part of
            several families is checked against each.
        derivatives: the names that `Line.derivatives` has and that a search may evaluate along: those of the probes of
            the direction that the part is for. Without meaning for directions.

    Raises:
        AssertionError: names the part, what it did and what to do instead.

    Examples:
        >>> import armijo
        >>> assert_contract(armijo.Armijo(0.1))
    """
    if isinstance(derivatives, str):
        raise AssertionError(f"derivatives is the string {derivatives!r}; pass a tuple of names: ({derivatives!r},).")
    families = _families_of(part)
    generators = RandomState.capture()
    try:
        # A part that draws from a global generator draws the same each time.
        random.seed(0)
        torch.default_generator.manual_seed(0)
        for family in families:
            contract = Contract(part, family, tuple(derivatives))
            check_value(contract)
            before = attributes_of(part)
            if family not in ("partition", "direction"):
                contract.start_anew()
            _CHECKS[family](contract)
            check_in_line_search(contract)
            contract.require(
                attributes_of(part) == before,
                "changed its own attributes while it was used",
                "A part is frozen: name what it remembers in defaults() and write it to memory.",
            )
    finally:
        generators.restore()


def _families_of(part: object) -> list[str]:
    """The families of a part: those of the classes it derives from, else the one whose methods it has."""
    if isinstance(part, type):
        raise AssertionError(f"{part.__name__} is a class. Pass an instance: assert_contract({part.__name__}(...)).")
    derived = [family for family, base in _BASES.items() if base in type(part).__mro__]
    if derived:
        return derived
    for family in _BASES:
        try:
            check_part(family, part, "assert_contract")
        except ConfigurationError:
            continue
        return [family]
    raise AssertionError(
        f"{part!r} is no part. Derive its class from that of its family: "
        f"{', '.join(f'armijo.{base.__name__}' for base in _BASES.values())}."
    )
