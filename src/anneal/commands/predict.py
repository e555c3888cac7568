"""Predictions of a model as a CSV file and as a sheet of the images."""

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from anneal.errors import UserError
from anneal.image_grid import legible, plot_image_grid
from anneal.runs.exported import Exported, is_exported, read
from anneal.runs.folder import next_free_path
from anneal.system import atomic_write, write_csv
from anneal.tasks.kinds import TASKS, Classification, Task
from anneal.vision.decode import UnreadableImageError
from anneal.vision.files import ImageFiles, ImageSource

SHOWN = 48  # images on a sheet
COLUMNS = 8
TOP_K = 5  # classes of a line, where the model does not say
# From the training's mean, in its standard deviations: an image's mean, and the least deviation.
FAR, FLAT = 1.5, 0.1


def predict(run: Any) -> None:
    """Write what a checkpoint predicts, for test data or your own files, to a CSV file."""
    model, path = run.model, run.ckpt_path
    if run.trainer.world_size > 1:
        raise UserError("predict runs in one process: --trainer.devices=1")
    if not hasattr(model, "class_names"):
        raise UserError(
            f"predict writes what a model with a task predicts, and {type(model).__name__} "
            "has no class_names: call its predict_step from Python"
        )
    if is_exported(path):
        model, path = ExportedModel(read(path), model), None
    seen = Predictions(run.model)
    run.trainer.callbacks.append(seen)
    done = False
    try:
        run.trainer.predict(model, run.data, None, False, path, weights_only=True)
        done = True
    finally:
        if done or seen.batches:  # it was interrupted, or a later file ended it
            save_predictions(run.folder, seen, model, run.trainer, run.data)


class ExportedModel(LightningModule):
    """An exported file as `predict` takes it."""

    def __init__(self, exported: Exported, model: Any) -> None:
        super().__init__()
        self.exported = exported
        self.top_k = getattr(model, "top_k", TOP_K)
        self.class_names = json.loads(exported.about["class_names"])
        self.task = TASKS[exported.about.get("task") or Classification.name]()
        self.task.restore(json.loads(exported.about.get("task_state") or "{}"))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return probabilities or values, (N, outputs)."""
        return self.exported(batch[0])


class Predictions(Callback):
    """What a model predicts, and how far its images are off those it was trained on."""

    def __init__(self, model: LightningModule) -> None:
        self.batches: list[Tensor] = []  # probabilities or values, (batch, outputs) each
        # Of each image the mean of its pixels, and whether that or its contrast is far off.
        self.levels: list[tuple[float, bool]] = []
        self.mean: Any = getattr(model, "mean", None)  # of the pixels it was trained on
        self.std: Any = getattr(model, "std", None)

    def on_predict_batch_end(self, trainer: Trainer, *args: Any) -> None:
        _, outputs, batch, *_rest = args
        self.batches.append(outputs.float().cpu())
        if self.mean is not None and self.std is not None:
            pixels = batch[0].float()
            scaled = ((pixels - self.mean.to(pixels)) / self.std.to(pixels)).flatten(1)
            off = (scaled.mean(1).abs() > FAR) | (scaled.std(1) < FLAT)
            self.levels += zip(pixels.flatten(1).mean(1).tolist(), off.tolist(), strict=True)
        if trainer.received_sigterm:  # Lightning looks for it in a training only
            sys.exit(128 + signal.SIGTERM)


def files_of(trainer: Trainer, datamodule: LightningDataModule) -> ImageSource | None:
    """Return the files that are predicted, in their order; None: the data does not know them.

    They are what the data module calls `predicted`, a list of paths or an `ImageSource`, or else
    the `samples` of a dataset of torchvision's.
    """
    predicted = getattr(datamodule, "predicted", None)
    if predicted is None:
        dataset = getattr(trainer.predict_dataloaders, "dataset", None)
        predicted = [path for path, _ in getattr(dataset, "samples", ())] or None
    if predicted is None or isinstance(predicted, ImageSource):
        return predicted
    return ImageFiles([Path(path) for path in predicted])


def save_predictions(
    folder: Path, seen: Predictions, model: Any, trainer: Trainer, datamodule: LightningDataModule
) -> None:
    """Write `predictions.csv` and, for images in files, `predictions.png`; print their paths.

    The model's `task`, `class_names` and `top_k` say what is written; the data, which images
    couldn't be read. If the command ended early, the first samples were predicted.
    """
    task: Task = getattr(model, "task", None) or Classification()
    samples = [sample for batch in seen.batches for sample in batch]
    files = files_of(trainer, datamodule)
    skipped: dict[str, str] = getattr(datamodule, "skipped", {}) if files else {}
    if not samples:
        why = next(iter(skipped.items()), "no batch was read")
        raise UserError(f"nothing was predicted: {why}")
    names: Sequence[str] = model.class_names or list(map(str, range(len(samples[0]))))
    lines = task.table(samples, names, getattr(model, "top_k", TOP_K))
    paths: Sequence[Any] = range(len(samples))
    if files:
        readable = (i for i in range(len(files)) if files.path(i) not in skipped)
        numbers = list(islice(readable, len(samples)))
        paths = [files.path(i) for i in numbers]
    folder.mkdir(parents=True, exist_ok=True)  # of a checkpoint that lies in no run
    path = next_free_path(folder / "predictions.csv")
    first = ["path" if files else "index", *paths]
    write_csv(path, ([cell, *line] for cell, line in zip(first, lines, strict=True)))
    if files:
        with suppress(UnreadableImageError):  # of files that are no images
            images = [files.image(i) for i in numbers[:SHOWN]]
            drawn = legible(names)
            said = [task.words(sample, drawn) for sample in samples[:SHOWN]]
            sheet = next_free_path(path.with_suffix(".png"))
            with atomic_write(sheet) as part:
                draw_predictions(images, said, len(samples)).savefig(part, dpi=120, format="png")
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


def draw_predictions(images: Sequence[Tensor], said: Sequence[list[str]], total: int) -> Figure:
    """Draw the first of `total` images, (3, H, W) uint8, under what is predicted for them."""
    pictures = []
    for image, words in zip(images, said, strict=True):
        thumbnail = F.center_crop(F.resize(image, [128]), [128, 128])
        first, *others = words or ["none"]
        pictures.append((thumbnail, f"{first}\n{', '.join(others)}"))
    shown = "all" if len(pictures) == total else f"the first {len(pictures)} of"
    return plot_image_grid(f"Predictions of {shown} {total:,} pictures", pictures, COLUMNS)
