"""Tasks: labelled texts to train on, held-out ones to judge by, and the metrics that judge them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Tensors = tuple[dict[str, torch.Tensor], torch.Tensor]
    """What a model is called with, each of shape (rows, …), and the targets, of shape (rows,) or (rows, places)."""
else:
    Tensors = Any


@dataclass(frozen=True)
class Split:
    """Rows of texts and what is to be predicted from them; row `i` is entry `i` of each tuple.

    Attributes:
        texts: The text of each row, or where a task brings `encode` whatever that reads.
        pairs: The second text of each row, or `None` where a row has one text.
        targets: The index into `TaskData.labels` of each row's class (classification), or a number
            (regression), or a tuple of indices where each place of a row has a class; empty where nothing is known,
            as in rows that wait for a prediction.
    """

    texts: tuple[Any, ...]
    pairs: tuple[str, ...] | None
    targets: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, rows: int | None) -> Split:
        """The first `rows` rows; all of them for `None` or where there are fewer."""
        if rows is None:
            return self
        pairs = None if self.pairs is None else self.pairs[:rows]
        return Split(self.texts[:rows], pairs, self.targets[:rows])


@dataclass(frozen=True)
class TaskData:
    """A task that has been read.

    Attributes:
        name: What the task is called, as in `sst2`.
        description: One sentence on what it is.
        labels: The classes' names in the order of their indices; `()` for a regression.
        train: The rows to train on.
        evaluation: The held-out rows.
        metrics: Names that `armijo_lab.tasks.metrics.compute` knows; the first is the primary one, and of
            each of them higher is better.
        provenance: Where the rows come from, for the record of a run.
        encode: What makes tensors of rows that are no texts; `None` where a tokenizer does.
        final: What the model is judged by once more after the last epoch; `None` for nothing.
    """

    name: str
    description: str
    labels: tuple[str, ...]
    train: Split
    evaluation: Split
    metrics: tuple[str, ...]
    provenance: dict[str, str | int | float | None]
    encode: Callable[[Split], Tensors] | None = None
    final: Split | None = None

    @property
    def num_labels(self) -> int:
        """The number of outputs a model needs: one per class, or one for a regression."""
        return len(self.labels) if self.labels else 1

    def answers(self, split: Split) -> list[int | float]:
        """All that is to be predicted of a split, one after the other."""
        return [one for target in split.targets for one in (target if isinstance(target, tuple) else (target,))]

    def limited(self, train: int | None, evaluation: int | None) -> TaskData:
        """The same task with the first `train` and the first `evaluation` rows; `None` keeps all."""
        return replace(self, train=self.train.first(train), evaluation=self.evaluation.first(evaluation))
