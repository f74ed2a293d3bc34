"""armijo's line searches, and the variants of the paper that they come from.

Arguments of all: `c` and `initial_step_size`.

Arguments of `adamsls`, `plasls` and `sgdsls`: `weight_decay`, `max_step_size`, and except for `sgdsls` `beta1` and
`beta2`. Arguments of `plasls`: `split` (layer, projection, module, tensor), and with split=layer `n_groups` (a number,
or layers for one group per layer). Arguments of `adamsls` that exchange a part of the default: `guess` (hypergradient,
growth), `share` (the largest share of the loss that a step may promise; inf for no bound) and `when` (demand, always).

`growing-adamsls`, `growing-plasls` and `growing-sgdsls` are what the three were until November 2026: β1 = 0.9, c = 0.1,
a step size that grows, a search in each step, of PLASLS one component at a time. `growing-plasls` also takes `schedule`
(cycle, each, joint), `joint_steps`, `merge` (mean, geometric_mean, minimum, neighbour, never) and `merge_below`.

Arguments of the `paper-` variants: `growth`, `shrink` and `max_trials`; `paper-plasls` also takes those of
`growing-plasls` except `merge`, and `baseline` (isolated, or moved for the order of updates in the released code).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from armijo_lab.errors import BadInputError
from armijo_lab.methods.base import Loss, Stepper, StepResult
from armijo_lab.methods.row import (
    Build,
    Keys,
    MethodRow,
    choice,
    fraction,
    integer,
    number,
    positive,
    trainable_parameters,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    import armijo

__all__ = ["PAPER_ROWS", "ROWS", "SearchStepper"]


class SearchStepper(Stepper):
    """Steps with armijo's optimizers, whose `step` takes the closure."""

    def step(self, *parts: Loss) -> StepResult:
        """Search for the step sizes and update the parameters."""
        loss = self.optimizer.step(parts[0] if len(parts) == 1 else self._accumulate(parts)).item()
        report = self.optimizer.report
        return StepResult(
            loss,
            forwards=report.forwards // len(parts),
            components=[
                {
                    "label": component.label,
                    "status": str(component.status),
                    "step_size": component.step_size,
                    "slope": component.slope,
                    "trials": component.trials,
                    "trial_loss": component.trial_loss,
                }
                for component in report.components
            ],
            merges=[list(merge) for merge in report.merges],
            searches=[
                {
                    "components": list(search.components),
                    "status": str(search.status),
                    "c": self.optimizer.search.criterion.c,
                    "slope": search.slope,
                    "trials": [[trial.step_size, trial.loss] for trial in search.trials],
                }
                for search in report.searches
            ],
            # Trials at η = 0 repeat the start on purpose.
            ties=sum(
                trial.loss == report.loss for search in report.searches for trial in search.trials if trial.step_size
            ),
        )

    def _accumulate(self, parts: Sequence[Loss]) -> Any:
        """Return the objective that sums the parts, with their gradients accumulated."""
        from armijo import Objective

        self.optimizer.zero_grad(set_to_none=True)
        objective = Objective()
        for part in parts:
            objective.baseline(part).backward()
        return objective

    def components(self) -> list[dict[str, Any]]:
        """Return label, step size and parameter count of each component."""
        groups = self.optimizer.param_groups
        return [
            {
                "label": component.label,
                "step_size": float(groups[component.groups[0]]["step_size"]),
                "parameters": sum(p.numel() for index in component.groups for p in groups[index]["params"]),
            }
            for component in self.optimizer.components
        ]


def _builder(make: Callable[[nn.Module, dict[str, Any]], Optimizer]) -> Build:
    """Turn a function from model and settings to an optimizer into a row's `build`."""

    def build(model: nn.Module, settings: dict[str, Any], total_steps: int) -> Stepper:
        from armijo.errors import ArmijoError

        try:
            return SearchStepper(make(model, settings))
        except ArmijoError as error:
            raise BadInputError(str(error)) from error

    return build


