"""The recommended optimizers: each is `LineSearch` with chosen parts.

| | direction | guess |
|---|---|---|
| `SGDSLS` | `GradientDirection()` | `Growth(10.0)` |
| `AdamSLS`, `PLASLS` | `KeepLastGradient(AdamDirection((0.0, 0.999)))` | `Hypergradient()` |

The search of all three is `Backtracking(Armijo(0.5), guess)`, their selection `OnDemand()`. The first two have one
component for the whole model, `Together()`, and nothing to merge; PLASLS has `ByLabel()` and `MergeSmallest()`.

They take what they have tried and search on demand; the two with Adam's direction let the next batch correct their step
sizes. In these points they differ from `armijo.paper`, and in three more: the search contracts faster the longer it
fails, so that one from far above takes a dozen trials instead of seventy; a search that finds nothing moves nothing and
keeps the step size; a component without a slope keeps its step size.
"""

from __future__ import annotations

import logging
from typing import Any, TypedDict, Unpack

from torch.optim.optimizer import ParamsT

from armijo.components.merging import MergeSmallest, Merging, NeverMerge
from armijo.components.on_demand import OnDemand
from armijo.components.partition import ByLabel, Together
from armijo.components.selection import Selection
from armijo.directions.adam import AdamDirection
from armijo.directions.gradient import GradientDirection
from armijo.directions.last_gradient import KeepLastGradient
from armijo.optimizer import LineSearch
from armijo.search.backtracking import Backtracking
from armijo.search.criteria import Armijo
from armijo.search.guesses import Growth, Hypergradient

__all__ = ["PLASLS", "SGDSLS", "AdamSLS", "Options"]

logger = logging.getLogger("armijo")


class Options(TypedDict, total=False):
    """Keywords that all recommended optimizers hand on to `LineSearch`.

    Attributes:
        maximize: climb instead of descend; False by default.
        max_step_size: an upper bound of η, > 0; infinite by default.
        process_group: the ranks over which the loss is a mean; by default those of the wrapped model, if it is one.
    """

    maximize: bool
    max_step_size: float
    process_group: Any


def _check_options(optimizer: LineSearch, options: Options) -> None:
    name, unknown = type(optimizer).__name__, sorted(options.keys() - Options.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"{name} takes no {', '.join(unknown)}. It is LineSearch with chosen parts; to choose others use "
            "armijo.LineSearch(params, direction=..., search=armijo.Backtracking(criterion=..., guess=...), "
            "selection=..., merging=...)."
        )


class SGDSLS(LineSearch):
    """Stochastic gradient descent with an Armijo line search.

        trial   w(η) = w - η·g        accepted if f(w(η)) ≤ f(w) - c·η·‖g‖²        update w ← w(η)

    Args:
        params: parameters, groups or named parameters; one step size for all of them.
        lr: a multiplier of the found step size, ≥ 0.
        weight_decay: decoupled, ≥ 0: w ← (1 - lr·η·λ)·w.
        c: the share of the promised decrease that a trial must reach, 0 < c < 1.
        initial_step_size: the first η to try, > 0.
        selection: when to search: on demand, or in every step with `Jointly()`.
        options: `maximize`, `max_step_size`, `process_group`; see `LineSearch`.

    Raises:
        ConfigurationError: if an argument or a group cannot be used.

    Source:
        arXiv 1905.09997; arXiv 2403.18506, with the changes named in this module's docstring.

    Examples:
        >>> import torch, armijo
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = armijo.SGDSLS([weight])
        >>> optimizer.step(lambda: (weight**2).sum()).item()
        3.0
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        *,
        c: float = 0.5,
        initial_step_size: float = 10.0,
        selection: Selection = OnDemand(),
        **options: Unpack[Options],
    ) -> None:
        _check_options(self, options)
        super().__init__(
            params,
            direction=GradientDirection(),
            search=Backtracking(Armijo(c), Growth(initial_step_size)),
            selection=selection,
            merging=NeverMerge(),
            partition=Together(),
            lr=lr,
            weight_decay=weight_decay,
            **options,
        )


class AdamSLS(LineSearch):
    """Adam with a line search: one step size for the whole model, and no learning rate.

        trial   w(η) = w - η·P·g      accepted if f(w(η)) ≤ f(w) - c·η·Σ g²·P      update w ← w(η)

    with Adam's preconditioner P = 1/(√v̂ + ε). The step is the trial: there is no momentum unless you ask for it. From
    step to step the next batch corrects η, at no forward pass (`Hypergradient`).

    Args:
        params: parameters, groups or named parameters; one step size for all of them.
        lr: a multiplier of the found step size, ≥ 0.
        betas: Adam's (β1, β2), each in [0, 1). With β1 > 0 the update is w - η·P·m̂, with a bias-corrected momentum m̂
            that no trial has tested.
        eps: Adam's ε ≥ 0.
        weight_decay: decoupled, ≥ 0: w ← (1 - lr·η·λ)·w.
        c: the share of the promised decrease that a trial must reach, 0 < c < 1.
        initial_step_size: the longest first η to try, > 0; less where that would promise more than the loss.
        selection: when to search: on demand, or in every step with `Jointly()`.
        options: `maximize`, `max_step_size`, `process_group`; see `LineSearch`.

    Raises:
        ConfigurationError: if an argument or a group cannot be used.

    Source:
        arXiv 2403.18506 (ADAMSLS), with the changes named in this module's docstring; arXiv 1703.04782.

    Examples:
        >>> import torch, armijo
        >>> model = torch.nn.Linear(4, 2)
        >>> inputs, labels = torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = armijo.AdamSLS(model.parameters())
        >>> loss = optimizer.step(lambda: torch.nn.functional.cross_entropy(model(inputs), labels))
        >>> optimizer.report.components[0].status
        <Status.ACCEPTED: 'accepted'>
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.0, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        c: float = 0.5,
        initial_step_size: float = 0.1,
        selection: Selection = OnDemand(),
        **options: Unpack[Options],
    ) -> None:
        _check_options(self, options)
        super().__init__(
            params,
            direction=KeepLastGradient(AdamDirection(betas, eps)),
            search=Backtracking(Armijo(c), Hypergradient(initial_step_size)),
            selection=selection,
            merging=NeverMerge(),
            partition=Together(),
            lr=lr,
            weight_decay=weight_decay,
            **options,
        )


