"""The callback that tells a schedule how long the run is and how each validation went."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.utilities import rank_zero_info

from anneal.errors import UserError
from anneal.lightning_internals import callback_of, callbacks_of, validation_is_due
from anneal.optim.run_schedule import RunSchedule
from anneal.progress import Clock, in_training


class ScheduleCallback(Callback):
    """Tell a `RunSchedule` what Lightning's own stepping doesn't: the run's length, validations.

    It stands before all other callbacks but the clock, so that a checkpoint saved after a
    validation holds what the plateau made of it.
    """

    def __init__(self, schedule: RunSchedule) -> None:
        self.schedule = schedule
        self.validation_metrics: list[str] = []
        self._resumed: tuple[StochasticWeightAveraging, list[float]] | None = None

    @classmethod
    def attach(cls, trainer: Trainer, schedule: RunSchedule) -> None:
        """Put one of these before a trainer's callbacks, in the place of an earlier one."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [c for c in callbacks if not isinstance(c, cls | Clock)]
        callbacks[:] = [*(c for c in callbacks if isinstance(c, Clock)), cls(schedule), *others]
        if schedule.schedule.is_plateau and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # One batch of validation is what tells whether the metric exists, before training.
            trainer.num_sanity_val_steps = max(1, trainer.num_sanity_val_steps)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_metrics = list(trainer.callback_metrics)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        swa = callback_of(trainer, StochasticWeightAveraging)
        if swa and all(c.scheduler is not self.schedule for c in trainer.lr_scheduler_configs):
            # It had put its own scheduler in the place of this one before the checkpoint.
            self._resumed = swa, [g["lr"] for g in self.schedule.optimizer.param_groups]
            return
        steps_per_epoch, total_steps = run_length(trainer)
        if steps_per_epoch is None and self.schedule.schedule.counts_epochs:
            raise UserError(
                "schedule: it counts epochs and the training data has no length: set "
                "trainer.limit_train_batches, or schedule.interval=step and warmup_steps"
            )
        steps, before = None, self.schedule.steps_per_epoch
        if self.schedule.steps and steps_per_epoch and steps_per_epoch != before:
            # Of this run's epochs; what is left of `max_steps` stays what it is.
            steps = round(self.schedule.steps / before * steps_per_epoch)
            if clock := callback_of(trainer, Clock):
                steps = clock.epoch * steps_per_epoch
                steps += clock.batches // trainer.accumulate_grad_batches
            total_steps = run_length(trainer, steps - trainer.global_step)[1]
        self.schedule.setup(steps_per_epoch or 1, total_steps, steps)
        if self.schedule.is_plateau:
            check_validates(trainer)
            if self.validation_metrics:
                self._check_monitor(self.validation_metrics)
        rank_zero_info(self.schedule.describe())

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if self._resumed:
            swa, rates = self._resumed
            if not trainer.lr_scheduler_configs:  # inside an epoch, whose start it has missed
                swa.on_train_epoch_start(trainer, pl_module)
            for group, lr in zip(self.schedule.optimizer.param_groups, rates, strict=True):
                group["lr"] = lr  # its scheduler takes a step when it is made
            self._resumed = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # One that is made only because the run ends does not count.
        if self.schedule.is_plateau and in_training(trainer) and validation_is_due(trainer):
            metrics = trainer.callback_metrics
            self._check_monitor(list(metrics))
            self.schedule.step_metric(float(metrics[self.schedule.schedule.monitor]))

    def _check_monitor(self, names: list[str]) -> None:
        if (monitor := self.schedule.schedule.monitor) not in names:
            there = f"there are: {', '.join(names)}"
            raise UserError(f"schedule.monitor: there is no metric {monitor!r}; {there}")


def run_length(trainer: Trainer, shift: int = 0) -> tuple[int | None, int | None]:
    """Return the optimizer steps in an epoch (None: unknown) and in the run (None: endless).

    Its epochs so far would have `shift` more steps than were made. Read from the loaders
    once they are set up: `trainer.estimated_stepping_batches` would set them up early, before a
    checkpoint's state has reached them (Lightning issue 20550).
    """
    batches = trainer.num_training_batches
    clock = callback_of(trainer, Clock)
    extra = clock.extra_steps if clock else 0
    max_steps = None if trainer.max_steps == -1 else trainer.max_steps - extra + shift
    if math.isinf(batches):
        return None, max_steps
    if any(len(c.scheduling) > 1 for c in callbacks_of(trainer, GradientAccumulationScheduler)):
        raise UserError("accumulate_grad_batches must stay the same for a schedule to count")
    steps_per_epoch = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
    ends = [max_steps] if max_steps is not None else []
    if trainer.max_epochs is not None and trainer.max_epochs != -1:
        ends.append(trainer.max_epochs * steps_per_epoch)
    return steps_per_epoch, min(ends) if ends else None


def first_validation(trainer: Trainer, steps_per_epoch: int) -> int:
    """Return after how many optimizer steps Lightning validates first; 0: that is not known.

    It does every `val_check_interval` of the batches of an epoch, in every
    `check_val_every_n_epoch`-th one, or of all batches if that is None.
    """
    batches, every = trainer.num_training_batches, trainer.check_val_every_n_epoch
    check = trainer.val_check_batch  # None: by time; inf: as an epoch ends; 0: never
    if not check or not batches or math.isinf(batches):
        return 0
    epoch, batch = (
        (every - 1, int(min(check, batches)) - 1) if every else divmod(int(check) - 1, int(batches))
    )
    steps = (batch + 1) / trainer.accumulate_grad_batches
    return epoch * steps_per_epoch + (math.ceil(steps) if batch + 1 == batches else int(steps))


def check_validates(trainer: Trainer) -> None:
    """Raise UserError if the run ends before its first validation, or never validates."""
    steps_per_epoch, total_steps = run_length(trainer)
    known = trainer.num_val_batches  # empty when resumed: Lightning has not looked yet
    if not trainer.enable_validation or (known and not sum(known)):
        raise UserError(
            "schedule: ReduceLROnPlateau needs validations, and this run has none "
            "(trainer.limit_val_batches, or no validation data)"
        )
    if steps_per_epoch is None or total_steps is None:
        return
    if (first := first_validation(trainer, steps_per_epoch)) > total_steps:
        raise UserError(
            f"schedule: ReduceLROnPlateau needs validations; the first would come after {first} "
            f"steps and the run has {total_steps} (trainer.check_val_every_n_epoch, "
            "val_check_interval, max_steps)"
        )
