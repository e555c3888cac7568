"""The end of a training whose loss or gradient is no longer a number."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from anneal.callbacks.layer_norms import LayerNorms
from anneal.callbacks.learning_hints import LearningHints, largest_lr
from anneal.errors import UserError
from anneal.lightning_internals import callback_of
from anneal.progress import Clock, is_logged, log


class NonFiniteGuard(Callback):
    """Raise UserError at the first NaN or infinite loss or gradient, and log `train/grad_norm`.

    A gradient is looked at before the optimizer uses it, so that the weights stay what they were.
    On a CPU each step is looked at. On a GPU that would make the host wait for the device, so the
    first bad step is kept there and read every `log_every_n_steps`, at the end of each epoch and
    before a checkpoint is written.
    With precision 16-mixed only the loss is looked at: the scaler leaves out such gradients itself.

    An epoch in which no gradient reached the optimizer, and a validation without samples, are
    errors too; a training that learns nothing is warned of.

    Args:
        skip: How many steps with such a gradient may be left out before the training ends; more
            than 0 makes the host wait for a GPU at every step.
        norms: `layers`: log how long the weights, gradients and updates of each layer are, and the
            ratio of update to weight, every `log_every_n_steps`.
    """

    def __init__(self, skip: int = 0, norms: Literal["layers"] | None = None) -> None:
        if skip < 0:
            raise UserError(f"health.skip={skip}: must be at least 0")
        self.skip = skip
        self.skipped = 0
        self._layers = LayerNorms() if norms else None
        self.norm: Tensor | None = None
        self._first_bad: Tensor | None = None  # an index into:
        self._places: list[str] = []  # what was looked at since the last check
        self._place = ""  # the current batch, for a person
        self._lr = 0.0  # the largest of it
        self._clock: Clock | None = None
        self._step = self._began = 0
        self._updates = 0  # in this epoch
        self._new_epoch = False  # else it was resumed within
        self._hints = LearningHints()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = self._began = trainer.global_step
        self._clock = callback_of(trainer, Clock)
        self._new_epoch = False
        if self._layers and isinstance(trainer.strategy, FSDPStrategy):
            raise UserError("health.norms=layers: not with trainer.strategy=fsdp; take fsdp2")
        known = trainer.num_val_batches  # empty if the first validation is in a later epoch
        if trainer.enable_validation and known and not sum(known):
            raise UserError(
                f"0 batches to validate on, of {trainer.num_training_batches} to train on: the "
                "validation data is empty, or smaller than a batch and the rest is dropped; "
                "--trainer.limit_val_batches=0 trains without"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._updates = 0
        self._new_epoch = True

    def on_train_batch_start(self, trainer: Trainer, _: Any, batch: Any, batch_idx: int) -> None:
        self._lr = largest_lr(trainer)
        clock = self._clock
        samples = f"after {clock.seen + clock.samples} samples, " if clock else ""
        self._place = (
            f"at optimizer step {trainer.global_step} (epoch {trainer.current_epoch}, batch "
            f"{batch_idx}, {samples}lr {self._lr:g})"
        )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if not parameters:
            return
        self._updates += 1
        if trainer.precision != "16-mixed":
            norm = get_total_norm([p.grad.detach() for p in parameters])
            self.norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            if not self.skip:
                self._look(self.norm)
            elif not torch.isfinite(self.norm):
                self._leave_out(pl_module, parameters)
        if self._layers:
            self._layers.before_step(trainer, pl_module, optimizer)

    def on_train_batch_end(self, trainer: Trainer, _: Any, outputs: Any, *args: Any) -> None:
        if self._layers:
            self._layers.log(trainer)
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        if not self.skip:
            self._look(loss)
        new_step = trainer.global_step != self._step  # else in the middle of an accumulation
        self._step = trainer.global_step
        if not self._began:
            self._hints.begin(trainer, loss)
        if new_step and is_logged(trainer, self._step):
            self._check()
            norm = 0.0 if self.norm is None else float(self.norm)
            if self.norm is not None:
                log(trainer, {"train/grad_norm": norm})
            self._hints.look(trainer, float(loss), norm, self._lr)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check()
        if self._new_epoch and not self._updates:
            raise UserError(
                f"epoch {trainer.current_epoch} took no optimizer step: of "
                f"{trainer.fit_loop.epoch_loop.batch_progress.current.ready} batches none gave a "
                f"gradient to use ({self.skipped} left out by health.skip={self.skip})",
                status=1,
            )

    def on_save_checkpoint(self, trainer: Trainer, *args: Any) -> None:
        """Raise UserError rather than save what is no number."""
        self._check()

    def _leave_out(self, pl_module: LightningModule, parameters: list[Any]) -> None:
        """Make no update in this step, not of the momentum either."""
        self.skipped += 1
        self._updates -= 1
        if self.skipped > self.skip:
            raise UserError(
                f"the gradient is NaN or infinite {self._place}, and health.skip={self.skip} steps "
                "were left out already",
                status=1,
            )
        for name, buffer in pl_module.named_buffers():
            if not buffer.isfinite().all():
                raise UserError(
                    f"{name} is NaN or infinite {self._place}: the batch itself is no number, and "
                    "to leave out its step does not undo what a norm has kept of it",
                    status=1,
                )
        rank_zero_warn(f"left out, {self.skipped} so far: a NaN or infinite gradient {self._place}")
        for p in parameters:
            p.grad = None

    def _look(self, value: Tensor) -> None:
        """Raise UserError if a value is no number, or keep on its device where the first was."""
        if not waits(value):
            if not math.isfinite(value):
                raise _no_number(self._place)
            return
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, device=value.device)
        bad = ~torch.isfinite(value.detach()) & (self._first_bad < 0)
        self._first_bad = torch.where(bad, len(self._places), self._first_bad)
        self._places.append(self._place)

    def _check(self) -> None:
        """Raise UserError if any value looked at since the last check was no number."""
        places, self._places = self._places, []
        if self._first_bad is not None and (first := int(self._first_bad)) >= 0:
            raise _no_number(places[first])


def waits(value: Tensor) -> bool:
    """Return whether to read a value makes the host wait for its device."""
    return value.device.type != "cpu"


def _no_number(place: str) -> UserError:
    return UserError(
        f"the training loss or its gradient is NaN or infinite {place}: lower the learning rate, "
        "warm it up or clip the gradient; what is saved is from before that",
        status=1,
    )
