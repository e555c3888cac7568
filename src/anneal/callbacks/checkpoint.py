"""Checkpoints: `last.ckpt` after every epoch, the best ones, and those its schedule asks for."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from anneal import lightning_internals as internals
from anneal.errors import UserError
from anneal.optim.callback import ScheduleCallback
from anneal.progress import in_training
from anneal.runs.folder import AT_STEP, LAST
from anneal.runs.metrics import direction


class Checkpoint(ModelCheckpoint):
    """Save `last.ckpt` before every validation and after every epoch, and the best by a metric.

    A schedule with `kept_steps`, such as WSD's, has `step=N.ckpt` kept at each of them too.

    Args:
        monitor: The metric that decides what is best, one that validation logs. None: the module's
            `checkpoint_monitor`, which follows from its task (val/acc, val/map or val/loss), or
            else val/acc.
        mode: Whether lower (`min`) or higher (`max`) is better; None: as the metric's name says.
        save_top_k: How many of the best to keep; 0: none, -1: all.
        every_n_train_steps: Also save `last.ckpt` every so many optimizer steps.
        train_time_interval: Also save `last.ckpt` this often, such as `00:30:00`.
        dirpath: Folder; None: `checkpoints` in the run's folder.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        save_top_k: int = 1,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        dirpath: Path | None = None,
    ) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 0:
            raise UserError(f"checkpoint.every_n_train_steps={every_n_train_steps}: below 0")
        super().__init__(
            dirpath=dirpath,
            auto_insert_metric_name=False,
            monitor=monitor or "val/acc",
            save_top_k=save_top_k,
            every_n_epochs=1,
            # A best one that a resumed run finds again has the same name and takes its place.
            enable_version_counter=False,
        )
        self._chosen = monitor, mode
        self.watch(monitor or "val/acc")
        self.last_every = every_n_train_steps
        self.last_interval = train_time_interval
        self._due = self._stop = False
        self._best_in_last = ""
        self.last_step = -1
        self.last_time = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._chosen[0] is None:
            self.watch(getattr(pl_module, "checkpoint_monitor", None) or str(self.monitor))

    def watch(self, monitor: str) -> None:
        """Take a metric for the one that decides what is best."""
        self.monitor, self.mode = monitor, direction(monitor, self._chosen[1], "checkpoint")
        self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        flat = monitor.replace("/", "_")
        self.filename = f"best-epoch={{epoch:02d}}-{flat}={{{monitor}:.4f}}"

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise UserError if validation doesn't log the monitored metric."""
        names = list(trainer.callback_metrics)
        if self.monitor not in names and not str(self.monitor).startswith("train/"):
            there = f"there are: {', '.join(names) or 'none'} (--checkpoint.monitor=...)"
            raise UserError(f"checkpoint.monitor: there is no metric {self.monitor!r}; {there}")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step = trainer.global_step
        due = bool(self.last_every) and step % self.last_every == 0  # type: ignore[operator]
        due = due or _kept_step(trainer) is not None
        # Within an accumulation there is nothing to go on from, so what is before it is saved.
        between = internals.is_between_steps(trainer)
        due = due or (between and internals.validates_before_next_step(trainer))
        if self.last_interval is not None:
            late = time.monotonic() - self.last_time >= self.last_interval.total_seconds()
            due = due or trainer.strategy.broadcast(late)
        self._due = self._due or (due and step != self.last_step)
        trainer.should_stop, self._stop = self._stop or trainer.should_stop, False
        if trainer.should_stop and not internals.steps_after_this_batch(trainer):
            trainer.should_stop, self._stop = False, True  # after the step that is being made
        if self._due and between:
            self._save_last(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, so that what was trained is not lost in a long validation."""
        if not in_training(trainer):
            return
        if internals.steps_after_this_batch(trainer):
            self._save_last(trainer)
        elif trainer.global_step != self.last_step:  # a time said when, which is not foreseen
            self._due = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A resumed run that ends before it validates has no metric, which is no mistake.
        if trainer.is_last_batch or self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_last_batch:
            self._save_last(trainer)

    def save_end(self, trainer: Trainer) -> None:
        """Save where a run ends within an epoch, before it closes the epoch as if it were done.

        A validation that is made only because the run ends is no part of its course.
        """
        if trainer.global_step != self.last_step or internals.validation_is_due(trainer):
            self._save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep in `last.ckpt` what has become the best since it was saved."""
        if trainer.global_step != self.last_step:
            self._save_last(trainer)
        elif self.best_model_path != self._best_in_last and trainer.is_global_zero:
            file = Path(self.dirpath or "") / LAST
            saved = torch.load(file, weights_only=True)
            saved["callbacks"][self.state_key] = self.state_dict()
            trainer.strategy.checkpoint_io.save_checkpoint(saved, file)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether a value is among the best: NaN and infinity never are."""
        finite = current is not None and bool(torch.isfinite(current))
        return finite and super().check_monitor_top_k(trainer, current)

    def state_dict(self) -> dict[str, Any]:
        """Return file names without their folder, so that a run can be moved and resumed."""
        return {
            "best_model_path": Path(self.best_model_path).name,
            "best_model_score": self.best_model_score,
            "best_k_models": {Path(k).name: v for k, v in self.best_k_models.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the best so far if they are in this run's folder, else start afresh."""
        folder = Path(self.dirpath or "")
        kept = {str(folder / k): v for k, v in state_dict["best_k_models"].items()}
        self.best_k_models = {k: v for k, v in kept.items() if Path(k).is_file()}
        if self.best_k_models:
            best, worst = (min, max) if self.mode == "min" else (max, min)
            score = self.best_k_models.__getitem__
            self.best_model_path = best(self.best_k_models, key=score)
            self.best_model_score = score(self.best_model_path)
            self.kth_best_model_path = worst(self.best_k_models, key=score)
            self.kth_value = score(self.kth_best_model_path)

    def _save_last(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run or self.dirpath is None:  # type: ignore[attr-defined]
            return
        self.last_step, self.last_time = trainer.global_step, time.monotonic()
        self._due = False
        self._best_in_last = self.best_model_path
        # A run that is killed between the two resumes before this step, and makes it again.
        if (kept := _kept_step(trainer)) is not None:
            trainer.save_checkpoint(Path(self.dirpath) / AT_STEP.format(kept), weights_only=False)
        trainer.save_checkpoint(Path(self.dirpath) / LAST, weights_only=False)


def _kept_step(trainer: Trainer) -> int | None:
    """Return the step of its schedule at which a run is if a checkpoint is to be kept of it."""
    if (callback := internals.callback_of(trainer, ScheduleCallback)) is None:
        return None
    kept: set[int] = getattr(callback.schedule.inner, "kept_steps", set())
    return callback.schedule.steps if callback.schedule.steps in kept else None