class PLASLS(LineSearch):
    """AdamSLS with a step size for each component of the network.

        trial   every component together: w^(l)(s) = w^(l) - s·η_l·P^(l)·g^(l)
                accepted if f(w(s)) ≤ f(w) - c·s·Σ_l η_l·S^(l), with S^(l) = Σ over l of g²·P
        update  w ← w(s), η_l ← s·η_l

    From step to step the next batch corrects each η_l by itself, at no forward pass (`Hypergradient`); searches test
    what the components do together.

    Args:
        params: labelled groups, as `armijo.split` makes them. A group without "component" is a component of its own.
        lr: a multiplier of the found step sizes, ≥ 0.
        betas: Adam's (β1, β2), each in [0, 1). With β1 > 0 the update is w - η·P·m̂, with a bias-corrected momentum m̂
            that no trial has tested.
        eps: Adam's ε ≥ 0.
        weight_decay: decoupled, ≥ 0: w ← (1 - lr·η·λ)·w.
        c: the share of the promised decrease that a trial must reach, 0 < c < 1.
        initial_step_size: the longest first η to try, > 0; less where that would promise more than the loss.
        selection: when and what to search: all components together, on demand; `Jointly()` does so in every step, the
            paper's `Cycle()` one component a step, `EachAlone()` every component alone.
        merging: when two components become one.
        options: `maximize`, `max_step_size`, `process_group`; see `LineSearch`.

    Raises:
        ConfigurationError: if an argument or a group cannot be used.

    Source:
        arXiv 2403.18506 (PLASLS), with the changes named in this module's docstring; arXiv 1703.04782.

    Examples:
        >>> import torch, armijo
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> inputs, labels = torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = armijo.PLASLS(armijo.split(model, by="module"))
        >>> loss = optimizer.step(lambda: torch.nn.functional.cross_entropy(model(inputs), labels))
        >>> [component.label for component in optimizer.components]
        ['0', '2']
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.0, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        c: float = 0.5,
        initial_step_size: float = 0.1,
        selection: Selection = OnDemand(),
        merging: Merging = MergeSmallest(),
        **options: Unpack[Options],
    ) -> None:
        _check_options(self, options)
        super().__init__(
            params,
            direction=KeepLastGradient(AdamDirection(betas, eps)),
            search=Backtracking(Armijo(c), Hypergradient(initial_step_size)),
            selection=selection,
            merging=merging,
            partition=ByLabel(),
            lr=lr,
            weight_decay=weight_decay,
            **options,
        )
        (first, *others) = self.param_groups
        if not others and first["component"] == "group 0" and len(first["params"]) > 1:
            logger.warning(
                "PLASLS was given one component, and is AdamSLS then. Split the model: "
                'armijo.PLASLS(armijo.split(model, by="layer")).'
            )
