"""What all of the lab shares: the style and marks of figures, how networks train and are drawn."""

import io
import logging
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib import rc_context, rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

import anneal
from anneal.errors import in_a_line
from examples.optimizers.functions import Function

STYLE = rc_params_from_file(Path(__file__).with_name("lab.mplstyle"), use_default_template=False)
COLOURS: list[str] = STYLE["axes.prop_cycle"].by_key()["color"]
GREY: str = STYLE["axes.edgecolor"]
styled = rc_context(STYLE)
DPI = 110
HEIGHT = LinearSegmentedColormap.from_list("height", ["#f7fafc", "#a9bccf"])
# How a place is marked: by shape and by face.
YELLOW = "#b8a100"
MARKS: dict[str, dict[str, Any]] = {
    "start": {"marker": "o", "ms": 8, "mfc": "white", "mec": "black"},
    "end": {"marker": "X", "ms": 8, "mfc": "black", "mec": "white"},
    "global minimum": {"marker": "*", "ms": 18, "mfc": "#F0E442", "mec": "black"},
    "local minimum": {"marker": "D", "ms": 8, "mfc": "white", "mec": "black"},
}
LINES = {"global minimum": "-", "local minimum": ":"}  # over the steps, where a minimum is
OFF = ("logger", "enable_progress_bar", "enable_model_summary")
# What it says of its own use of torch, of barebones, and of trainings so short.
LIGHTNINGS = ("LeafSpec", "self.log", "number of training batches", "does not have many workers")
SHIFTED = 24  # of 255: a line that is elsewhere changes a spot by more, its smooth edges by less
RECOLOURED = 0.1  # of the pixels: areas have another colour, however near


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
    with written(path):
        image.save(path, optimize=True)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Make the folder of a file; what writes it within fails in one line."""
    with in_a_line(f"can't write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield


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


def kinds(function: Function) -> list[str]:
    """Return of each minimum whether it is a global or a local one."""
    minima = torch.tensor(function.minima, dtype=torch.float64).view(-1, function.dims)
    losses = function(minima).tolist()
    return [f"{'global' if loss < losses[0] + 1e-6 else 'local'} minimum" for loss in losses]


def mark_minima(axes: Axes, function: Function, over_steps: bool = False) -> None:
    """Mark global and local minima, where x is drawn over the steps by lines."""
    for at, name in zip(function.minima, kinds(function), strict=True):
        if over_steps:
            axes.axhline(at[0], color=YELLOW, ls=LINES[name], lw=1.5, zorder=0)
            continue
        y = at[1] if function.dims == 2 else float(function(torch.tensor(at, dtype=torch.float64)))
        axes.plot(at[0], y, ls="", zorder=4, **MARKS[name])


def legend(figure: Figure, function: Function, *names: str, shaded: bool = False) -> None:
    """Explain below a figure its curve or its shades, and those of the marks that are there."""
    there = {*kinds(function), "start", "end"}
    line = "-" if names else ""  # else it says what was trained
    handles: list[Any] = [Line2D([], [], color=GREY, ls=line, label=f"loss = {function.formula}")]
    if shaded:
        handles = [Patch(color=HEIGHT(0.8), label=f"loss = {function.formula}, darker: higher")]
    for name in names:
        (key,) = (key for key in MARKS if name.startswith(key))
        if key in there:
            line = LINES.get(name, "") if function.dims == 1 else ""
            style = MARKS[key] | {"ms": 8, "color": YELLOW, "ls": line}
            handles.append(Line2D([], [], label=name, **style))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), columnspacing=1.2)


def mesh(function: Function, view: Any, points: int = 201) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, y and the losses of a grid over a view, (points, points) each."""
    sides = (torch.linspace(low, high, points, dtype=torch.float64) for low, high in view)
    x, y = torch.meshgrid(*sides, indexing="xy")
    return x, y, function(torch.stack([x, y], -1))


