"""One step of a line search, phase by phase. `armijo.step.step.take_step` reads from top to bottom."""
