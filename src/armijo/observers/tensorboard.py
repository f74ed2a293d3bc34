"""What each step did, as scalars of TensorBoard; the writer it is given needs tensorboard."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from armijo.errors import ConfigurationError
from armijo.observers.recorder import is_first_rank
from armijo.observers.report import StepReport
from armijo.search.values import Status

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardObserver"]


class TensorBoardObserver:
    """An observer that writes the scalars of each step into a `torch.utils.tensorboard.SummaryWriter`.

    | tag, after the prefix | value |
    |---|---|
    | `loss` | f_k at the start of the step |
    | `forwards` | forward passes of the step |
    | `accepted` | the share of the components searched in this step that were; left out where none was searched |
    | `step_size/COMPONENT` | η |
    | `slope/COMPONENT` | S = ⟨g, d⟩ |

    The writer stays yours: flush and close it. On several ranks only rank 0 writes. A run that goes on from a
    checkpoint of step k takes back what was written since with `SummaryWriter(folder, purge_step=k + 1)`.

    Args:
        writer: where to write.
        prefix: what every tag begins with. `"train/"` gives the tags that the Hugging Face Trainer gives.

    Raises:
        ConfigurationError: `writer` is none, for instance the name of a folder.

    Examples:
        >>> import armijo
        >>> from armijo.observers.tensorboard import TensorBoardObserver
        >>> # writer = SummaryWriter("run")
        >>> # optimizer.register_observer(TensorBoardObserver(writer))
    """

    def __init__(self, writer: SummaryWriter, *, prefix: str = "train/") -> None:
        if not hasattr(writer, "add_scalar"):
            raise ConfigurationError(
                f"TensorBoardObserver takes a SummaryWriter, not a {type(writer).__name__}: "
                "TensorBoardObserver(torch.utils.tensorboard.SummaryWriter(folder))."
            )
        self._writer, self._prefix = writer, prefix

    def __call__(self, report: StepReport) -> None:
        """Write the scalars of one step."""
        if not is_first_rank():
            return
        scalars: dict[str, float] = {"loss": report.loss, "forwards": report.forwards}
        searched = [component for component in report.components if component.trials]
        if searched:
            accepted = sum(component.status is Status.ACCEPTED for component in searched)
            scalars["accepted"] = accepted / len(searched)
        for component in report.components:
            scalars[f"step_size/{component.label}"] = component.step_size
            if not math.isnan(component.slope):  # a step without a search may have none
                scalars[f"slope/{component.label}"] = component.slope
        for tag, value in scalars.items():
            self._writer.add_scalar(f"{self._prefix}{tag}", value, report.step)
