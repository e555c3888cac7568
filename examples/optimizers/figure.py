"""The figure at the end of a training, and how a figure is written."""

import io
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from PIL import Image

from anneal import RunSchedule, log_image, next_free_path


class TrainingFigure(Callback):
    """Writes `figure.png` after a training and sends it to W&B.

    The module's method `draw` returns it, a matplotlib figure. That of an earlier training is kept.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        draw: Callable[[], Figure] | None = getattr(pl_module, "draw", None)
        quick = trainer.fast_dev_run or trainer.barebones  # type: ignore[attr-defined]
        if draw is None or quick or not trainer.is_global_zero:
            return
        path = next_free_path(Path(trainer.default_root_dir) / "figure.png")
        save(draw(), path)
        rank_zero_info(f"{path}")
        log_image(trainer, "figure", path)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of 256 colours, a third as large as with all of them."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    path.parent.mkdir(parents=True, exist_ok=True)
    few = Image.open(file).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    few.save(path, optimize=True)


def describe(trainer: Trainer) -> str:
    """Return optimizer and schedule of a training in one line, as a title."""
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, RunSchedule):
            optimizer, schedule, *_ = config.scheduler.describe().split("; ")
            optimizer = optimizer.replace(", fused=True", "")
            constant = schedule.startswith("constant") and "warmup" not in schedule
            return optimizer if constant else f"{optimizer}; {schedule}"
    return type(trainer.optimizers[0]).__name__  # during a search for the learning rate
