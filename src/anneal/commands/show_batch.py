"""The first batches of a training as a figure: images as the network gets them."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import SGD

from anneal.callbacks.seed_every_epoch import SeedEveryEpoch
from anneal.commands.schedule import save_figure
from anneal.errors import UserError
from anneal.image_grid import legible, plot_image_grid
from anneal.progress import Clock
from anneal.runs.folder import next_free_path
from anneal.tasks.kinds import Regression

SHOWN, COLUMNS = 24, 8  # images of a batch
LINES = 3  # of a caption
Batches = list[tuple[Tensor, Tensor]]


class Enough(Exception):
    """The batches that were asked for are there."""


def show_batch(run: Any, batches: int = 2, output: Path | None = None) -> None:
    """Draw the first training batches with their targets, as the network gets them.

    Args:
        batches: How many.
        output: The figure's file. None: show-batch.png in the folder of runs.
    """
    path = output or next_free_path(run.folder / "show-batch.png")
    found = first_batches(run.trainer, run.model, run.data, batches)
    save_figure(draw_batches(found, run.data), path)
    print(path)


def first_batches(trainer: Trainer, model: LightningModule, data: Any, number: int) -> Batches:
    """Return the first batches of a training, without a step of it."""
    seen: Batches = []

    def training_step(batch: Any, batch_idx: int) -> Tensor:
        pair: Any = batch if isinstance(batch, list | tuple) and len(batch) == 2 else ((), ())
        if [getattr(part, "ndim", 0) for part in pair] not in ([4, 1], [4, 2]):
            what = "images (N, C, H, W) and targets"
            raise UserError(f"show-batch: batches of {type(data).__name__} are not {what}")
        seen.append((pair[0][:SHOWN].cpu(), pair[1][:SHOWN].cpu()))
        if len(seen) == number:
            raise Enough
        return torch.zeros((), requires_grad=True)

    if trainer.world_size > 1 or number < 1:
        raise UserError("show-batch draws a batch or more of one process: --trainer.devices=1")
    model.training_step = training_step  # type: ignore[method-assign]
    nothing = SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    model.configure_optimizers = lambda: nothing  # type: ignore[method-assign]
    trainer.callbacks[:0] = [Clock(), SeedEveryEpoch()]  # type: ignore[attr-defined]
    with suppress(Enough):
        trainer.fit(model, data)
    if not seen:
        raise UserError("show-batch: there is no batch: see trainer.limit_train_batches")
    return seen


def in_words(target: Tensor, names: Sequence[str], task: str | None) -> str:
    """Return a target, line by line: a class, shares of classes, labels, or numbers."""
    if task == Regression.name:
        return "\n".join(Regression().words(target.reshape(-1), names)[:LINES])
    if target.ndim == 0:
        return names[int(target)]
    of = zip(target.tolist(), names, strict=True)
    there = sorted((pair for pair in of if pair[0] >= 0.005), key=lambda pair: -pair[0])
    if all(value == 1 for value, _ in there):
        return "\n".join([name for _, name in there][:LINES]) or "(none)"
    return " +\n".join([f"{value:.2g} {name}" for value, name in there][:LINES])


def draw_batches(batches: Batches, data: Any) -> Figure:
    """Draw images with their targets; each batch begins a row."""
    outputs = max(int(t.max()) + 1 if t.ndim == 1 else t.shape[1] for _, t in batches)
    names = legible(getattr(data, "class_names", None) or [str(i) for i in range(outputs)])
    cells: list[tuple[Tensor, str]] = []
    for images, targets in batches:
        words = [in_words(target, names, getattr(data, "task", None)) for target in targets]
        cells += zip(images[:, : 3 if images.shape[1] >= 3 else 1], words, strict=True)
        cells += [(torch.full((1, 1, 1), 255), "")] * (-len(images) % COLUMNS)
    shape = " x ".join(map(str, batches[0][0].shape[1:]))
    title = f"The first {len(batches)} training batches of {type(data).__name__}: {shape}"
    return plot_image_grid(title, cells, COLUMNS, fontsize=7)
