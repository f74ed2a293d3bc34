"""The published numbers of the paper, and a table of them beside those of a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from armijo_lab.results import quantities
from armijo_lab.results.cells import Cell
from armijo_lab.results.formatting import NOT_RUN, format_spread, number_text
from armijo_lab.results.tables import aligned

__all__ = ["published_table"]

_SMALL: dict[tuple[str, str], tuple[float, float | None]] = {
    # Digitised from the plots of arXiv 2403.18506, mean of five runs: final accuracy, final training loss.
    ("sst2", "adam"): (0.847, 0.037),
    ("sst2", "paper-sgdsls"): (0.851, None),
    ("sst2", "paper-adamsls"): (0.853, 0.0080),
    ("sst2", "paper-plasls"): (0.852, 0.0031),
    ("mrpc", "adam"): (0.700, 0.22),
    ("mrpc", "paper-sgdsls"): (0.729, None),
    ("mrpc", "paper-adamsls"): (0.740, 0.0062),
    ("mrpc", "paper-plasls"): (0.724, 0.0062),
    ("qnli", "adam"): (0.732, 0.117),
    ("qnli", "paper-sgdsls"): (0.712, None),
    ("qnli", "paper-adamsls"): (0.754, 0.0086),
    ("qnli", "paper-plasls"): (0.741, 0.0136),
    ("mnli", "adam"): (0.470, 0.53),
    ("mnli", "paper-sgdsls"): (0.484, None),
    ("mnli", "paper-adamsls"): (0.553, 0.0088),
    ("mnli", "paper-plasls"): (0.529, 0.015),
}
_FULL: dict[tuple[str, str], tuple[float, float | None]] = {
    (task, name): (value, None)
    for task, values in {
        "sst2": (0.927, 0.917, 0.926, 0.923),
        "mrpc": (0.828, 0.844, 0.867, 0.856),
        "qnli": (0.909, 0.897, 0.904, 0.902),
        "mnli": (0.834, 0.828, 0.835, 0.830),
    }.items()
    for name, value in zip(("adam", "paper-sgdsls", "paper-adamsls", "paper-plasls"), values, strict=True)
}


_SETS = {"small": _SMALL, "full": _FULL}


def published_table(sets: str) -> Callable[[Sequence[Cell]], str]:
    """Return a function that puts a study's cells beside the paper's numbers on its `small` or `full` sets."""
    numbers = _SETS[sets]

    def table(cells: Sequence[Cell]) -> str:
        rows = []
        for cell in cells:
            published = numbers.get((cell.task, cell.optimizer))
            if published is None:
                continue
            accuracy, loss = published
            rows.append(
                [
                    cell.task,
                    cell.optimizer,
                    f"{accuracy:.3f}",
                    format_spread(quantities.final, ".3f")(cell) if cell.ended else NOT_RUN,
                    number_text(loss, ".4g"),
                    format_spread(quantities.train_loss, ".4f")(cell) if cell.ended else NOT_RUN,
                ]
            )
        headings = ["task", "optimizer", "published accuracy", "here", "published training loss", "here"]
        return (
            "## Beside the published numbers\n\n"
            + aligned(headings, rows)
            + "\nPublished: bert-base-uncased (12 layers, 110 M parameters), five runs, digitised from the plots, ± "
            "0.001. Here: the model and the rows named above; MRPC is judged on the labelled test file (1,725 "
            "rows), QNLI and MNLI on subsets; texts of the small sets are cut at 128 tokens instead of 256. On a "
            "model of six layers the paper's splitting has 8 components, one for each layer, so `n_groups=layers` "
            "is the same optimizer there."
        )

    return table
