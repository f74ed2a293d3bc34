"""Optimizers by name: `plasls:split=projection` becomes an optimizer, its schedule, and the way it steps."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from armijo_lab.errors import BadInputError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from armijo_lab.stepping import Stepper

__all__ = ["DEFAULT", "NAMES", "OURS", "Method", "parse"]

Value = str | float | int


def _number(low: float, high: float = math.inf) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            above = "" if high == math.inf else f" and at most {high:g}"
            raise ValueError(f"a number of at least {low:g}{above}")
        return value

    return read


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ValueError("a number above 0")
    return value


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise ValueError("a number of at least 0 and below 1")
    return value


def _integer(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise ValueError(f"a whole number of at least {low}")
        return int(text)

    return read


def _groups(text: str) -> int | str:
    if text == "layers":
        return text
    try:
        return _integer(1)(text)
    except ValueError as error:
        raise ValueError(f"{error}, or layers for as many as there are layers") from None


def _choice(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(" or ".join((", ".join(choices[:-1]), choices[-1])))
        return text

    return read


_Keys = Mapping[str, Callable[[str], Value]]

_SEARCH: _Keys = {"c": _positive, "initial_step_size": _positive}
_OURS: _Keys = {**_SEARCH, "weight_decay": _number(0), "max_step_size": _positive}
_BETAS: _Keys = {"beta1": _fraction, "beta2": _fraction}
_SPLIT: _Keys = {
    "split": _choice("layer", "projection", "module", "tensor"),
    "n_groups": _groups,
    "schedule": _choice("cycle", "each", "joint"),
    "joint_steps": _integer(0),
    "merge_below": _number(0),
}
_MERGE: _Keys = {"merge": _choice("mean", "geometric_mean", "minimum", "neighbour", "never")}
_PAPER: _Keys = {**_SEARCH, "growth": _number(1), "shrink": _fraction, "max_trials": _integer(1)}
_TORCH: _Keys = {
    "lr": _number(0),
    "weight_decay": _number(0),
    "schedule": _choice("constant", "linear", "cosine"),
    "warmup": _number(0, 1),
}
_ADAPTED: _Keys = {**_TORCH, "lr": _positive}
_AVERAGE: _Keys = {"average": _choice("yes", "no")}

_KEYS: Mapping[str, _Keys] = {
    "adamsls": {**_OURS, **_BETAS},
    "plasls": {**_SPLIT, **_MERGE, **_OURS, **_BETAS},
    "sgdsls": _OURS,
    "adam": _TORCH,
    "adamw": _TORCH,
    "sgd": {**_TORCH, "momentum": _fraction},
    "paper-plasls": {
        **_SPLIT,
        **_PAPER,
        "schedule": _choice("cycle", "each", "joint"),
        "baseline": _choice("isolated", "moved"),
    },
    "paper-adamsls": _PAPER,
    "paper-sgdsls": _PAPER,
    "salsa": {"c": _positive, "initial_step_size": _positive},
    "prodigy": _ADAPTED,
    "dadaptation": _ADAPTED,
    "mechanic": _ADAPTED,
    "schedulefree": {"lr": _positive, "weight_decay": _number(0), "warmup": _number(0, 1)},
    "dog": _AVERAGE,
    "ldog": _AVERAGE,
    "momo": {"lr": _positive},
    "momo-adam": {"lr": _positive},
    "gen": {"lr": _positive, "every": _integer(1)},
}

# Adapted rates are factors of what the method finds: 1 is what their authors advise, and no schedule.
_ADAPTED_DEFAULTS: Mapping[str, Value] = {"lr": 1.0, "schedule": "constant", "weight_decay": 0.0}

_DEFAULTS: Mapping[str, Mapping[str, Value]] = {
    # The baseline of arXiv 2403.18506: rate 2e-5, warm-up over a tenth of the steps, cosine decay.
    "adam": {"lr": 2e-5, "schedule": "cosine", "weight_decay": 0.0},
    # What the Hugging Face Trainer does if nothing is said: rate 5e-5, linear decay, no warm-up.
    "adamw": {"lr": 5e-5, "schedule": "linear", "weight_decay": 0.0},
    # torch's own rate, with the usual momentum.
    "sgd": {"lr": 1e-3, "schedule": "constant", "weight_decay": 0.0, "momentum": 0.9},
    # What the packages have as their own defaults.
    "salsa": {"c": 0.5, "initial_step_size": 1.0},
    "prodigy": _ADAPTED_DEFAULTS,
    "dadaptation": _ADAPTED_DEFAULTS,
    "mechanic": _ADAPTED_DEFAULTS,
    "schedulefree": {"lr": 2.5e-3, "weight_decay": 0.0, "warmup": 0.0},
    "dog": {"average": "yes"},
    "ldog": {"average": "yes"},
    "momo": {"lr": 1.0},
    "momo-adam": {"lr": 1e-2},
    # GeN corrects a rate that it is given, by a tenth at most each time.
    "gen": {"lr": 1e-4, "every": 4},
}

_PACKAGES: Mapping[str, tuple[str, str]] = {
    # name -> the module, and the package it comes from
    "salsa": ("salsa", "SaLSa-Optimizer"),
    "prodigy": ("prodigyopt", "prodigyopt"),
    "dadaptation": ("dadaptation", "dadaptation"),
    "mechanic": ("mechanic_pytorch", "mechanic-pytorch"),
    "schedulefree": ("schedulefree", "schedulefree"),
    "dog": ("dog", "dog-optimizer"),
    "ldog": ("dog", "dog-optimizer"),
    "momo": ("momo", "momo-opt"),
    "momo-adam": ("momo", "momo-opt"),
    "gen": ("GeN", "gen-optim"),
}

NAMES: tuple[str, ...] = tuple(_KEYS)
"""Every optimizer that `--optimizer` takes."""
OURS: tuple[str, ...] = tuple(name for name in NAMES if name not in _DEFAULTS)
"""Those among them that are armijo's line searches."""
DEFAULT = "adamsls"
"""What trains where nothing is said; docs/choosing.md tells why."""


