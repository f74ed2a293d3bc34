"""A plain loop in torch: what `AdamW(lr=…)`, `zero_grad`, `backward` and `step` were."""

import armijo
from texts import accuracy, loaders, minilm, options

given = options()
model = minilm().train()
train, held_out = loaders(given.rows)
optimizer = armijo.AdamSLS(model.parameters())

print(f"before: accuracy {accuracy(model, held_out):.3f}")
for epoch in range(given.epochs):
    for batch in train:
        optimizer.step(lambda: model(**batch).loss)
    report = optimizer.report
    print(
        f"epoch {epoch + 1}: accuracy {accuracy(model, held_out):.3f}, loss {report.loss:.3f}, "
        f"step size {report.components[0].step_size:.2e}, {report.total_forwards / report.step:.2f} forwards a step"
    )
