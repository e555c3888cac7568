"""The right size for an epoch's last update when accumulation does not divide its batches."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class RescaleLastAccumulation(Callback):
    """Divide the gradients of an epoch's last, shorter window by the batches that are in it.

    Lightning divides by `accumulate_grad_batches` all the same (its issue 19987): the last update
    of each epoch is too small.
    """

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if short := done % trainer.accumulate_grad_batches:
            factor = trainer.accumulate_grad_batches / short
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad *= factor
