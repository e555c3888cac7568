"""The position of a run: samples seen and how fast, and logging at the step that goes with it."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from anneal import lightning_internals as internals


def is_logged(trainer: Trainer, step: int) -> bool:
    """Return whether `step` is one that `log_every_n_steps` logs; 0 logs none."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0


def in_training(trainer: Trainer) -> bool:
    """Return whether a validation is one of a training, neither the check before it nor alone."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def loggers_with(trainer: Trainer, name: str) -> list[Any]:
    """Return the run's loggers whose class has a method or attribute of this name.

    Callbacks ask loggers for what they have; Lightning's DummyLogger says yes to everything, its
    class does not.
    """
    return [logger for logger in trainer.loggers if hasattr(type(logger), name)]


def log(
    trainer: Trainer, values: dict[str, Any], step: int | None = None, loggers: Any = None
) -> None:
    """Log values and the epoch, by default where Lightning would log now, and to all loggers."""
    step = internals.logged_step(trainer) if step is None else step
    for logger in trainer.loggers if loggers is None else loggers:
        logger.log_metrics({"epoch": trainer.current_epoch, **values}, step=step)


def log_image(trainer: Trainer, key: str, path: Path) -> None:
    """Send an image file to the loggers that take images, such as W&B."""
    for logger in loggers_with(trainer, "log_image"):
        logger.log_image(key, [str(path)], step=internals.logged_step(trainer))


class Clock(Callback):
    """The position of a run: what samplers, schedules, loggers and checkpoints ask for it.

    It stands before all other callbacks, so that these see a batch counted, and is saved as what it
    is: Lightning's own counters are those of the moment of a save, and of an epoch that was ended
    early they say that it is done. What a run does because it is about to end within an epoch, such
    as one more validation, is no part of its course: `last.ckpt` is from before that.

    Logs `samples`, the training samples seen by all processes since the start of the run. Runs with
    other batch sizes compare on it.

    Attributes:
        epoch: Epochs that are done, with their validations.
        batches: Training batches of the current epoch that are done, in each process.
        samples: The samples these had, in all processes.
        seen: Training samples of all epochs before it.
        stepped: Batches so far after which the optimizer made a step.
        validated: Whether the validation that is due after these batches is done.
        seconds: Time spent in training, without validations, since the start of the run.
        has_validated: Whether there was a validation since this process began to train.
        extra_steps: How much higher `max_steps` is until the validation that is due is made.
    """

    SAVED = ("epoch", "batches", "samples", "seen", "stepped", "seconds")

    def __init__(self) -> None:
        self.epoch = self.batches = self.samples = self.seen = self.stepped = 0
        self.seconds = 0.0
        self.validated = self.has_validated = False
        self.extra_steps = 0
        self._resumed: dict[str, Any] = {}
        self._before = 0, 0.0  # samples and seconds of earlier processes
        self._start = 0, 0  # batches and samples of the epoch that the loader does not give again
        self._after_step = 0, 0  # batches and samples at the last step of the optimizer
        self._since: float | None = None

    @property
    def samples_per_second(self) -> float:
        """Throughput of this process's training."""
        seconds = self.seconds - self._before[1]
        return (self.seen + self.samples - self._before[0]) / seconds if seconds else 0.0

    def samples_before(self, batch: int, sampler: Any) -> int:
        """Return the samples of the current epoch that a sampler gives before a batch."""
        batches, samples = self._start
        return int(sampler.place(batch - batches, samples))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.precision == "64-true":
            pl_module.double()  # before a checkpoint's weights would be rounded to float32

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where the checkpoint was saved, at the same sample if the batches are others."""
        internals.skip_empty_hooks(trainer)
        self._since = time.perf_counter()
        self._start = self._after_step = self.batches, self.samples
        self.has_validated = False
        resumed, self._resumed = self._resumed, {}
        if not resumed:
            return
        sampler = _sampler(trainer)
        if self.batches and self.samples and sampler:
            batches = len(sampler) - sampler.left(self.samples)
            if batches != self.batches:
                rank_zero_info(
                    f"The batches are others than in the checkpoint, which is from within epoch "
                    f"{self.epoch}: it goes on after {self.samples} samples, with "
                    f"{len(sampler) - batches} of {len(sampler)} batches left."
                )
                self.batches = batches
                self._start = self._after_step = batches, self.samples
        elif self.batches:
            internals.skip_batches(trainer, self.batches)
        validate = bool(resumed.get("validation_is_due"))
        internals.begin_at(trainer, self.epoch, self.batches, self.stepped, validate)
        metrics = resumed.get("metrics", {})
        trainer.callback_metrics.update({name: torch.tensor(v) for name, v in metrics.items()})
        if "frozen" in resumed:  # a callback may have begun to train some of them meanwhile
            for name, parameter in pl_module.named_parameters():
                parameter.requires_grad_(name not in resumed["frozen"])
        if resumed.get("plateau_is_due"):
            loop = trainer.fit_loop.epoch_loop
            loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = self._after_step = 0, 0

    def on_before_optimizer_step(self, trainer: Trainer, _: Any, optimizer: Optimizer) -> None:
        """Divide the gradients of a shorter window of accumulation by the batches that are in it.

        It is an epoch's last, or the first after a resume with other batches. Lightning divides by
        `accumulate_grad_batches` all the same (its issue 19987).
        """
        window = self.batches + 1 - self._after_step[0]
        if window < trainer.accumulate_grad_batches:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad *= trainer.accumulate_grad_batches / window

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.batches += 1
        self.validated = False
        if sampler := _sampler(trainer):
            self.samples = self.samples_before(self.batches, sampler)
        else:
            _, _, batch, *_index = args
            with suppress(MisconfigurationException):  # no tensor in the batch: nothing to count
                self.samples += extract_batch_size(batch) * trainer.world_size
        if internals.steps_after_this_batch(trainer):
            self.stepped += 1
            self._after_step = self.batches, self.samples
            if is_logged(trainer, trainer.global_step):
                log(trainer, {"samples": self.seen + self.samples})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if in_training(trainer):
            self._pause()
            trainer.fit_loop.epoch_loop.max_steps -= self.extra_steps
            self.extra_steps = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if in_training(trainer):
            self._since = time.perf_counter()
            self.validated = self.has_validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause()
        if not trainer.is_last_batch:  # the run ends within the epoch
            if save := getattr(trainer.checkpoint_callback, "save_end", None):
                save(trainer)
            log(trainer, {"samples": self.seen + self.samples}, internals.logged_step(trainer) - 1)
            return
        self.epoch += 1
        self.seen += self.samples
        self.batches = self.samples = 0
        self._since = time.perf_counter()
        # As Lightning does: what an epoch gave stands at its last step.
        log(trainer, {"samples": self.seen}, internals.logged_step(trainer) - 1)

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        self._pause(ends=False)
        checkpoint["position"] = position = {name: getattr(self, name) for name in self.SAVED}
        if self.batches and not internals.steps_after_this_batch(trainer):
            # The gradients since then are not saved.
            position["batches"], position["samples"] = self._after_step
        elif self.batches and not self.validated:
            position["validation_is_due"] = internals.validation_is_due(trainer)
        position["frozen"] = [n for n, p in module.named_parameters() if not p.requires_grad]
        # Lightning shows an epoch to a plateau after its callbacks have saved.
        position["plateau_is_due"] = internals.plateaus_wait(trainer)
        if position["plateau_is_due"]:
            position["metrics"] = {k: float(v) for k, v in trainer.callback_metrics.items()}

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit" or "loops" not in checkpoint:
            return
        self._resumed = position = position_in(checkpoint)
        for name in self.SAVED:
            setattr(self, name, position[name])
        self._before = self.seen + self.samples, self.seconds
        within, validate = bool(self.batches), bool(position.get("validation_is_due"))
        self.extra_steps = internals.place(trainer, checkpoint, self.epoch, within, validate)

    def _pause(self, ends: bool = True) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = None if ends or self._since is None else now


def position_in(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the position that a checkpoint was saved at.

    One that `Clock` has not written has Lightning's counters, and at most the samples beside them.
    """
    if "position" in checkpoint:
        return dict(checkpoint["position"])
    loops = checkpoint["loops"]["fit_loop"]
    seen, samples = checkpoint.get("samples", (0, 0))
    epoch = loops["epoch_progress"]["current"]
    within = epoch["ready"] != epoch["processed"]
    return {
        "epoch": epoch["processed"],
        "batches": loops["epoch_loop.batch_progress"]["current"]["ready"] if within else 0,
        "samples": samples if within else 0,
        "seen": seen,
        "stepped": loops["epoch_loop.state_dict"]["_batches_that_stepped"] + within,
        "seconds": 0.0,
    }


def _sampler(trainer: Trainer) -> Any:
    """Return what says which samples a batch has; None: the training data does not say it."""
    loader: Any = trainer.train_dataloader
    sampler = getattr(loader, "batch_sampler", loader)
    return sampler if hasattr(sampler, "place") else None


def resume_position(trainer: Trainer | None) -> tuple[int, int, int]:
    """Return the epoch, how many of its batches are done, and how many samples they had.

    The last is 0 if they were not counted. It is the position of the run's `Clock`, right after
    any resume, within an epoch too; without one, Lightning's own counters.
    """
    if trainer is None:
        return 0, 0, 0
    if clock := internals.callback_of(trainer, Clock):
        return clock.epoch, clock.batches, clock.samples
    loop = trainer.fit_loop
    return (
        loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
        loop.epoch_loop.batch_progress.current.ready,
        0,
    )
