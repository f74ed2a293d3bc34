"""Every part of the library, some with several settings, and the parts of `extensions.py`."""

from __future__ import annotations

import math

import armijo
from contracts.extensions import (
    AdaBelief,
    AloneThenTogether,
    BarzilaiBorwein,
    JudgedByNextBatch,
    LargestOfTheLast,
    LearnedRatios,
    Lion,
    OnDemand,
    WhileLossRose,
)

CRITERIA = [
    armijo.Armijo(0.1),
    armijo.Armijo(0.5),
    armijo.Goldstein(),
    armijo.Goldstein(0.4),
    armijo.SmoothedArmijo(),
    armijo.SmoothedArmijo(0.3, 0.0),
    armijo.NonMonotoneArmijo(),
    armijo.NonMonotoneArmijo(0.1, 0.5),
]
GUESSES = [
    armijo.Growth(),
    armijo.Growth(1.0, 2.0),
    armijo.Growth(0.01, 1.0),
    armijo.Parabola(),
    armijo.Parabola(1.0, 0.0, 2.0),
    armijo.Polyak(),
    armijo.Hypergradient(),
    armijo.Hypergradient(1.0, 2.0, 0.1),
    armijo.Hypergradient(1.0, 0.5, 0.5, 0.0, share=math.inf),
]
SEARCHES = [
    armijo.FixedStep(0.3),
    armijo.Backtracking(),
    armijo.Backtracking(armijo.SmoothedArmijo()),
    armijo.Backtracking(armijo.NonMonotoneArmijo(), armijo.Polyak(), shrink=0.5),
    armijo.Backtracking(armijo.Armijo(0.5), armijo.Parabola()),
    armijo.PaperBacktracking(),
    armijo.Backtracking(shrink=0.5, max_trials=8),
    armijo.PaperBacktracking(shrink=0.5, max_trials=5),
    armijo.Bracketing(),
    armijo.Bracketing(armijo.Armijo(0.1), factor=10.0),
    armijo.Bracketing(armijo.Goldstein(0.4), max_trials=60),
]
SELECTIONS = [
    armijo.Jointly(),
    armijo.Cycle(),
    armijo.Cycle(0),
    armijo.EachAlone(),
    armijo.EachAlone(0),
    armijo.Every(3),
    armijo.Every(2, armijo.Cycle(1)),
    armijo.OnDemand(4),
    armijo.OnDemand(2, 0, selection=armijo.EachAlone(0)),
]
MERGINGS = [
    armijo.NeverMerge(),
    armijo.MergeSmallest(),
    *(
        kind(1e-2, rule)
        for kind in (armijo.MergeSmallest, armijo.MergeNeighbours)
        for rule in ("mean", "geometric_mean", "minimum")
    ),
]
PARTITIONS = [armijo.ByLabel(), armijo.Together()]
DIRECTIONS = [
    armijo.GradientDirection(),
    armijo.AdamDirection(),
    armijo.AdamDirection((0.5, 0.9), 1e-3),
    armijo.AdamDirection((0.0, 0.999)),
    armijo.KeepLastGradient(armijo.GradientDirection()),
    armijo.KeepLastGradient(armijo.AdamDirection((0.0, 0.999))),
    armijo.KeepLastGradient(armijo.KeepLastStep(armijo.AdamDirection())),
    armijo.KeepLastStep(armijo.KeepLastGradient(armijo.AdamDirection((0.0, 0.999)))),
    armijo.KeepLastStep(armijo.GradientDirection()),
    armijo.KeepLastStep(armijo.AdamDirection()),
]
LIBRARY = [*CRITERIA, *GUESSES, *SEARCHES, *SELECTIONS, *MERGINGS, *PARTITIONS, *DIRECTIONS]

EXTENSIONS = [
    Lion(),
    AdaBelief(),
    LargestOfTheLast(),
    BarzilaiBorwein(),
    LearnedRatios(),
    JudgedByNextBatch(),
    WhileLossRose(),
    AloneThenTogether(),
    OnDemand(),
    OnDemand(4),
    armijo.Backtracking(guess=BarzilaiBorwein()),
    armijo.KeepLastStep(Lion()),
    armijo.KeepLastGradient(Lion()),
    armijo.Every(3, OnDemand()),
]