def contours(axes: Axes, function: Function, view: Any, parts: str = "areas lines") -> None:
    """Draw lines of equal loss, between areas of similar size that get smaller near the minimum."""
    x, y, losses = mesh(function, view)
    filled = "areas" in parts
    levels = np.unique(np.quantile(losses, np.linspace(0, 1, 15 if filled else 8) ** 1.5))
    if filled:
        axes.contourf(x, y, losses, levels, colors=HEIGHT(np.linspace(0, 1, len(levels) - 1)))
    colour = "white" if filled else "#333333"
    if "lines" in parts:
        axes.contour(x, y, losses, levels[1:-1], colors=colour, linewidths=0.7)


class Steps(LightningDataModule):
    """An epoch of empty batches, for a loss that takes no samples.

    Args:
        steps: Batches in an epoch.
    """

    def __init__(self, steps: int = 100) -> None:
        super().__init__()
        if steps < 1:
            raise anneal.UserError(f"data.steps={steps}: must be at least 1")
        self.steps = steps

    def batch(self, train: bool) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 0), torch.zeros(1, 0)

    def train_dataloader(self) -> anneal.InMemoryBatches:
        x, y = (t.expand(self.steps, -1) for t in self.batch(train=True))
        position = partial(anneal.resume_position, self.trainer)
        return anneal.InMemoryBatches(x, y, 1, position=position)

    def val_dataloader(self) -> anneal.InMemoryBatches:
        return anneal.InMemoryBatches(*self.batch(train=False), 1)


class LabModule(LightningModule):
    """What the networks of the lab share: optimizer and schedule, and a figure if they can `draw`.

    Args:
        optimizer: Any `torch.optim.Optimizer`; None: AdamW as torch has it.
        schedule: How the learning rate changes.
    """

    def __init__(
        self,
        optimizer: anneal.OptimizerCallable | None = None,
        schedule: anneal.Schedule = anneal.Schedule(),  # noqa: B008 (never changed)
    ) -> None:
        super().__init__()
        self.optimizer, self.schedule = optimizer, schedule
        self.label = ""

    def error(self, batch: Any) -> Tensor:
        """Return the loss of a batch, which is logged."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._logged("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._logged("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._logged("test", batch)

    def _logged(self, stage: str, batch: Any) -> Tensor:
        loss = self.error(batch)
        self.log(f"{stage}/loss", loss, batch_size=1, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return anneal.configure_optimizers(self, self.optimizer, self.schedule)

    def on_train_start(self) -> None:
        """Keep optimizer and schedule in one line, as a title."""
        self.label = type(self.trainer.optimizers[0]).__name__  # in a search for the learning rate
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, anneal.RunSchedule):
                optimizer, schedule, *_ = config.scheduler.describe().split("; ")
                self.label = optimizer.replace(", fused=True", "")
                if not schedule.startswith("constant") or "warmup" in schedule:
                    self.label += f"; {schedule}"

    @styled
    def on_train_end(self) -> None:
        """Write `figure.png` and send it to W&B. That of an earlier training is kept."""
        draw: Callable[[], Figure] | None = getattr(self, "draw", None)
        trainer = self.trainer
        kept = trainer.checkpoint_callback and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if draw and kept and trainer.is_global_zero:
            path = anneal.next_free_path(Path(trainer.default_root_dir) / "figure.png")
            save(draw(), path)
            rank_zero_info(f"{path}")
            anneal.log_image(trainer, "figure", path)


def train_bare(module: Any, data: Any, *callbacks: Callback, epochs: int = 1) -> Any:
    """Train a module of the lab without logs, checkpoints, figures and words, and return it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Barebones is the fastest; of several epochs a plateau needs what is logged.
    off = dict.fromkeys((*OFF, "enable_checkpointing"), False)
    quiet: Any = {**off, "barebones": epochs == 1, "accelerator": "cpu"}
    with warnings.catch_warnings():
        for text in LIGHTNINGS:
            warnings.filterwarnings("ignore", f".*{text}")
        Trainer(max_epochs=epochs, callbacks=[*callbacks], **quiet).fit(module, data)
    return module
