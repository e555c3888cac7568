"""Predictions of a classifier as a CSV file and as a sheet of the images."""

import signal
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from anneal.errors import UserError
from anneal.image_grid import legible, plot_image_grid
from anneal.runs.folder import next_free_path
from anneal.system import atomic_write, write_csv
from anneal.vision.decode import decode
from anneal.vision.files import ImageFiles

SHOWN = 48  # images on a sheet
COLUMNS = 8
# From the training's mean, in its standard deviations: an image's mean, and the least deviation.
FAR, FLAT = 1.5, 0.1

# The most likely classes of a sample in their order: (name, probability).
Top = list[tuple[str, float]]


def check_predicts(model: LightningModule, trainer: Trainer) -> None:
    """Raise UserError if there is nothing that `save_predictions` could write."""
    if trainer.world_size > 1:
        raise UserError("predict runs in one process: --trainer.devices=1")
    if not hasattr(model, "class_names"):
        raise UserError(
            f"predict writes the probabilities of classes, and {type(model).__name__} "
            "has no class_names: call its predict_step from Python"
        )


class Predictions(Callback):
    """What a model predicts, and how far its images are off those it was trained on."""

    def __init__(self, model: LightningModule) -> None:
        self.batches: list[Tensor] = []  # probabilities, (batch, classes) each
        # Of each image the mean of its pixels, and whether that or its contrast is far off.
        self.levels: list[tuple[float, bool]] = []
        self.mean: Any = getattr(model, "mean", None)  # of the pixels it was trained on
        self.std: Any = getattr(model, "std", None)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Tensor, batch: Any, *args: Any
    ) -> None:
        self.batches.append(outputs.cpu())
        if self.mean is not None and self.std is not None:
            pixels = batch[0].float()
            scaled = ((pixels - self.mean.to(pixels)) / self.std.to(pixels)).flatten(1)
            off = (scaled.mean(1).abs() > FAR) | (scaled.std(1) < FLAT)
            self.levels += zip(pixels.flatten(1).mean(1).tolist(), off.tolist(), strict=True)
        if trainer.received_sigterm:  # Lightning looks for it in a training only
            sys.exit(128 + signal.SIGTERM)


def save_predictions(
    folder: Path, seen: Predictions, model: LightningModule, datamodule: LightningDataModule
) -> None:
    """Write `predictions.csv` and, for images in files, `predictions.png`; print their paths.

    The model's `class_names` and `top_k` say what is written; the data, which images couldn't be
    read. If the command ended early, the first samples were predicted.

    Raises:
        UserError: None was.
    """
    names: Sequence[str] | None = model.class_names  # type: ignore[assignment]
    tops = most_likely(seen.batches, model.top_k, names)  # type: ignore[arg-type]
    pictures: ImageFiles | None = getattr(datamodule, "predicted", None)
    skipped: dict[str, str] = datamodule.skipped if pictures else {}  # type: ignore[attr-defined]
    if not tops:
        raise UserError(
            f"nothing was predicted: {next(iter(skipped.items()), 'no batch was read')}"
        )
    folder.mkdir(parents=True, exist_ok=True)  # of a checkpoint that lies in no run
    path = next_free_path(folder / "predictions.csv")
    if pictures is None:
        write_predictions(path, tops)
    else:
        readable = (i for i in range(len(pictures)) if pictures.path(i) not in skipped)
        numbers = list(islice(readable, len(tops)))
        paths = [pictures.path(i) for i in numbers]
        write_predictions(path, tops, paths)
        shown = dict(zip(names, legible(names), strict=True)) if names else {}
        drawn = [[(shown.get(name, name), p) for name, p in top] for top in tops[:SHOWN]]
        images = (decode(pictures.read(i)) for i in numbers)
        sheet = next_free_path(path.with_suffix(".png"))
        with atomic_write(sheet) as part:
            draw_predictions(images, drawn, len(tops)).savefig(part, dpi=120, format="png")
        print(sheet)
        if off := [(p, n) for p, (n, far) in zip(paths, seen.levels, strict=False) if far]:
            print(
                f"{len(off)} of {len(paths)} pictures do not look like the training data (lighter, "
                f"darker or flatter): the mean of {off[0][0]} is {off[0][1]:.0f}, that in training "
                f"{seen.mean.mean():.0f}; wanted: "
                f"{getattr(datamodule, 'input_description', 'pictures like those')}",
                file=sys.stderr,
            )
    print(path)
    if skipped:
        print(f"left out, as they can't be read: {len(skipped)}", file=sys.stderr)
        for broken, reason in skipped.items():
            print(f"  {broken}: {reason}", file=sys.stderr)


def most_likely(
    batches: Iterable[Tensor], k: int, class_names: Sequence[str] | None = None
) -> list[Top]:
    """Return the `k` most likely classes of every sample, from (batch, classes) each."""
    tops: list[Top] = []
    for probabilities in batches:
        top = probabilities.float().topk(min(k, probabilities.shape[1]))
        for values, classes in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            names = [class_names[c] if class_names else str(c) for c in classes]
            tops.append(list(zip(names, values, strict=True)))
    return tops


def write_predictions(path: Path, tops: Sequence[Top], paths: Sequence[str] | None = None) -> None:
    """Write a CSV file with a line for each sample: path or index, and its most likely classes."""
    ranks = range(1, len(tops[0]) + 1)
    header = [name for r in ranks for name in (f"class_{r}", f"probability_{r}")]
    rows: list[list[Any]] = [["path" if paths else "index", *header]]
    for sample, top in zip(paths or range(len(tops)), tops, strict=True):
        rows.append([sample, *(x for name, p in top for x in (name, f"{p:.6f}"))])
    write_csv(path, rows)


def draw_predictions(images: Iterable[Tensor], tops: Sequence[Top], total: int) -> Figure:
    """Draw the first of `total` images, (3, H, W) uint8, under their most likely class."""
    pictures = []
    for image, top in zip(islice(images, SHOWN), tops, strict=False):
        name, probability = top[0]
        short = name if len(name) <= 16 else f"{name[:15]}…"
        thumbnail = F.center_crop(F.resize(image, [128]), [128, 128])
        pictures.append((thumbnail, f"{short}\n{probability:.0%}"))
    shown = "all" if len(pictures) == total else f"the first {len(pictures)} of"
    return plot_image_grid(f"Predictions of {shown} {total:,} pictures", pictures, COLUMNS)
