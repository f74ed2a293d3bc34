"""The evaluation of a run on held-out rows."""

from __future__ import annotations

import math
from typing import Any

import torch

from armijo_lab.tasks import Split, metrics
from armijo_lab.training.rows import EncodedRows
from armijo_lab.training.signals import StopSignal
from armijo_lab.training.state import RunState

__all__ = ["comparable_score", "evaluate"]

_BATCH_SIZE = 64


@torch.no_grad()
def evaluate(
    run: RunState, rows: EncodedRows, split: Split, stop: StopSignal
) -> tuple[dict[str, float], list[int | float]] | None:
    """Compute the metrics and the loss on rows, and the predictions; `None` if a signal interrupted it."""
    was_training = run.model.training
    run.model.eval()
    run.ranks.broadcast_buffers(run.model)
    indices = run.ranks.share(rows.by_length())
    outputs: list[torch.Tensor] = []
    total = torch.zeros((), device=run.device)
    for first in range(0, len(indices), _BATCH_SIZE):
        if stop.requested:
            break
        inputs, targets = rows.batch(indices[first : first + _BATCH_SIZE])
        logits = run.logits(run.model, inputs)
        total += run.criterion(logits, targets, "sum")
        outputs.append(logits.argmax(-1) if run.task.labels else logits.squeeze(-1))
    run.model.train(was_training)
    shares = run.ranks.gather((indices, [part.cpu() for part in outputs], total.item(), stop.requested))
    if any(stopped for *_, stopped in shares):
        return None
    gathered = torch.cat([part for _, parts, *_ in shares for part in parts])
    order = torch.tensor([index for indices, *_ in shares for index in indices])
    predictions: Any = torch.empty_like(gathered).index_copy_(0, order, gathered).flatten().tolist()
    values = metrics.compute(run.task.metrics, predictions, run.task.answers(split))
    return {**values, "loss": sum(part for _, _, part, _ in shares) / len(predictions)}, predictions


def comparable_score(score: float, loss: float) -> tuple[float, float]:
    """Return a tuple that is larger for a better epoch: by score, and for equal scores by the lower loss."""
    # Some class is the most probable one even where every logit is NaN, so that score counts for nothing.
    return (score, -loss) if math.isfinite(loss) and not math.isnan(score) else (-math.inf, -math.inf)
