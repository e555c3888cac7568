"""Writes what a classifier predicted: a CSV file, and a sheet of the pictures."""

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
from anneal.vision.decode import decode
from anneal.vision.files import ImageFiles

SHOWN = 48  # pictures on a sheet
COLUMNS = 8

# The most likely classes of a sample, the first one first: (name, probability).
Top = list[tuple[str, float]]


def check_predicts(model: LightningModule, trainer: Trainer) -> None:
    """Raises UserError if there is nothing that `save_predictions` could write."""
    if trainer.world_size > 1:
        raise UserError("predict runs in one process: --trainer.devices=1")
    if not hasattr(model, "class_names"):
        raise UserError(
            f"predict writes the probabilities of classes, and {type(model).__name__} is "
            "no Classifier: call its predict_step from Python"
        )


def save_predictions(
    folder: Path,
    batches: Iterable[Tensor],
    model: LightningModule,
    datamodule: LightningDataModule,
) -> None:
    """Writes `predictions.csv` and, of pictures in files, `predictions.png`; says where.

    Args:
        folder: Where to write.
        batches: Probabilities, (batch, classes) each.
        model: A `Classifier`.
        datamodule: What the samples came from; it knows which pictures couldn't be read.

    Raises:
        UserError: No picture can be read.
    """
    tops = most_likely(batches, model.top_k, model.class_names)  # type: ignore[arg-type]
    pictures: ImageFiles | None = getattr(datamodule, "predicted", None)
    left_out: dict[str, str] = datamodule.left_out if pictures else {}  # type: ignore[attr-defined]
    if not tops:
        raise UserError(f"no picture can be read: {next(iter(left_out.items()), '')}")
    folder.mkdir(parents=True, exist_ok=True)  # of a checkpoint that lies in no run
    path = next_free_path(folder / "predictions.csv")
    if pictures is None:
        write_predictions(path, tops)
    else:
        numbers = [i for i in range(len(pictures)) if pictures.path(i) not in left_out]
        write_predictions(path, tops, [pictures.path(i) for i in numbers])
        images = (decode(pictures.read(i)) for i in numbers)
        sheet = next_free_path(path.with_suffix(".png"))
        draw_predictions(images, tops, len(tops)).savefig(sheet, dpi=120)
        print(sheet)
    print(path)
    if left_out:
        print(f"left out, as they can't be read: {len(left_out)}", file=sys.stderr)
        for broken, reason in left_out.items():
            print(f"  {broken}: {reason}", file=sys.stderr)


def most_likely(
    batches: Iterable[Tensor], k: int, class_names: Sequence[str] | None = None
) -> list[Top]:
    """The `k` most likely classes of every sample.

    Args:
        batches: Probabilities, (batch, classes) each.
        k: How many, if there are so many classes.
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
    """A CSV file with a line for every sample: its path or index, and its most likely classes.

    Args:
        path: File to write.
        tops: As `most_likely` gives them.
        paths: Of the samples' files; None: their indices are written.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        ranks = range(1, len(tops[0]) + 1)
        header = [name for r in ranks for name in (f"class_{r}", f"probability_{r}")]
        writer.writerow(["path" if paths else "index", *header])
        for sample, top in zip(paths or range(len(tops)), tops, strict=True):
            writer.writerow([sample, *(x for name, p in top for x in (name, f"{p:.6f}"))])


def draw_predictions(images: Iterable[Tensor], tops: Sequence[Top], total: int) -> Figure:
    """The first pictures under their most likely class.

    Args:
        images: (3, H, W) uint8 of any size.
        tops: As `most_likely` gives them.
        total: How many were predicted.
    """
    pictures = []
    for image, top in zip(islice(images, SHOWN), tops, strict=False):
        name, probability = top[0]
        short = name if len(name) <= 16 else f"{name[:15]}…"
        thumbnail = F.center_crop(F.resize(image, [128]), [128, 128])
        pictures.append((thumbnail, f"{short}\n{probability:.0%}"))
    shown = "all" if len(pictures) == total else f"the first {len(pictures)} of"
    return plot_image_grid(f"Predictions of {shown} {total:,} pictures", pictures, COLUMNS)
