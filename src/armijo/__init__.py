"""Fine-tune transformers without a learning rate: at each step a line search finds the step size.

Examples:
    >>> import torch, armijo
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = armijo.AdamSLS(model.parameters())
    >>> inputs, labels = torch.randn(8, 4), torch.randint(2, (8,))
    >>> loss = optimizer.step(lambda: torch.nn.functional.cross_entropy(model(inputs), labels))
"""

from armijo import paper
from armijo.averaging import polynomial_average
from armijo.components.merging import Merge, MergeNeighbours, MergeSmallest, Merging, NeverMerge
from armijo.components.on_demand import OnDemand
from armijo.components.partition import ByLabel, Component, Partition, Together
from armijo.components.selection import Cycle, EachAlone, Every, Jointly, Selection
from armijo.components.splitting import split
from armijo.directions.adam import AdamDirection
from armijo.directions.base import Direction
from armijo.directions.gradient import GradientDirection
from armijo.directions.last_gradient import KeepLastGradient
from armijo.directions.last_step import KeepLastStep
from armijo.errors import (
    ArmijoError,
    ClosureContractError,
    ConfigurationError,
    MissingClosureError,
    RankError,
    SplitError,
)
from armijo.evaluation.objective import Objective, RecordedForward
from armijo.evaluation.rng import RandomState
from armijo.observers.recorder import StepRecorder, read_steps
from armijo.observers.report import ComponentReport, SearchReport, StepReport
from armijo.optimizer import LineSearch
from armijo.recipes import PLASLS, SGDSLS, AdamSLS
from armijo.search.backtracking import Backtracking, FixedStep, PaperBacktracking
from armijo.search.base import CriterionSearch, Search
from armijo.search.bracketing import Bracketing
from armijo.search.criteria import Armijo, Criterion, Goldstein, NonMonotoneArmijo, SmoothedArmijo
from armijo.search.guesses import Growth, Guess, Hypergradient, Parabola, Polyak
from armijo.search.memory import Memory, combine_memory
from armijo.search.values import Evaluate, Line, Outcome, SearchResult, Status, Trial

__version__ = "0.1.0"

__all__ = [
    "PLASLS",
    "SGDSLS",
    "AdamDirection",
    "AdamSLS",
    "Armijo",
    "ArmijoError",
    "Backtracking",
    "Bracketing",
    "ByLabel",
    "ClosureContractError",
    "Component",
    "ComponentReport",
    "ConfigurationError",
    "Criterion",
    "CriterionSearch",
    "Cycle",
    "Direction",
    "EachAlone",
    "Evaluate",
    "Every",
    "FixedStep",
    "Goldstein",
    "GradientDirection",
    "Growth",
    "Guess",
    "Hypergradient",
    "Jointly",
    "KeepLastGradient",
    "KeepLastStep",
    "Line",
    "LineSearch",
    "Memory",
    "Merge",
    "MergeNeighbours",
    "MergeSmallest",
    "Merging",
    "MissingClosureError",
    "NeverMerge",
    "NonMonotoneArmijo",
    "Objective",
    "OnDemand",
    "Outcome",
    "PaperBacktracking",
    "Parabola",
    "Partition",
    "Polyak",
    "RandomState",
    "RankError",
    "RecordedForward",
    "Search",
    "SearchReport",
    "SearchResult",
    "Selection",
    "SmoothedArmijo",
    "SplitError",
    "Status",
    "StepRecorder",
    "StepReport",
    "Together",
    "Trial",
    "combine_memory",
    "paper",
    "polynomial_average",
    "read_steps",
    "split",
]
