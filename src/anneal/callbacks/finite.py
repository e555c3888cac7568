"""Ends a training whose loss is no longer a number."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from anneal.callbacks import is_logged
from anneal.errors import UserError


class StopOnNonFinite(Callback):
    """Raises UserError at the first NaN or infinite training loss, before anything is saved.

    On a CPU every step is looked at when it is done. On a GPU that would make the host wait for
    the device, so the first bad step is kept on the device and read every `log_every_n_steps`
    and at the end of each epoch.
    """

    def __init__(self) -> None:
        self._first_bad: Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, device=loss.device)
        step = trainer.global_step
        bad = ~torch.isfinite(loss.detach()) & (self._first_bad < 0)
        self._first_bad = torch.where(bad, step, self._first_bad)
        if loss.device.type == "cpu" or is_logged(trainer, step):
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        step = -1 if self._first_bad is None else int(self._first_bad)
        if step < 0:
            return
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        raise UserError(
            f"the training loss is NaN or infinite at optimizer step {step} (epoch "
            f"{trainer.current_epoch}, lr {lr:g}): lower the learning rate, warm it up or clip the "
            "gradient; what is saved is from before that",
            status=1,
        )
