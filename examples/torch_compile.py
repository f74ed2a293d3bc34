"""torch.compile: name the compiled module, and nothing else changes."""

import torch

import armijo
from texts import accuracy, loaders, minilm, options

given = options(backend="inductor")
model = minilm().train()
train, held_out = loaders(given.rows)
compiled = torch.compile(model, backend=given.backend, dynamic=True)  # sentences differ in length
optimizer = armijo.AdamSLS(model.parameters())

for epoch in range(given.epochs):
    for batch in train:
        optimizer.zero_grad()
        objective = armijo.Objective(modules=[model])  # its buffers are known: no hook recompiles the graph
        loss = objective.baseline(lambda batch=batch: compiled(**batch).loss)
        loss.backward()
        optimizer.step(objective)
    report = optimizer.report
    print(
        f"epoch {epoch + 1}: accuracy {accuracy(model, held_out):.3f}, loss {report.loss:.3f}, "
        f"step size {report.components[0].step_size:.2e}, {report.total_forwards / report.step:.2f} forwards a step"
    )
