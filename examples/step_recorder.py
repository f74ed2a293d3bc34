"""Record what every step did, draw it, and say in words what the step sizes tell."""

from pathlib import Path

import armijo
from armijo import StepRecorder, read_steps
from armijo.observers.matplotlib import panel
from texts import loaders, minilm, options

given = options(output="recorded")
path = Path(given.output) / "steps.jsonl"
model = minilm().train()
train, _ = loaders(given.rows)
optimizer = armijo.PLASLS(armijo.split(model, by="layer", n_layer_groups=3))
# A second run is refused here, so that it does not mix with the first: name another --output.
optimizer.register_observer(StepRecorder(path))

for _ in range(given.epochs):
    for batch in train:
        optimizer.step(lambda: model(**batch).loss)

steps = read_steps(path)
panel(steps, title="PLASLS by layer").savefig(path.with_name("steps.png"), dpi=150)
searches = [component for step in steps for component in step.components if component.trials]
accepted = sum(component.status is armijo.Status.ACCEPTED for component in searches)
print(f"{len(steps)} steps in {path}, drawn in {path.with_name('steps.png')}")
print(f"loss {steps[0].loss:.3f} at the first step, {steps[-1].loss:.3f} at the last")
print(f"forward passes: {steps[0].forwards} in the first step, {steps[-1].total_forwards / len(steps):.2f} on average")
print(f"searches: {accepted} of {len(searches)} accepted")
for component in steps[-1].components:
    first = next(c.step_size for c in steps[0].components if c.label == component.label)
    print(f"{component.label}: step size {first:.1e} after the first step, {component.step_size:.1e} after the last")
