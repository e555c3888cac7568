"""Two pictures of a test: the confusion matrix and the worst mistakes."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from anneal.image_grid import plot_image_grid
from anneal.runs.folder import next_free_path

WORST = 25
COLUMNS = 5


class TestReport(Callback):
    """Draws `test-confusion.png` and `test-mistakes.png` after a test, and sends them to W&B.

    `test-confusion.csv` has the counts.

    Takes what a `Classifier`'s test_step returns: `loss` of each sample, `preds` and `target`.

    Args:
        folder: Where to put them; an earlier test's pictures stay.
    """

    __test__ = False  # for pytest, which takes the name for a test

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.confusion: MulticlassConfusionMatrix | None = None
        # (loss, prediction, target, image) of the worst mistakes so far
        self.worst: list[tuple[float, int, int, Tensor]] = []

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
        for i in wrong.topk(min(WORST, len(wrong))).indices.tolist():
            if wrong[i] >= 0:
                self.worst.append(
                    (float(loss[i]), int(preds[i]), int(target[i]), batch[0][i].cpu())
                )
        self.worst = sorted(self.worst, key=lambda w: w[0], reverse=True)[:WORST]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.confusion is None:
            return
        matrix = self.confusion.compute().cpu()  # summed over the processes
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, self.worst)
            everyone = [w for part in gathered for w in part]
            self.worst = sorted(everyone, key=lambda w: w[0], reverse=True)[:WORST]
        if not trainer.is_global_zero:
            return
        names = getattr(pl_module, "class_names", None) or [str(i) for i in range(len(matrix))]
        pictures = {"confusion": draw_confusion(matrix, names)}
        if self.worst:
            pictures["mistakes"] = draw_mistakes(self.worst, names)
        for what, figure in pictures.items():
            path = next_free_path(self.folder / f"test-{what}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)
            rank_zero_info(f"{path}")
            if what == "confusion":
                write_confusion(path.with_suffix(".csv"), matrix, names)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"test/{what}", [str(path)])


def write_confusion(path: Path, matrix: Tensor, names: list[str]) -> None:
    """Counts as CSV: a line for each true class, a column for each predicted one."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))


def draw_confusion(matrix: Tensor, names: list[str]) -> Figure:
    """Rows are the true classes, columns the predicted ones; mistakes by colour, counts as text.

    Args:
        matrix: Counts, (classes, classes).
        names: Class names.
    """
    n = len(names)
    right = int(matrix.diagonal().sum())
    mistakes = matrix.clone().fill_diagonal_(0)
    figure = Figure(figsize=(6.4, 5.6) if n <= 30 else (10, 9), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(mistakes.numpy(), cmap="Reds")
    axes.set(
        xlabel="predicted",
        ylabel="true",
        title=f"{right:,} of {int(matrix.sum()):,} right ({right / max(1, int(matrix.sum())):.2%})",
    )
    if n <= 30:
        rotation = 90 if max(map(len, names)) > 3 else 0
        axes.set_xticks(range(n), names, rotation=rotation)
        axes.set_yticks(range(n), names)
        for row, column in matrix.nonzero().tolist():
            dark = mistakes[row, column] > mistakes.max() / 2
            color = "tab:green" if row == column else "white" if dark else "black"
            text = str(int(matrix[row, column]))
            label = axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
            label.set_in_layout(False)  # inside the axes: only slows the layout down
    else:
        figure.colorbar(image, label="mistakes", ticks=MaxNLocator(integer=True))
    return figure


def draw_mistakes(worst: list[tuple[float, int, int, Tensor]], names: list[str]) -> Figure:
    """The wrong predictions with the highest loss, as `true -> predicted`, the worst first.

    Args:
        worst: (loss, prediction, target, image) each; images (C, H, W), 0 to 255.
        names: Class names.
    """
    which = "all mistakes" if len(worst) < WORST else f"the {WORST} worst mistakes"
    pictures = [
        (image, f"{names[target]} → {names[prediction]} ({loss:.1f})")
        for loss, prediction, target, image in worst
    ]
    title = f"{which.capitalize()}: true → predicted (loss)"
    return plot_image_grid(title, pictures, COLUMNS, fontsize=9)
