"""One run, from its configuration to its folder: what `armijo finetune` does, without its terminal.

torch and transformers are all that is needed. A run is decided by its `TrainingConfig`: on one machine, with one
number of threads, equal configurations give equal weights to the last bit, and so does a run that was interrupted and
resumed. On a GPU this does not hold: some of its kernels add in an order that differs from call to call.

Example:
    config = TrainingConfig(task="sst2", data_dir="glue", limit=500)
    summary = run(config, Path("runs/first"))
"""

from armijo_lab.training.checkpoints import CheckpointError, has_checkpoint
from armijo_lab.training.config import TrainingConfig, check_fit, load_task
from armijo_lab.training.loop import Observe
from armijo_lab.training.runs import needs_report, resume, run, train
from armijo_lab.training.signals import InterruptedRunError

__all__ = [
    "CheckpointError",
    "InterruptedRunError",
    "Observe",
    "TrainingConfig",
    "check_fit",
    "has_checkpoint",
    "load_task",
    "needs_report",
    "resume",
    "run",
    "train",
]
