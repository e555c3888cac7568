"""A picture at the end of a training, of modules that can be drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure

from anneal.optim.run_schedule import RunSchedule
from anneal.runs.folder import next_free_path
from examples.optimizers.saving import save


class TrainingFigure(Callback):
    """Draws `picture.png` after a training and sends it to W&B, if the module has a `draw`.

    That returns a matplotlib figure.

    The picture of an earlier training stays.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        draw: Callable[[], Figure] | None = getattr(pl_module, "draw", None)
        quick = trainer.fast_dev_run  # type: ignore[attr-defined]
        if draw is None or quick or not trainer.is_global_zero:
            return
        path = next_free_path(Path(trainer.default_root_dir) / "picture.png")
        save(draw(), path)
        rank_zero_info(f"{path}")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("picture", [str(path)])


def settings(trainer: Trainer) -> str:
    """Optimizer and schedule of a training in a line, as a title."""
    schedule: Any = trainer.lr_scheduler_configs[0].scheduler
    if not isinstance(schedule, RunSchedule):  # that of a search for the learning rate
        return type(trainer.optimizers[0]).__name__
    line, _, _length = schedule.describe().rpartition("; ")
    return line.replace(", fused=True", "").removesuffix("; constant rate")
