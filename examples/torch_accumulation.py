"""Gradient accumulation: one search over four micro-batches of 8, the step that one batch of 32 would take."""

import torch

import armijo
from texts import accuracy, loaders, minilm, options

ACCUMULATE = 4
given = options()
model = minilm().train()
train, held_out = loaders(given.rows, batch_size=8)
optimizer = armijo.AdamSLS(model.parameters())


def update(micro_batches: list[dict[str, torch.Tensor]]) -> None:
    """The objective is the sum of what `baseline` has seen: here the mean over the micro-batches."""
    optimizer.zero_grad()
    objective = armijo.Objective()
    for batch in micro_batches:
        loss = objective.baseline(lambda batch=batch: model(**batch).loss / len(micro_batches))
        loss.backward()
    optimizer.step(objective)


for epoch in range(given.epochs):
    batches = list(train)
    for start in range(0, len(batches), ACCUMULATE):
        update(batches[start : start + ACCUMULATE])
    report = optimizer.report
    print(
        f"epoch {epoch + 1}: accuracy {accuracy(model, held_out):.3f}, loss {report.loss:.3f}, "
        f"step size {report.components[0].step_size:.2e}, {report.total_forwards / report.step:.2f} forwards a step"
    )
