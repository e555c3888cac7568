"""The style of all figures, how one is written, and the one at the end of a training."""

import io
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cycler import cycler
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from anneal import RunSchedule, log_image, next_free_path

# Okabe and Ito's, which colour-blind people tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#6b7280"
styled = rc_context(
    {
        "font.size": 10,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "xtick.color": GREY,
        "ytick.color": GREY,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "legend.borderpad": 0.1,
        "figure.titlesize": 13,
        "figure.titleweight": "bold",
        "figure.constrained_layout.use": True,
    }
)
DPI = 110
SHIFTED = 24  # of 255: a line that is elsewhere changes a spot by more, its smooth edges by less
RECOLOURED = 0.1  # of the pixels: areas have another colour, however near


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


def entitle(figure: Figure, title: str) -> None:
    """Write above a figure what it shows, in as many lines as its width asks for."""
    lines = textwrap.fill(title, round(8.4 * figure.get_figwidth()))
    figure.suptitle(lines, x=0.01, ha="left")


@styled
def save(figure: Figure, path: Path) -> None:
    """Write a PNG, unless the one that is there differs by its smooth edges only."""
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI)
    image = Image.open(file).convert("RGB")  # no palette, which would shift colours
    if path.is_file() and looks_like(image, path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


def looks_like(image: Image.Image, path: Path) -> bool:
    """Return whether a person would take an image for the one in a file."""
    with Image.open(path) as there:
        if there.size != image.size:
            return False
        both = image, there.convert("RGB")
    pixels, spots = (
        np.abs(np.subtract(*(np.asarray(one.reduce(n), dtype=int) for one in both))).max(-1)
        for n in (1, 4)
    )
    return bool(spots.max() < SHIFTED and (pixels > 0).mean() < RECOLOURED)


def describe(trainer: Trainer) -> str:
    """Return optimizer and schedule of a training in one line, as a title."""
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, RunSchedule):
            optimizer, schedule, *_ = config.scheduler.describe().split("; ")
            optimizer = optimizer.replace(", fused=True", "")
            constant = schedule.startswith("constant") and "warmup" not in schedule
            return optimizer if constant else f"{optimizer}; {schedule}"
    return type(trainer.optimizers[0]).__name__  # during a search for the learning rate