def _make_adamsls(model: nn.Module, settings: dict[str, Any]) -> Optimizer:
    import armijo

    parameters, settings = trainable_parameters(model), _join_betas(settings, 0.0)
    grows, share = settings.pop("guess", "hypergradient") == "growth", settings.pop("share", None)
    if grows and share is not None:
        raise BadInputError(
            "share bounds the hypergradient's step; with guess=growth there is no bound. Leave one out."
        )
    if settings.pop("when", "demand") == "always":
        settings["selection"] = armijo.Jointly()
    if not grows and share is None:
        return armijo.AdamSLS(parameters, **settings)
    # The other parts are the default's, as it is here.
    default = armijo.AdamSLS(parameters, **{name: settings[name] for name in settings.keys() & {"betas"}})
    search: Any = default.search
    direction: Any = default.direction
    guess: Any = search.guess
    if grows:
        direction, guess = direction.direction, armijo.Growth(guess.initial)
    else:
        guess = replace(guess, share=share)
    if "initial_step_size" in settings:
        guess = replace(guess, initial=settings.pop("initial_step_size"))
    criterion = armijo.Armijo(settings.pop("c", search.criterion.c))
    return armijo.LineSearch(
        parameters,
        direction=direction,
        search=replace(search, criterion=criterion, guess=guess),
        selection=settings.pop("selection", default.selection),
        partition=default.partition,
        **{name: settings[name] for name in settings.keys() - {"betas"}},
    )


def _make_plasls(model: nn.Module, settings: dict[str, Any]) -> Optimizer:
    import armijo

    settings = _join_betas(settings, 0.0)
    return armijo.PLASLS(_split(model, settings, settings.pop("split", "layer")), **settings)


def _make_sgdsls(model: nn.Module, settings: dict[str, Any]) -> Optimizer:
    import armijo

    return armijo.SGDSLS(trainable_parameters(model), **settings)


def _growing(parameters: Any, direction: armijo.Direction, settings: dict[str, Any], **parts: Any) -> Optimizer:
    """The former default with this direction; `parts` beside a joint search of the whole model in each step."""
    import armijo

    criterion, guess = armijo.Armijo(settings.pop("c", 0.1)), armijo.Growth(settings.pop("initial_step_size", 0.1))
    parts = {"selection": armijo.Jointly(), "partition": armijo.Together(), **parts}
    search = armijo.Backtracking(criterion, guess)
    return armijo.LineSearch(parameters, direction=direction, search=search, **parts, **settings)


def _growing_adam(parameters: Any, settings: dict[str, Any], **parts: Any) -> Optimizer:
    import armijo

    settings = _join_betas(settings, 0.9)
    return _growing(parameters, armijo.AdamDirection(settings.pop("betas", (0.9, 0.999))), settings, **parts)


def _make_growing_adamsls(model: nn.Module, settings: dict[str, Any]) -> Optimizer:
    return _growing_adam(trainable_parameters(model), settings)


def _make_growing_sgdsls(model: nn.Module, settings: dict[str, Any]) -> Optimizer:
    import armijo

    return _growing(trainable_parameters(model), armijo.GradientDirection(), settings)


def _make_growing_plasls(model: nn.Module, settings: dict[str, Any]) -> Optimizer:
    import armijo

    _choose_selection(settings)
    parts = {
        "selection": settings.pop("selection", armijo.Cycle()),
        "merging": _merging(settings.pop("merge", "mean"), settings.pop("merge_below", None)),
        "partition": armijo.ByLabel(),
    }
    return _growing_adam(_split(model, settings, settings.pop("split", "layer")), settings, **parts)


def _make_paper_plasls(model: nn.Module, settings: dict[str, Any]) -> Optimizer:
    import armijo.paper

    if settings.pop("baseline", "isolated") == "moved":
        from armijo_lab.methods.released import ReleasedPLASLS

        if settings.pop("schedule", "cycle") != "cycle":
            raise BadInputError("baseline=moved is the order of the released cycle; leave schedule out.")
        return ReleasedPLASLS(_split(model, settings, settings.pop("split", "layer")), **settings)
    _choose_selection(settings)
    return armijo.paper.PLASLS(_split(model, settings, settings.pop("split", "layer")), **settings)


def _make_paper_adamsls(model: nn.Module, settings: dict[str, Any]) -> Optimizer:
    import armijo.paper

    return armijo.paper.AdamSLS(trainable_parameters(model), **settings)


def _make_paper_sgdsls(model: nn.Module, settings: dict[str, Any]) -> Optimizer:
    import armijo.paper

    return armijo.paper.SGDSLS(trainable_parameters(model), **settings)


