"""Adam's preconditioned direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch

from armijo.directions.base import Direction, ParameterState, Tensors, Workspace
from armijo.directions.fused import FusedAdamKernel
from armijo.errors import ConfigurationError
from armijo.families import inherits

__all__ = ["AdamDirection"]


@dataclass(frozen=True)
class AdamDirection(Direction):
    """Search along the preconditioned gradient, apply the preconditioned momentum.

    With m ← β1·m + (1-β1)·g, v ← β2·v + (1-β2)·g², m̂ = m/(1-β1^t), v̂ = v/(1-β2^t) and P = 1/(√v̂ + ε):

        d = P·g      to search along, with slope S = Σ g²·P
        u = P·m̂      to apply

    v includes the current gradient before the search. The momentum stays out of the trial: it belongs to other batches
    and need not be a direction of descent for this one. With β1 = 0 there is none: u = d, the accepted trial is the
    step, and no m is kept.

    Args:
        betas: (β1, β2), each in [0, 1). Groups may have others; where β1 is 0 here it is 0 in all of them.
        eps: ε ≥ 0.
        fused: whether to compute by the kernel of `torch.optim.AdamW(fused=True)`, which takes a third of the time and
            stores no direction, for parameters in single or double precision. By default (None) on the CPU, where it
            was measured; True: on CUDA and MPS too. Other tensors are left to torch's foreach functions, whose results
            differ by a rounding error.

    Raises:
        ConfigurationError: for values out of range, on construction or in a parameter group.

    Source:
        Kingma and Ba, arXiv 1412.6980; arXiv 2006.06835 (line search without momentum); arXiv 2403.18506 (ADAMSLS).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    fused: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.validate(self.defaults())

    def defaults(self) -> dict[str, Any]:
        """`betas` and `eps`."""
        return {"betas": self.betas, "eps": self.eps}

    def validate(self, group: Mapping[str, Any]) -> None:
        """Check the range of `betas` and `eps`."""
        betas = group["betas"]
        pair = isinstance(betas, tuple | list) and len(betas) == 2
        if not pair or not all(isinstance(beta, Real) and 0 <= float(beta) < 1 for beta in betas):
            raise ConfigurationError(f"betas is {betas}; both must lie in [0, 1), for instance (0.9, 0.999).")
        if betas[0] > 0 and not self._has_momentum:
            raise ConfigurationError(
                f"betas of a group is {betas}, but the optimizer was built with β1 = 0 and keeps no momentum. Build it "
                f"with betas={tuple(betas)}; of a scheduler that drives betas, as OneCycleLR does, set "
                "cycle_momentum=False."
            )
        eps = group["eps"]
        if not (isinstance(eps, Real) and 0 <= float(eps) < math.inf):
            raise ConfigurationError(f"eps is {eps}; it must be a number of 0 or more, for instance 1e-8.")

    def moments(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """`exp_avg` (m) and `exp_avg_sq` (v), named as torch's Adam names them; v alone where β1 is 0."""
        names = ("exp_avg", "exp_avg_sq") if self._has_momentum else ("exp_avg_sq",)
        return {name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in names}

    @property
    def _has_momentum(self) -> bool:
        return self.betas[0] > 0

    def search_direction(self, grads: Tensors, states: list[ParameterState], group: Mapping[str, Any]) -> Tensors:
        """The directions d = P·g from β2·v + (1-β2)·g², in new tensors; the moments are only read."""
        beta2 = group["betas"][1]
        scratch = list(torch._foreach_mul([state["exp_avg_sq"] for state in states], beta2))
        torch._foreach_addcmul_(scratch, grads, grads, 1 - beta2)
        # "step" does not count this step yet, because the search phase writes nothing.
        _precondition_(scratch, [1 - beta2 ** (float(state["step"]) + 1) for state in states], group["eps"])
        torch._foreach_mul_(scratch, grads)
        return scratch

    def update(
        self, grads: Tensors, states: list[ParameterState], scratch: Tensors, group: Mapping[str, Any]
    ) -> Tensors:
        """Take g into m and v, and return u = P·m̂ in `scratch`."""
        beta1, beta2 = group["betas"]
        steps = [float(state["step"]) for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        means = grads
        if self._has_momentum:
            means = [state["exp_avg"] for state in states]
            torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        torch._foreach_copy_(scratch, squares)
        _precondition_(scratch, [1 - beta2**step for step in steps], group["eps"])
        torch._foreach_mul_(scratch, means)
        torch._foreach_div_(scratch, [1 - beta1**step for step in steps])
        return scratch

    def updates_along_search(self, group: Mapping[str, Any]) -> bool:
        """Where β1 is 0, unless a subclass has changed one of them."""
        return group["betas"][0] == 0 and inherits(self, AdamDirection, "search_direction", "update")

    def kernel(
        self,
        parameters: Tensors,
        grads: Tensors,
        states: list[ParameterState],
        group: Mapping[str, Any],
        workspace: Workspace,
    ) -> FusedAdamKernel | None:
        """The fused kernel, if it is wanted and takes these tensors; a subclass with other arithmetic has none."""
        if self.fused is False or not inherits(self, AdamDirection, *_FUSED):
            return None
        if not FusedAdamKernel.takes(parameters, grads, states, ("cpu", "cuda", "mps") if self.fused else ("cpu",)):
            return None
        return FusedAdamKernel(grads, states, group, workspace)


_FUSED = ("moments", "search_direction", "update", "record_step", "probes", "updates_along_search")
"""What the fused kernel stands for."""


def _precondition_(squares: Tensors, corrections: list[float], eps: float) -> None:
    """In place: v becomes P = 1/(√(v/correction) + ε)."""
    torch._foreach_div_(squares, corrections)
    torch._foreach_sqrt_(squares)
    torch._foreach_add_(squares, eps)
    torch._foreach_reciprocal_(squares)
