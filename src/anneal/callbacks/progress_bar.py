"""The progress bar, a line for each epoch."""

from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, which leaves a line with the metrics for every epoch.

    Args:
        refresh_rate: Batches between two updates; 0 turns the bar off.
        leave: Whether the bar of an epoch stays.
    """

    def __init__(self, refresh_rate: int = 10, leave: bool = True) -> None:
        super().__init__(refresh_rate, leave=leave)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # W&B's id, which says nothing here
        return metrics

    def on_exception(self, *args: Any) -> None:
        """End the line of the current bar, so that the reason does not stand behind it."""
        for name in ("train_progress_bar", "val_progress_bar"):
            with suppress(TypeError):  # there is none yet
                getattr(self, name).close()