def _split(model: nn.Module, settings: dict[str, Any], by: str) -> Any:
    """Split the model into parameter groups; removes `n_groups` from the settings."""
    import armijo

    n_groups = settings.pop("n_groups", None)
    if n_groups == "layers":
        n_groups = _layer_count(model)
    return armijo.split(model, by=by, n_layer_groups=n_groups)


def _layer_count(model: nn.Module) -> int:
    from armijo_lab.models import inner

    layers = getattr(inner(model).config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise BadInputError(
            "n_groups=layers needs the number of layers, and the model's configuration has no num_hidden_layers; give "
            "a number, as in n_groups=4."
        )
    return layers


def _choose_selection(settings: dict[str, Any]) -> None:
    """Replace `schedule` and `joint_steps` by the selection that they describe."""
    import armijo

    if "schedule" in settings or "joint_steps" in settings:
        schedule, joint_steps = settings.pop("schedule", "cycle"), settings.pop("joint_steps", 6)
        if schedule == "joint":
            settings["selection"] = armijo.Jointly()
        else:
            settings["selection"] = {"cycle": armijo.Cycle, "each": armijo.EachAlone}[schedule](joint_steps)


def _merging(rule: str, below: float | None) -> Any:
    import armijo

    if rule == "never":
        return armijo.NeverMerge()
    threshold: dict[str, Any] = {} if below is None else {"below": below}
    if rule == "neighbour":
        return armijo.MergeNeighbours(**threshold)
    return armijo.MergeSmallest(**threshold, rule=cast(Any, rule))


def _join_betas(settings: dict[str, Any], beta1: float) -> dict[str, Any]:
    """Replace `beta1` and `beta2` by the pair `betas`."""
    if "beta1" in settings or "beta2" in settings:
        settings["betas"] = (settings.pop("beta1", beta1), settings.pop("beta2", 0.999))
    return settings


def _group_count(text: str) -> int | str:
    if text == "layers":
        return text
    try:
        return integer(1)(text)
    except ValueError as error:
        raise ValueError(f"{error}, or layers for one group per layer") from None


def _share(text: str) -> float:
    try:
        return math.inf if text == "inf" else positive(text)
    except ValueError as error:
        raise ValueError(f"{error}, or inf for no bound") from None


_COMMON: Keys = {"c": positive, "initial_step_size": positive}
_RECOMMENDED: Keys = {**_COMMON, "weight_decay": number(0), "max_step_size": positive}
_PAPER: Keys = {**_COMMON, "growth": number(1), "shrink": fraction, "max_trials": integer(1)}
_BETAS: Keys = {"beta1": fraction, "beta2": fraction}
_SPLIT: Keys = {"split": choice("layer", "projection", "module", "tensor"), "n_groups": _group_count}
_CYCLE: Keys = {
    **_SPLIT,
    "schedule": choice("cycle", "each", "joint"),
    "joint_steps": integer(0),
    "merge_below": number(0),
}
_EXCHANGED: Keys = {
    "guess": choice("hypergradient", "growth"),
    "share": _share,
    "when": choice("demand", "always"),
}
_MERGE: Keys = {"merge": choice("mean", "geometric_mean", "minimum", "neighbour", "never")}
_ADAM: Keys = {**_RECOMMENDED, **_BETAS}


def _row(name: str, keys: Keys, make: Callable[[nn.Module, dict[str, Any]], Optimizer]) -> MethodRow:
    return MethodRow(name, keys=keys, build=_builder(make), searches=True)


# None has defaults here: those of the library apply.
ROWS: tuple[MethodRow, ...] = (
    _row("adamsls", {**_ADAM, **_EXCHANGED}, _make_adamsls),
    _row("plasls", {**_SPLIT, **_ADAM}, _make_plasls),
    _row("sgdsls", _RECOMMENDED, _make_sgdsls),
    _row("growing-adamsls", _ADAM, _make_growing_adamsls),
    _row("growing-plasls", {**_CYCLE, **_MERGE, **_ADAM}, _make_growing_plasls),
    _row("growing-sgdsls", _RECOMMENDED, _make_growing_sgdsls),
)

PAPER_ROWS: tuple[MethodRow, ...] = (
    _row("paper-plasls", {**_CYCLE, **_PAPER, "baseline": choice("isolated", "moved")}, _make_paper_plasls),
    _row("paper-adamsls", _PAPER, _make_paper_adamsls),
    _row("paper-sgdsls", _PAPER, _make_paper_sgdsls),
)
