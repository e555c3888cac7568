"""Predictions of a classifier as a CSV file and as a sheet of the images."""

import csv
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from anneal.errors import UserError
from anneal.image_grid import plot_image_grid
from anneal.runs.folder import next_free_path
from anneal.system import atomic_write
from anneal.vision.decode import decode
from anneal.vision.files import ImageFiles

SHOWN = 48  # images on a sheet
COLUMNS = 8

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


def save_predictions(
    folder: Path,
    batches: Iterable[Tensor],
    model: LightningModule,
    datamodule: LightningDataModule,
) -> None:
    """Write `predictions.csv` and, for images in files, `predictions.png`; print their paths.

    Args:
        folder: Where to write.
        batches: Probabilities, (batch, classes) each.
        model: Its `class_names` and `top_k` say what is written.
        datamodule: The source of the samples; it knows which images couldn't be read.

    Raises:
        UserError: No image can be read.
    """
    tops = most_likely(batches, model.top_k, model.class_names)  # type: ignore[arg-type]
    pictures: ImageFiles | None = getattr(datamodule, "predicted", None)
    skipped: dict[str, str] = datamodule.skipped if pictures else {}  # type: ignore[attr-defined]
    if not tops:
        raise UserError(f"no picture can be read: {next(iter(skipped.items()), '')}")
    folder.mkdir(parents=True, exist_ok=True)  # of a checkpoint that lies in no run
    path = next_free_path(folder / "predictions.csv")
    if pictures is None:
        write_predictions(path, tops)
    else:
        numbers = [i for i in range(len(pictures)) if pictures.path(i) not in skipped]
        write_predictions(path, tops, [pictures.path(i) for i in numbers])
        images = (decode(pictures.read(i)) for i in numbers)
        sheet = next_free_path(path.with_suffix(".png"))
        with atomic_write(sheet) as part:
            draw_predictions(images, tops, len(tops)).savefig(part, dpi=120, format="png")
        print(sheet)
    print(path)
    if skipped:
        print(f"left out, as they can't be read: {len(skipped)}", file=sys.stderr)
        for broken, reason in skipped.items():
            print(f"  {broken}: {reason}", file=sys.stderr)


def most_likely(
    batches: Iterable[Tensor], k: int, class_names: Sequence[str] | None = None
) -> list[Top]:
    """Return the `k` most likely classes of every sample.

    Args:
        batches: Probabilities, (batch, classes) each.
        k: The number, or fewer if there are fewer classes.
        class_names: Names; None: the classes' numbers.
    """
    tops: list[Top] = []
    for probabilities in batches:
        top = probabilities.float().topk(min(k, probabilities.shape[1]))
        for values, classes in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            names = [class_names[c] if class_names else str(c) for c in classes]
            tops.append(list(zip(names, values, strict=True)))
    return tops


def write_predictions(path: Path, tops: Sequence[Top], paths: Sequence[str] | None = None) -> None:
    """Write a CSV file with a line for each sample: path or index, and its most likely classes.

    Args:
        path: File to write.
        tops: As `most_likely` returns them.
        paths: The samples' files; None: their indices are written.
    """
    with atomic_write(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        ranks = range(1, len(tops[0]) + 1)
        header = [name for r in ranks for name in (f"class_{r}", f"probability_{r}")]
        writer.writerow(["path" if paths else "index", *header])
        for sample, top in zip(paths or range(len(tops)), tops, strict=True):
            writer.writerow([sample, *(x for name, p in top for x in (name, f"{p:.6f}"))])


def draw_predictions(images: Iterable[Tensor], tops: Sequence[Top], total: int) -> Figure:
    """Draw the first images under their most likely class.

    Args:
        images: (3, H, W) uint8 of any size.
        tops: As `most_likely` returns them.
        total: The number of predictions.
    """
    pictures = []
    for image, top in zip(islice(images, SHOWN), tops, strict=False):
        name, probability = top[0]
        short = name if len(name) <= 16 else f"{name[:15]}…"
        thumbnail = F.center_crop(F.resize(image, [128]), [128, 128])
        pictures.append((thumbnail, f"{short}\n{probability:.0%}"))
    shown = "all" if len(pictures) == total else f"the first {len(pictures)} of"
    return plot_image_grid(f"Predictions of {shown} {total:,} pictures", pictures, COLUMNS)
