"""Mixed precision: bfloat16 autocast by default; `--dtype float16` with a GradScaler."""

import torch

import armijo
from texts import accuracy, loaders, minilm, options

device = "cuda" if torch.cuda.is_available() else "cpu"
given = options(dtype="bfloat16")
model = minilm().to(device).train()  # the weights stay in float32
train, held_out = loaders(given.rows)
optimizer = armijo.AdamSLS(model.parameters())
scaler = torch.amp.GradScaler(device, enabled=given.dtype == "float16")


def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The forward in half precision, the loss in float32: a search compares losses, and sees no more than they show."""
    labels = batch["labels"]
    with torch.autocast(device, getattr(torch, given.dtype)):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(logits.float(), labels)


for epoch in range(given.epochs):
    for batch in train:
        batch = {key: value.to(device) for key, value in batch.items()}
        optimizer.zero_grad()
        objective = armijo.Objective()
        loss = objective.baseline(lambda batch=batch: loss_of(batch))
        scaler.scale(loss).backward()
        scaler.step(optimizer, objective)  # unscales first; skips the step after an overflow
        scaler.update()
    report = optimizer.report
    model.to("cpu")
    print(
        f"epoch {epoch + 1}: accuracy {accuracy(model, held_out):.3f}, loss {report.loss:.3f}, "
        f"step size {report.components[0].step_size:.2e}, {report.total_forwards / report.step:.2f} forwards a step"
    )
    model.to(device)
