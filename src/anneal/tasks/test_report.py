"""Figures and tables of a test: what they show follows from the task."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional import classification as of

from anneal.image_grid import fitted, legible, plot_image_grid
from anneal.launch import gather
from anneal.progress import log_image
from anneal.runs.folder import next_free_path
from anneal.system import write_csv
from anneal.tasks.kinds import Classification, Task

BINS = 15  # of confidence, as in Guo et al. 2017, arXiv 1706.04599
TOP = 25
COLUMNS = 5
MANY = 30  # classes, whose names and counts have no room
LINES = 10  # labels that have a colour of their own
PANELS = 6  # targets
LABEL = 1.8  # inches of a name

Found = dict[str, Tensor]
Drawn = tuple[dict[str, Figure], dict[str, list[list[Any]]]]
Loss = tuple[float, Tensor, Tensor, Tensor]  # loss, prediction, target, image (C, H, W), 0 to 255


class TestReport(Callback):
    """Draw figures of a test, such as `test-confusion.png`, and send them to the loggers.

    Tables stand beside them; an earlier test's files stay. Takes what the test_step of a
    `TaskModule` returns: `loss` of each sample, `preds` and `target`.
    """

    __test__ = False  # for pytest, which takes the name for a test

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parts: list[dict[str, Tensor]] = []
        self.top: list[Loss] = []

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        _, outputs, batch, *_index = args
        if not isinstance(outputs, dict) or not {"loss", "preds", "target"} <= outputs.keys():
            return
        found = {name: values.detach().cpu() for name, values in outputs.items()}
        loss, preds, target = (found.pop("loss").float(), found["preds"], found["target"])
        self.parts.append(found)
        right = preds == target if preds.ndim == 1 else torch.zeros(len(loss), dtype=torch.bool)
        worst = loss.masked_fill(right, -1.0).topk(min(TOP, len(loss)))
        for value, i in zip(worst.values.tolist(), worst.indices.tolist(), strict=True):
            if value >= 0:
                self.top.append((value, preds[i], target[i], batch[0][i].cpu()))
        self.top = _highest(self.top)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather what all processes have found."""
        parts = [part for parts in gather(trainer, self.parts) for part in parts]
        self.found = {name: torch.cat([p[name] for p in parts]) for name in (parts or [{}])[0]}
        own = getattr(pl_module, "evaluated", {})
        if "confidence" in self.found and "ece" not in own:
            right = (self.found["preds"] == self.found["target"]).int()
            ece = of.binary_calibration_error(self.found["confidence"], right, n_bins=BINS)
            pl_module.log("test/ece", float(ece), sync_dist=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.top = _highest([loss for part in gather(trainer, self.top) for loss in part])
        if not self.found or not trainer.is_global_zero:
            return
        task: Task = getattr(pl_module, "task", None) or Classification()
        names = getattr(pl_module, "class_names", None)
        names = names or list(map(str, range(pl_module.num_classes)))  # type: ignore[arg-type]
        drawn = legible(names)
        figures, tables = DRAWN[task.name](self.found, task, names, drawn)
        if self.top:
            figures["top-losses"] = draw_top_losses(self.top, task, drawn)
        self.folder.mkdir(parents=True, exist_ok=True)
        for what, figure in figures.items():
            path = next_free_path(self.folder / f"test-{what}.png")
            figure.savefig(path, dpi=120)
            rank_zero_info(f"{path}")
            log_image(trainer, f"test/{what}", path)
        for what, rows in tables.items():
            write_csv(next_free_path(self.folder / f"test-{what}.csv"), rows)


def _highest(losses: list[Loss]) -> list[Loss]:
    return sorted(losses, key=lambda loss: loss[0], reverse=True)[:TOP]


def of_classes(found: Found, task: Task, names: Sequence[str], drawn: Sequence[str]) -> Drawn:
    """Return the confusion matrix, the calibration, and a table of the classes."""
    n = len(names)
    matrix = of.multiclass_confusion_matrix(found["preds"], found["target"], n)
    figures = {"confusion": draw_confusion(matrix, drawn)}
    if "confidence" in found:
        right = found["preds"] == found["target"]
        figures["calibration"] = draw_calibration(found["confidence"], right)
    hits, support, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    rates = hits / said, hits / support, 2 * hits / (support + said)
    head = ["class", "precision", "recall", "f1", "support"]
    counts = ([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    return figures, {
        "classes": _table(head, names, *(rate.nan_to_num() for rate in rates), support),
        "confusion": [["true \\ predicted", *names], *counts],
    }


def of_labels(found: Found, task: Any, names: Sequence[str], drawn: Sequence[str]) -> Drawn:
    """Return precision over recall of each label, and a table of the labels."""
    preds, target, n = found["preds"], found["target"].int(), len(names)
    ap = of.multilabel_average_precision(preds, target, n, average=None)
    cuts = torch.full((n,), 0.5), task.thresholds.expand(n)
    f1 = [of.multilabel_f1_score((preds >= at).int(), target, n, average=None) for at in cuts]
    head = ["label", "positives", "ap", "f1_at_0.5", "threshold_of_val", "f1_at_threshold"]
    table = _table(head, names, target.sum(0), ap, f1[0], cuts[1], f1[1])
    curves = of.multilabel_precision_recall_curve(preds, target, n)
    return {"pr-curves": draw_curves(curves, ap, drawn)}, {"labels": table}


def of_targets(found: Found, task: Task, names: Sequence[str], drawn: Sequence[str]) -> Drawn:
    """Return predictions over targets, the residuals, and a table of the targets."""
    preds, target = found["preds"].double(), found["target"].double()
    errors = preds - target
    mae, mse = errors.abs().mean(0), errors.square().mean(0)
    r2 = 1 - mse / target.var(0, correction=0)
    table = _table(["target", "mae", "rmse", "r2"], names, mae, mse.sqrt(), r2)
    return {"regression": draw_regression(preds, target, drawn)}, {"targets": table}


def _table(head: Sequence[str], names: Sequence[str], *columns: Tensor) -> list[list[Any]]:
    lines = zip(names, *(column.tolist() for column in columns), strict=True)
    shown = ([f"{x + 0:.5g}" if x.__class__ is float else x for x in line] for line in lines)
    return [list(head), *shown]


DRAWN = {"classification": of_classes, "multilabel": of_labels, "regression": of_targets}


def draw_confusion(matrix: Tensor, names: Sequence[str]) -> Figure:
    """Draw counts, (classes, classes): rows are the true classes, columns the predicted ones."""
    n, right, total = len(names), int(matrix.diagonal().sum()), int(matrix.sum())
    named = n <= MANY
    short = [fitted(name, LABEL, 10) for name in names]
    figure = Figure(figsize=(max(6.0, 0.35 * min(n, MANY) + 1.5),) * 2, layout="constrained")
    axes = figure.subplots()
    with warnings.catch_warnings():  # it hands matplotlib a tensor, of which numpy complains
        warnings.filterwarnings("ignore", "__array__ impl", DeprecationWarning)
        MulticlassConfusionMatrix(n).plot(matrix, axes, add_text=named, labels=short, cmap="Blues")
    axes.set_title(f"{right:,} of {total:,} right ({right / max(1, total):.2%})")
    axes.images[0].set_norm(PowerNorm(0.3, vmin=0))  # a few mistakes are seen beside thousands
    if named:
        axes.tick_params("x", rotation=90 if max(map(len, short)) > 3 else 0)
        axes.tick_params("y", rotation=0)
        for text in axes.texts:
            text.set(fontsize=max(8, 13 - n), visible=text.get_text() != "0")
            text.set_in_layout(False)  # inside the axes: only slows the layout down
    else:
        axes.set(xticks=[], yticks=[])
        figure.colorbar(axes.images[0], label="samples", shrink=0.8)
    return figure


def draw_calibration(confidence: Tensor, right: Tensor) -> Figure:
    """Draw how often a prediction of some confidence is right, and how many there are."""
    edges = torch.linspace(0, 1, BINS + 1)
    place = torch.bucketize(confidence, edges[1:-1])
    counts = place.bincount(minlength=BINS)
    share = place.bincount(right.float(), minlength=BINS) / counts
    ece = of.binary_calibration_error(confidence, right.int(), n_bins=BINS)
    figure = Figure(figsize=(5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middle, bar = (edges[:-1] + 0.5 / BINS).tolist(), 0.9 / BINS
    upper.bar(middle, share.nan_to_num().tolist(), bar)
    upper.plot([0, 1], [0, 1], "--", color="grey")
    upper.set(title=f"Calibration: ECE {ece:.4f} ({BINS} bins)", ylabel="accuracy")
    upper.set(xlim=(0, 1), ylim=(0, 1))
    lower.bar(middle, counts.tolist(), bar)
    lower.set(xlabel="confidence: probability of the predicted class", ylabel="samples")
    return figure


def draw_curves(curves: Any, ap: Tensor, names: Sequence[str]) -> Figure:
    """Draw precision over recall; of many labels, those with the lowest AP are in colour."""
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    known = ap.isfinite().sum()  # a label of no sample has none
    order = ap.argsort(descending=True)[-int(known) :].tolist() if known else []
    for rank, i in enumerate(order):
        precision, recall, _ = (values[i] for values in curves)
        own = rank >= len(order) - LINES
        label = f"{fitted(names[i], LABEL, 9)}  {ap[i]:.3f}" if own else None
        color = f"C{len(order) - 1 - rank}" if own else "0.85"
        x, y = recall.tolist(), precision.tolist()
        axes.plot(x, y, drawstyle="steps-post", label=label, color=color)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    which = f", the {LINES} lowest of {len(names)} in colour" if len(names) > LINES else ""
    axes.set_title(f"mAP {ap.nanmean():.4f}{which}")
    figure.legend(loc="outside right upper", fontsize=9, title="label, AP")
    return figure


def draw_regression(preds: Tensor, target: Tensor, names: Sequence[str]) -> Figure:
    """Draw predictions and residuals over the targets, of the first few."""
    n = min(len(names), PANELS)
    figure = Figure(figsize=(max(4.5, 3.2 * n), 6.4), layout="constrained")
    panels = figure.subplots(2, n, squeeze=False)
    for i, (upper, lower) in enumerate(zip(*panels, strict=True)):
        x, y = target[:, i].tolist(), preds[:, i].tolist()
        size = min(max(6.0, 2000 / len(x)), 25.0)  # few points are to be seen, many apart
        style: dict[str, Any] = {"s": size, "alpha": 0.5, "linewidths": 0, "rasterized": True}
        upper.scatter(x, y, **style)
        upper.axline((x[0], x[0]), slope=1, color="grey", linestyle="--")
        upper.set_title(fitted(names[i], 2, 10), fontsize=10)
        upper.set(xlabel="true", ylabel="predicted")
        lower.scatter(y, (preds - target)[:, i].tolist(), **style)
        lower.axhline(0, color="grey", linestyle="--")
        lower.set(xlabel="predicted", ylabel="predicted - true")
    if n < len(names):
        figure.suptitle(f"The first {n} of {len(names)} targets")
    return figure


def draw_top_losses(top: Sequence[Any], task: Task, names: Sequence[str]) -> Figure:
    """Draw the samples with the highest loss, as `true → predicted`, highest first."""
    what = "mistakes" if task.name == "classification" else "samples"
    which = f"All {what}" if len(top) < TOP else f"The {TOP} {what} with the top losses"
    images = []
    for loss, preds, target, image in top:
        true, said = task.apart(target, preds, names)
        lines = _first(true, " →"), _first(said, f" ({loss:.2g})")
        line = " ".join(lines) if true or said else f"no mistake ({loss:.2g})"
        images.append((image, line if fitted(line, 1.4, 8) == line else "\n".join(lines)))
    return plot_image_grid(f"{which}: {task.arrow} (loss)", images, COLUMNS, fontsize=8)


def _first(words: Sequence[str], end: str) -> str:
    """Return the first word, how many more there are, and an end that is never cut."""
    end = (f" +{len(words) - 1}" if len(words) > 1 else "") + end
    return fitted(words[0] if words else "none", 1.4 - 0.068 * len(end), 8) + end