@dataclass(frozen=True)
class Method:
    """An optimizer that was asked for by name.

    Attributes:
        text: What the user wrote, as in `adam:lr=2e-5,schedule=cosine`.
        name: The name in it, one of `NAMES`.
        arguments: What the user wrote after the name, read; without the defaults.
    """

    text: str
    name: str
    arguments: Mapping[str, Value]

    @property
    def searches(self) -> bool:
        """Whether it is one of armijo's line searches."""
        return self.name in OURS

    @property
    def resumable(self) -> bool:
        """Whether a checkpoint holds all that it knows; of others' optimizers that is not sure."""
        return self.name not in _PACKAGES

    @property
    def distributed(self) -> bool:
        """Whether several processes that share the rows take the same steps: not where a package compares losses."""
        return self.name not in ("salsa", "momo", "momo-adam", "gen")

    @property
    def settings(self) -> dict[str, Value]:
        """The arguments with the lab's defaults filled in; the defaults of line searches are the library's."""
        settings = {**_DEFAULTS.get(self.name, {}), **self.arguments}
        if "schedule" in settings and not self.searches:
            # A constant rate has no warm-up, whatever the optimizer.
            settings.setdefault("warmup", 0.1 if self.name == "adam" and settings["schedule"] != "constant" else 0.0)
        return settings

    @property
    def shown(self) -> dict[str, Value]:
        """The arguments, and in any case what nobody should have to guess: rate and schedule, where there is one."""
        essential = () if self.searches else ("lr", "schedule")
        return {key: value for key, value in self.settings.items() if key in essential or key in self.arguments}

    def build(self, model: nn.Module, total_steps: int) -> Stepper:
        """The optimizer over the model's trainable parameters, with the schedule of its rate, ready to step.

        Args:
            model: What is trained.
            total_steps: The number of steps that the schedule spans, ≥ 1.

        Raises:
            BadInputError: The model cannot be split as asked, the library refuses an argument, or the package that
                the optimizer comes from is not installed.
        """
        from armijo_lab import stepping

        if self.searches:
            from armijo.errors import ArmijoError

            try:
                return stepping.SearchStepper(self._build_line_search(model))
            except ArmijoError as error:
                raise BadInputError(f"The optimizer {self.text!r} cannot be built: {error}") from error
        if self.name in _PACKAGES:
            module, package = _PACKAGES[self.name]
            if importlib.util.find_spec(module) is None:
                raise BadInputError(
                    f"The optimizer {self.name} comes from the package {package}, which is not installed; install it "
                    f"with: pip install {package}, or all of them with: pip install 'armijo[rivals]'."
                )
            return self._build_foreign(model, total_steps)
        return stepping.Stepper(*self._build_torch(model, total_steps))

    def _build_line_search(self, model: nn.Module) -> Optimizer:
        import armijo
        import armijo.paper

        keywords: dict[str, Any] = dict(self.arguments)
        turns = {"cycle": armijo.Cycle, "each": armijo.EachInTurn, "joint": _jointly}
        if self.name.startswith("paper-"):
            classes = {
                "paper-plasls": armijo.paper.PLASLS,
                "paper-adamsls": armijo.paper.AdamSLS,
                "paper-sgdsls": armijo.paper.SGDSLS,
            }
            if keywords.pop("baseline", "isolated") == "moved":
                from armijo_lab.released import ReleasedOrder

                classes["paper-plasls"] = ReleasedOrder
            if "schedule" in keywords:
                keywords["schedule"] = turns[keywords["schedule"]]
        else:
            classes = {"plasls": armijo.PLASLS, "adamsls": armijo.AdamSLS, "sgdsls": armijo.SGDSLS}
            if "schedule" in keywords or "joint_steps" in keywords:
                joint_steps = keywords.pop("joint_steps", armijo.Cycle().joint_steps)
                keywords["turn"] = turns[keywords.pop("schedule", "cycle")](joint_steps)
            if "merge" in keywords or "merge_below" in keywords:
                keywords["merging"] = _merging(keywords.pop("merge", "mean"), keywords.pop("merge_below", None))
        if "beta1" in keywords or "beta2" in keywords:
            keywords["betas"] = (keywords.pop("beta1", 0.9), keywords.pop("beta2", 0.999))
        parameters: Any
        if self.name.endswith("plasls"):
            by, n_groups = keywords.pop("split", "layer"), keywords.pop("n_groups", None)
            if n_groups == "layers":
                n_groups = _layers(model, self.text)
            parameters = armijo.split(model, by=by, n_groups=n_groups)
        else:
            parameters = _trainable(model)
        return classes[self.name](parameters, **keywords)

    def _build_torch(self, model: nn.Module, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        import torch

        settings: dict[str, Any] = self.settings
        schedule, warmup = settings.pop("schedule"), settings.pop("warmup")
        classes = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        optimizer = classes[self.name](_trainable(model), **settings)
        return optimizer, _scheduler(optimizer, schedule, warmup, total_steps)

    def _build_foreign(self, model: nn.Module, total_steps: int) -> Stepper:
        from armijo_lab import stepping

        settings: dict[str, Any] = self.settings
        schedule, warmup = settings.pop("schedule", None), settings.pop("warmup", 0.0)
        parameters = _trainable(model)
        if self.name == "salsa":
            from salsa.SaLSA import SaLSA

            return stepping.SalsaStepper(
                SaLSA(parameters, init_step_size=settings["initial_step_size"], c=settings["c"])
            )
        if self.name in ("dog", "ldog"):
            import dog

            optimizer = {"dog": dog.DoG, "ldog": dog.LDoG}[self.name](parameters)
            if settings["average"] == "no":
                return stepping.HiddenRateStepper(optimizer)
            return stepping.Averaged(optimizer, dog.PolynomialDecayAverager(model), model)
        if self.name.startswith("momo"):
            import momo

            return stepping.MomoStepper(
                {"momo": momo.Momo, "momo-adam": momo.MomoAdam}[self.name](parameters, **settings)
            )
        if self.name == "gen":
            import torch

            every = settings.pop("every")
            optimizer = torch.optim.AdamW(parameters, **settings, weight_decay=0.0)
            return stepping.GenStepper(optimizer, model, every)
        if self.name == "schedulefree":
            import schedulefree

            warmup_steps = math.ceil(warmup * total_steps)
            return stepping.ModalStepper(
                schedulefree.AdamWScheduleFree(parameters, warmup_steps=warmup_steps, **settings)
            )
        optimizer = _adapting(self.name)(parameters, **settings)
        kind = stepping.HiddenRateStepper if self.name == "mechanic" else stepping.FoundRateStepper
        return kind(optimizer, _scheduler(optimizer, schedule, warmup, total_steps))


def _adapting(name: str) -> Callable[..., Any]:
    if name == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy
    if name == "dadaptation":
        from dadaptation import DAdaptAdam

        return DAdaptAdam
    import torch
    from mechanic_pytorch import mechanize

    return mechanize(torch.optim.AdamW)


def _scheduler(optimizer: Optimizer, schedule: str, warmup: float, total_steps: int) -> LRScheduler:
    from torch.optim.lr_scheduler import LambdaLR

    warmup_steps = math.ceil(warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        left = 1 - (step - warmup_steps) / max(1, total_steps - warmup_steps)
        if schedule == "linear":
            return max(0.0, left)
        if schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (1 - left)))
        return 1.0

    return LambdaLR(optimizer, factor)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _layers(model: nn.Module, text: str) -> int:
    from armijo_lab.models import inner

    layers = getattr(inner(model).config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise BadInputError(f"The optimizer {text!r} asks for a group for each layer, and the model names no number.")
    return layers


def _jointly(joint_steps: int) -> Any:
    import armijo

    return armijo.Jointly()


def _merging(rule: str, below: float | None) -> Any:
    import armijo

    if rule == "never":
        return armijo.NeverMerge()
    threshold: dict[str, Any] = {} if below is None else {"below": below}
    if rule == "neighbour":
        return armijo.MergeNeighbours(**threshold)
    return armijo.MergeSmallest(**threshold, rule=cast(Any, rule))


def parse(text: str) -> Method:
    """Read `NAME[:key=value,…]`.

    Args:
        text: A name of `NAMES`, and after a colon its arguments. For `plasls`: `split` (layer, projection, module,
            tensor), `n_groups` (a number, or layers), `schedule` (cycle, each, joint), `joint_steps`, `merge` (mean,
            geometric_mean, minimum, neighbour, never), `merge_below`; for it, `adamsls` and `sgdsls`: `c`,
            `initial_step_size`, `weight_decay`, `max_step_size`, and but for `sgdsls` `beta1`, `beta2`; for `adam`,
            `adamw`, `sgd`: `lr`, `weight_decay`, `schedule` (constant, linear, cosine), `warmup` (the fraction of
            the steps over which the rate rises), and for `sgd` `momentum`. The `paper-` variants take the keywords
            of `armijo.paper`, and `paper-plasls` also `baseline` (isolated; moved: as the released code does it).
            The others come from packages of their own: `salsa` (`c`, `initial_step_size`), `prodigy`, `dadaptation`
            and `mechanic` (`lr`, `weight_decay`, `schedule`, `warmup`), `schedulefree` (`lr`, `weight_decay`,
            `warmup`), `dog` and `ldog` (`average`: yes, no), `momo` and `momo-adam` (`lr`), `gen` (`lr`, `every`:
            steps between corrections of the rate).

            Unless told otherwise, `adam` is the baseline of arXiv 2403.18506 (rate 2e-5, cosine decay after a
            warm-up over 0.1 of the steps; none where `schedule=constant`) and `adamw` what the Hugging Face Trainer
            does (rate 5e-5, linear decay, no warm-up). Under a warm-up the rate of step 1 is 0, as in the schedules
            of transformers: that step moves nothing.

    Raises:
        BadInputError: A name, key or value that there is not; the sentence lists what there is.
    """
    name, _, rest = text.partition(":")
    name = name.strip().lower()
    if name not in _KEYS:
        raise BadInputError(f"There is no optimizer {name!r}; choose one of {', '.join(NAMES)}.")
    keys = _KEYS[name]
    arguments: dict[str, Value] = {}
    for item in rest.split(",") if rest.strip() else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise BadInputError(
                f"The optimizer {text!r} cannot be read at {item!r}; write NAME:key=value,key=value, "
                f"where {name} takes the keys {', '.join(keys)}."
            )
        if key not in keys:
            raise BadInputError(f"The optimizer {name} takes no {key!r}; it takes {', '.join(keys)}.")
        if key in arguments:
            raise BadInputError(f"The optimizer {text!r} gives {key!r} twice; give it once.")
        try:
            arguments[key] = keys[key](value)
        except ValueError as error:
            raise BadInputError(f"In the optimizer {text!r}, {key} must be {error}, not {value!r}.") from None
    if "n_groups" in arguments and arguments.get("split", "layer") != "layer":
        raise BadInputError(
            f"The optimizer {text!r} gives n_groups, which counts groups of layers; leave it out, or use split=layer."
        )
    return Method(text, name, arguments)
