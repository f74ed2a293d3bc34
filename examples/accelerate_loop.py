"""Accelerate: `prepare` as always, accumulation included. Run it plainly, or with `accelerate launch`."""

from accelerate import Accelerator

import armijo
from texts import accuracy, loaders, minilm, options

given = options()
accelerator = Accelerator(gradient_accumulation_steps=2)
train, held_out = loaders(given.rows, batch_size=16)
searcher = armijo.AdamSLS((model := minilm().train()).parameters())
model, optimizer, train = accelerator.prepare(model, searcher, train)

objective = armijo.Objective()
for epoch in range(given.epochs):
    for batch in train:
        with accelerator.accumulate(model):
            weight = 1 / accelerator.gradient_accumulation_steps  # by which accelerator.backward divides
            loss = objective.baseline(lambda batch=batch: model(**batch).loss, weight=weight)
            accelerator.backward(loss)
            optimizer.step(objective)  # Accelerate passes it on once the gradients are complete
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            objective = armijo.Objective()
    report = searcher.report
    accelerator.print(
        f"epoch {epoch + 1}: accuracy {accuracy(accelerator.unwrap_model(model), held_out):.3f}, "
        f"loss {report.loss:.3f}, step size {report.components[0].step_size:.2e}"
    )
