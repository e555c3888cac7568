"""Ends a training whose loss or gradient is no longer a number, and says when one looks dead."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from anneal.callbacks import is_logged
from anneal.errors import UserError

STILL = 100  # steps after which a loss that has not moved is worth a word
EXPLODED = 1e4  # times the first gradient norm that was logged


class Health(Callback):
    """Raises UserError at the first NaN or infinite loss or gradient, and logs `train/grad_norm`.

    A gradient is looked at before the optimizer uses it, so that the weights stay what they were.
    On a CPU each step is looked at. On a GPU that would make the host wait for the device, so the
    first bad step is kept there and read every `log_every_n_steps` and at the end of each epoch.
    With precision 16-mixed only the loss is looked at: the scaler leaves out such gradients itself.

    Args:
        skip: How many steps with such a gradient may be left out before the training ends; more
            than 0 makes the host wait for a GPU at every step.
    """

    def __init__(self, skip: int = 0) -> None:
        if skip < 0:
            raise UserError(f"health.skip={skip}: must be at least 0")
        self.skip = skip
        self.skipped = 0
        self.norm: Tensor | None = None
        self._first_bad: Tensor | None = None
        self._first: tuple[float, float] | None = None  # loss and norm
        self._moved = False
        self._step = 0
        self._warned: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if trainer.precision == "16-mixed":
            return
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if not parameters:
            return
        norm = get_total_norm([p.grad for p in parameters])
        self.norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not self.skip:
            self._look(trainer, self.norm)
        elif not torch.isfinite(self.norm):
            self.skipped += 1
            where = _where(trainer)
            if self.skipped > self.skip:
                raise UserError(
                    f"the gradient is NaN or infinite {where}, and health.skip={self.skip} steps "
                    "were left out already",
                    status=1,
                )
            rank_zero_warn(f"left out, {self.skipped} so far: a NaN or infinite gradient {where}")
            for p in parameters:
                p.grad = None  # no update, not of the momentum either

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        if not self.skip:
            self._look(trainer, loss)
        new_step = trainer.global_step != self._step  # else in the middle of an accumulation
        self._step = trainer.global_step
        if new_step and is_logged(trainer, self._step):
            self._check(trainer)
            self._judge(trainer, float(loss))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def _look(self, trainer: Trainer, value: Tensor) -> None:
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, device=value.device)
        bad = ~torch.isfinite(value.detach()) & (self._first_bad < 0)
        self._first_bad = torch.where(bad, trainer.global_step, self._first_bad)
        if value.device.type == "cpu":
            self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        if self._first_bad is None or (step := int(self._first_bad)) < 0:
            return
        raise UserError(
            f"the training loss or its gradient is NaN or infinite {_where(trainer, step)}: lower "
            "the learning rate, warm it up or clip the gradient; what is saved is from before that",
            status=1,
        )

    def _judge(self, trainer: Trainer, loss: float) -> None:
        """Logs the norm of the gradient, and warns once of each sign that nothing is learnt."""
        step, norm = trainer.global_step, float("nan") if self.norm is None else float(self.norm)
        if self.norm is not None:
            at = trainer.fit_loop.epoch_loop._batches_that_stepped
            for logger in trainer.loggers:
                logger.log_metrics(
                    {"epoch": trainer.current_epoch, "train/grad_norm": norm}, step=at
                )
        if self._first is None:
            self._first = loss, norm
        first_loss, first_norm = self._first
        self._moved = self._moved or loss != first_loss
        if norm > EXPLODED * first_norm > 0:
            self._warn(
                f"the gradient's norm was {first_norm:.3g} and is {norm:.3g} at step {step}: lower "
                "the learning rate or set trainer.gradient_clip_val"
            )
        if not any(g["lr"] for g in trainer.optimizers[0].param_groups):
            self._warn(f"the learning rate is 0 at step {step}: nothing is learnt from here on")
        if step >= STILL and not self._moved:
            self._warn(
                f"the training loss is {loss:g} at step {step}, as in the beginning: is everything "
                "frozen, or does a layer give the same for all samples?"
            )

    def _warn(self, message: str) -> None:
        if (beginning := message[:20]) not in self._warned:
            self._warned.add(beginning)
            rank_zero_warn(message)


def _where(trainer: Trainer, step: int | None = None) -> str:
    """For a person: step, epoch, batch and learning rate."""
    lr = trainer.optimizers[0].param_groups[0]["lr"]
    return (
        f"at optimizer step {trainer.global_step if step is None else step} (epoch "
        f"{trainer.current_epoch}, batch {trainer.fit_loop.epoch_loop.batch_idx}, lr {lr:g})"
    )
