# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
"""# Watch the step sizes while a model is trained.

A notebook kept as text. To open it: `pip install jupytext`, then `jupytext --to notebook notebook_live_panel.py`, or
open it as a notebook in JupyterLab or VS Code as it is. It runs as a script too, and then shows nothing on the way.
"""

# %%
import armijo
from armijo.observers.matplotlib import LivePanel
from texts import accuracy, loaders, minilm

model = minilm().train()
train, held_out = loaders(96)
optimizer = armijo.PLASLS(armijo.split(model, by="layer", n_layer_groups=3))

# %% [markdown]
# One picture below the cell, drawn anew while training goes on: at most every three seconds here, and never so often
# that drawing takes more than a fiftieth of the time.

# %%
live = LivePanel(every=2, seconds=3, title="PLASLS by layer")
optimizer.register_observer(live)

for _ in range(3):
    for batch in train:
        optimizer.step(lambda: model(**batch).loss)
live.draw()  # with the last steps

# %% [markdown]
# What to look for is on the page *What the step sizes tell you*: the first step takes about a dozen passes, later ones
# two; no orange or black in the lowest part; step sizes that fall slowly, side by side.

# %%
print(f"accuracy {accuracy(model, held_out):.3f} after {optimizer.report.step} steps")
live.figure.savefig("live_panel.png", dpi=150)
