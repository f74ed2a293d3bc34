"""A LightningModule under Lightning's Trainer: ArmijoMixin among its bases, and no learning rate in it."""

import logging
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer

import armijo
from armijo.integrations.lightning import ArmijoMixin, StepSizeLogger
from texts import loaders, minilm, options

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*does not have many workers")


class Classifier(ArmijoMixin, LightningModule):
    """What it would be under AdamW, but for the mixin and the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = minilm().train()

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        loss = self.net(**batch).loss
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        right = self.net(**batch).logits.argmax(-1) == batch["labels"]
        self.log("accuracy", right.float().mean(), batch_size=len(right))

    def on_train_epoch_end(self) -> None:
        found = self.trainer.callback_metrics
        print(f"epoch {self.current_epoch + 1}: " + ", ".join(f"{name} {float(found[name]):.3g}" for name in found))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return armijo.AdamSLS(self.net.parameters())  # or armijo.PLASLS(armijo.split(self.net, by="layer"))


given = options()
train, held_out = loaders(given.rows)
trainer = Trainer(
    accelerator="cpu",  # "auto" where there is a GPU
    max_epochs=given.epochs,
    callbacks=[StepSizeLogger()],
    logger=False,  # any of Lightning's: the step sizes are in them
    log_every_n_steps=5,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
    num_sanity_val_steps=0,
)
module = Classifier()
print(f"before: accuracy {trainer.validate(module, held_out, verbose=False)[0]['accuracy']:.3f}")
trainer.fit(module, train, held_out)
