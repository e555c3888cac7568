"""The right size for an update over fewer batches than the others."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from torch.optim import Optimizer

from anneal.lightning_internals import steps_after_this_batch


class RescaleLastAccumulation(Callback):
    """Divide the gradients of a shorter window of accumulation by the batches that are in it.

    It is the last one of an epoch, or the first after a resume with other batches. Lightning
    divides by `accumulate_grad_batches` all the same (its issue 19987): that update is too small.
    """

    def __init__(self) -> None:
        self.window = 0

    def on_train_batch_start(self, *args: Any) -> None:
        self.window += 1

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if steps_after_this_batch(trainer):
            self.window = 0

    def on_before_optimizer_step(self, trainer: Trainer, _: Any, optimizer: Optimizer) -> None:
        if self.window < trainer.accumulate_grad_batches:
            factor = trainer.accumulate_grad_batches / self.window
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad *= factor
