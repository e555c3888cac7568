"""The style of all figures, how one is written, and what is drawn at the end of a training."""

import io
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import rc_context, rc_params_from_file
from matplotlib.figure import Figure
from PIL import Image

from anneal import (
    OptimizerCallable,
    RunSchedule,
    Schedule,
    configure_optimizers,
    log_image,
    next_free_path,
)

STYLE = rc_params_from_file(Path(__file__).with_name("lab.mplstyle"), use_default_template=False)
COLOURS: list[str] = STYLE["axes.prop_cycle"].by_key()["color"]
GREY: str = STYLE["axes.edgecolor"]
styled = rc_context(STYLE)
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


def titled(title: str, height: float, width: float = 10) -> Figure:
    """Return a figure with what it shows above it, in as many lines as its width asks for."""
    figure = Figure(figsize=(width, height))
    figure.suptitle(textwrap.fill(title, round(8.4 * width)), x=0.01, ha="left")
    return figure


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


class LabModule(LightningModule):
    """What the networks of the lab share: optimizer and schedule, and a figure if they can `draw`.

    Args:
        optimizer: Any `torch.optim.Optimizer`; None: AdamW as torch has it.
        schedule: How the learning rate changes.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008 (never changed)
    ) -> None:
        super().__init__()
        self.optimizer, self.schedule = optimizer, schedule
        self.label = ""

    def configure_callbacks(self) -> list[Callback]:
        return [TrainingFigure()] if self.trainer.state.fn == "fit" else []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self, self.optimizer, self.schedule)

    def on_train_start(self) -> None:
        """Keep optimizer and schedule in one line, as a title."""
        self.label = type(self.trainer.optimizers[0]).__name__  # in a search for the learning rate
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, RunSchedule):
                optimizer, schedule, *_ = config.scheduler.describe().split("; ")
                self.label = optimizer.replace(", fused=True", "")
                if not schedule.startswith("constant") or "warmup" in schedule:
                    self.label += f"; {schedule}"
