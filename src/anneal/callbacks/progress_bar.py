"""The progress bars: a line for each epoch, and the time that is left of the whole run."""

import time
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from tqdm import tqdm

from anneal.lightning_internals import callbacks_of
from anneal.progress import resume_position


class WholeRun(callbacks.ProgressBar):
    """A bar whose metrics have `eta`: by the epochs, steps and time that the run may take."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._since, self._start = time.monotonic(), _done(trainer)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # W&B's id, which says nothing here
        left = [timer.time_remaining() for timer in callbacks_of(trainer, callbacks.Timer)]
        if trainer.training and (done := _done(trainer)) > self._start:
            # With the validations that it has had.
            seconds = time.monotonic() - self._since
            left.append(seconds * (1 - done) / (done - self._start))
        if trainer.training and (shortest := min(filter(None, left), default=0.0)) > 0:
            metrics["eta"] = tqdm.format_interval(round(shortest))
        return metrics


class ProgressBar(WholeRun, callbacks.TQDMProgressBar):
    """Lightning's bar, which leaves a line with the metrics for every epoch.

    Args:
        refresh_rate: Batches between two updates; 0 turns the bar off.
        leave: Whether the bar of an epoch stays.
    """

    def __init__(self, refresh_rate: int = 10, leave: bool = True) -> None:
        super().__init__(refresh_rate, leave=leave)

    def on_exception(self, *args: Any) -> None:
        """End the line of the current bar, so that the reason does not stand behind it."""
        for name in ("train_progress_bar", "val_progress_bar"):
            with suppress(TypeError):  # there is none yet
                getattr(self, name).close()


class RichProgressBar(WholeRun, callbacks.RichProgressBar):
    """Lightning's coloured bar, which leaves a line with the metrics for every epoch, too."""

    def __init__(self, leave: bool = True, **kwargs: Any) -> None:
        super().__init__(leave=leave, **kwargs)


def _done(trainer: Trainer) -> float:
    """Return how much of a run is done, from 0 to 1; 0 where neither epochs nor steps end it."""
    epoch, batches, _ = resume_position(trainer)
    epochs = epoch + batches / max(1, trainer.num_training_batches)
    parts = [(epochs, trainer.max_epochs), (trainer.global_step, trainer.max_steps)]
    return max([now / end for now, end in parts if end and end > 0], default=0.0)
