"""Two figures of a test: the confusion matrix, and the wrong predictions with the top losses."""

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from anneal.image_grid import legible, plot_image_grid
from anneal.launch import gather
from anneal.progress import log_image
from anneal.runs.folder import next_free_path
from anneal.system import write_csv

TOP = 25
COLUMNS = 5
MANY = 30  # classes, whose names and counts have no room
LENGTH = 21  # of a name under an image

Loss = tuple[float, int, int, Tensor]  # loss, prediction, target, image (C, H, W), 0 to 255


class TestReport(Callback):
    """Draw `test-confusion.png` and `test-top-losses.png` after a test, and send them to W&B.

    `test-confusion.csv` has the counts; an earlier test's files stay. Takes what a classifier's
    test_step returns: `loss` of each sample, `preds` and `target`.
    """

    __test__ = False  # for pytest, which takes the name for a test

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.confusion: MulticlassConfusionMatrix | None = None
        self.top: list[Loss] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(outputs, dict) or not {"loss", "preds", "target"} <= outputs.keys():
            return
        preds, target, loss = outputs["preds"], outputs["target"], outputs["loss"].float()
        if self.confusion is None:
            self.confusion = MulticlassConfusionMatrix(pl_module.num_classes).to(preds.device)  # type: ignore[arg-type]
        self.confusion.update(preds, target)
        wrong = torch.where(preds != target, loss, -1.0)
        for i in wrong.topk(min(TOP, len(wrong))).indices.tolist():
            if wrong[i] >= 0:
                self.top.append((float(loss[i]), int(preds[i]), int(target[i]), batch[0][i].cpu()))
        self.top = _highest(self.top)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.confusion is None:
            return
        matrix = self.confusion.compute().cpu()  # summed over the processes
        self.top = _highest([loss for part in gather(trainer, self.top) for loss in part])
        if not trainer.is_global_zero:
            return
        names = getattr(pl_module, "class_names", None) or [str(i) for i in range(len(matrix))]
        drawn = legible(names)
        figures = {"confusion": draw_confusion(matrix, drawn)}
        if self.top:
            figures["top-losses"] = draw_top_losses(self.top, drawn)
        for what, figure in figures.items():
            path = next_free_path(self.folder / f"test-{what}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)
            rank_zero_info(f"{path}")
            log_image(trainer, f"test/{what}", path)
            if what == "confusion":  # a line for each true class, a column for each predicted one
                counts = ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
                write_csv(path.with_suffix(".csv"), [["true \\ predicted", *names], *counts])


def _highest(losses: list[Loss]) -> list[Loss]:
    return sorted(losses, key=lambda loss: loss[0], reverse=True)[:TOP]


def draw_confusion(matrix: Tensor, names: list[str]) -> Figure:
    """Draw counts, (classes, classes): rows are the true classes, columns the predicted ones."""
    n, right, total = len(names), int(matrix.diagonal().sum()), int(matrix.sum())
    named = n <= MANY
    figure = Figure(figsize=(max(6.0, 0.35 * min(n, MANY) + 1.5),) * 2, layout="constrained")
    axes = figure.subplots()
    with warnings.catch_warnings():  # it hands matplotlib a tensor, of which numpy complains
        warnings.filterwarnings("ignore", "__array__ impl", DeprecationWarning)
        MulticlassConfusionMatrix(n).plot(matrix, axes, add_text=named, labels=names, cmap="Blues")
    axes.set_title(f"{right:,} of {total:,} right ({right / max(1, total):.2%})")
    axes.images[0].set_norm(PowerNorm(0.3, vmin=0))  # a few mistakes are seen beside thousands
    if named:
        axes.tick_params("x", rotation=90 if max(map(len, names)) > 3 else 0)
        axes.tick_params("y", rotation=0)
        for text in axes.texts:
            text.set(fontsize=8, visible=text.get_text() != "0")
            text.set_in_layout(False)  # inside the axes: only slows the layout down
    else:
        axes.set(xticks=[], yticks=[])
        figure.colorbar(axes.images[0], label="samples", shrink=0.8)
    return figure


def draw_top_losses(top: list[Loss], names: list[str]) -> Figure:
    """Draw the wrong predictions with the highest loss, as `true -> predicted`, highest first."""
    which = "All mistakes" if len(top) < TOP else f"The {TOP} mistakes with the top losses"
    short = [name if len(name) <= LENGTH else f"{name[: LENGTH - 1]}…" for name in names]
    words = max(map(len, short)) > 6  # of two of them, each takes a line
    images = [
        (image, f"{short[target]} →{chr(10) if words else ' '}{short[prediction]} ({loss:.1f})")
        for loss, prediction, target, image in top
    ]
    title = f"{which}: true → predicted (loss)"
    return plot_image_grid(title, images, COLUMNS, fontsize=7 if words else 9)
