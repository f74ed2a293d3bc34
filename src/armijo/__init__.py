"""Fine-tune transformers without a learning rate: at each step a line search finds the step size.

Examples:
    >>> import torch, armijo
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = armijo.AdamSLS(model.parameters())
    >>> inputs, labels = torch.randn(8, 4), torch.randint(2, (8,))
    >>> loss = optimizer.step(lambda: torch.nn.functional.cross_entropy(model(inputs), labels))
"""

from armijo import paper
from armijo.components.merging import MergeNeighbours, MergeSmallest, NeverMerge
from armijo.components.partition import ByLabel, Together
from armijo.components.splitting import split
from armijo.components.turns import Cycle, EachInTurn, Jointly
from armijo.directions.adam import Adam
from armijo.directions.gradient import Gradient
from armijo.errors import (
    ArmijoError,
    ClosureContractError,
    ConfigurationError,
    MissingClosureError,
    RankError,
    SplitError,
)
from armijo.evaluation.objective import Objective, Record
from armijo.evaluation.rng import RandomState
from armijo.optimizer import LineSearch
from armijo.recipes import PLASLS, SGDSLS, AdamSLS
from armijo.recorder import StepRecorder, read_steps
from armijo.report import ComponentReport, StepReport
from armijo.search.backtracking import Backtracking, FixedStep, PaperBacktracking
from armijo.search.criteria import Armijo
from armijo.search.guesses import Growth
from armijo.search.records import Line, Outcome, Status, Trial

__version__ = "0.1.0"

__all__ = [
    "PLASLS",
    "SGDSLS",
    "Adam",
    "AdamSLS",
    "Armijo",
    "ArmijoError",
    "Backtracking",
    "ByLabel",
    "ClosureContractError",
    "ComponentReport",
    "ConfigurationError",
    "Cycle",
    "EachInTurn",
    "FixedStep",
    "Gradient",
    "Growth",
    "Jointly",
    "Line",
    "LineSearch",
    "MergeNeighbours",
    "MergeSmallest",
    "MissingClosureError",
    "NeverMerge",
    "Objective",
    "Outcome",
    "PaperBacktracking",
    "RandomState",
    "RankError",
    "Record",
    "SplitError",
    "Status",
    "StepRecorder",
    "StepReport",
    "Together",
    "Trial",
    "paper",
    "read_steps",
    "split",
]
