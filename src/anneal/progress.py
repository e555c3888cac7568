"""The position of a run: samples seen and how fast, and logging at the step that goes with it."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from anneal.lightning_internals import logged_step


def is_logged(trainer: Trainer, step: int) -> bool:
    """Return whether `step` is one that `log_every_n_steps` logs; 0 logs none."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0


def loggers_with(trainer: Trainer, name: str) -> list[Any]:
    """Return the run's loggers whose class has a method or attribute of this name.

    Callbacks ask loggers for what they have; Lightning's DummyLogger says yes to everything, its
    class does not.
    """
    return [logger for logger in trainer.loggers if hasattr(type(logger), name)]


def log(
    trainer: Trainer,
    values: Mapping[str, Any],
    step: int | None = None,
    loggers: Sequence[Logger] | None = None,
) -> None:
    """Log values and the epoch.

    Args:
        trainer: The run's.
        values: Name to value.
        step: Index of the optimizer step; None: the one at which Lightning would log now.
        loggers: The ones to log with; None: all of the run.
    """
    step = logged_step(trainer) if step is None else step
    for logger in trainer.loggers if loggers is None else loggers:
        logger.log_metrics({"epoch": trainer.current_epoch, **values}, step=step)


def log_image(trainer: Trainer, key: str, path: Path) -> None:
    """Send an image file to the loggers that take images, such as W&B."""
    for logger in loggers_with(trainer, "log_image"):
        logger.log_image(key, [str(path)])


class SampleCounter(Callback):
    """Log `samples`, the training samples seen by all processes since the start of the run.

    Runs with other batch sizes compare on it. Within an epoch the other processes' batches are
    taken to be as large as this one's; at its end the exact numbers are summed.

    Attributes:
        samples: The count.
        seconds: Time spent in training epochs, without validation, in this process.
        samples_per_second: Throughput over these.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.epoch_samples = 0
        self.seconds = 0.0
        self._counted = 0
        self._since = 0.0
        self._step = 0

    @classmethod
    def of(cls, trainer: Trainer) -> "SampleCounter | None":
        """Return the one among a trainer's callbacks."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return next((c for c in callbacks if isinstance(c, cls)), None)

    def in_epoch(self, trainer: Trainer) -> int:
        """Return the samples of this epoch so far, of all processes."""
        return self.epoch_samples * trainer.world_size

    @property
    def samples_per_second(self) -> float:
        return self._counted / self.seconds if self.seconds else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume at the same sample of the epoch if its batches are others than before."""
        self._step = trainer.global_step
        done = self.in_epoch(trainer)
        loader: Any = trainer.train_dataloader
        sampler = getattr(loader, "batch_sampler", loader)
        if not done or not hasattr(sampler, "left"):
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        ready = len(sampler) - sampler.left(done)
        if ready != progress.ready:
            rank_zero_info(
                f"The batches are others than in the checkpoint, which is from within epoch "
                f"{trainer.current_epoch}: it goes on after {done} samples, with "
                f"{sampler.left(done)} of {len(sampler)} batches left."
            )
            progress.completed += ready - progress.ready
            progress.ready = progress.started = progress.processed = ready  # type: ignore[attr-defined]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with suppress(MisconfigurationException):  # no tensor in the batch: nothing to count
            self.epoch_samples += extract_batch_size(batch)
        new_step = trainer.global_step != self._step  # else in the middle of an accumulation
        self._step = trainer.global_step
        if new_step and is_logged(trainer, self._step):
            log(trainer, {"samples": self.samples + self.in_epoch(trainer)})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.seconds += time.perf_counter() - self._since

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += time.perf_counter() - self._since
        local = torch.tensor(self.epoch_samples, device=pl_module.device)
        total = int(trainer.strategy.reduce(local, reduce_op="sum"))
        self.samples += total
        self._counted += total
        self.epoch_samples = 0
        # As Lightning does: what an epoch gave stands at its last step.
        log(trainer, {"samples": self.samples}, logged_step(trainer) - 1)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Of all processes, as the next run may have more or fewer.
        checkpoint["samples"] = [self.samples, self.in_epoch(trainer)]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.samples, in_epoch = checkpoint.get("samples", [0, 0])
        self.epoch_samples = in_epoch // trainer.world_size


def resume_position(trainer: Trainer | None) -> tuple[int, int, int]:
    """Return the epoch, how many of its batches are done, and how many samples they had.

    The last is 0 if they were not counted. They are Lightning's own counters, which it restores
    from a checkpoint, and that of `SampleCounter`: right after any resume, within an epoch too.
    """
    if trainer is None:
        return 0, 0, 0
    loop = trainer.fit_loop
    seen = SampleCounter.of(trainer)
    return (
        loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
        loop.epoch_loop.batch_progress.current.ready,
        seen.in_epoch(trainer) if seen else 0,
    )
