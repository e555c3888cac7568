"""The three tasks: loss, metrics, and predictions as a table and in words."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics import classification as of
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from anneal.errors import UserError

Metrics = dict[str, Metric | MetricCollection]
Weights = Literal["balanced"] | list[float] | None


class Task(nn.Module):
    """What the outputs (N, K) of a network mean; the base of the three tasks.

    Attributes:
        name: The task in configurations and checkpoints.
        things: What the outputs are of, at `least` so many.
        monitor: The metric that decides which checkpoint is the best.
        predicted: What `activate` returns.
        arrow: What the two words of a sample with a top loss are.
        form: How a number of it is written.
        takes_logits: Whether metrics are given the outputs as they are.
        options: Arguments of the model that are for this task, that of `weights` first.
        saved: Attributes that a checkpoint holds.
        chooser: What a validation is to measure for `choose`.
    """

    name: ClassVar[str]
    things: ClassVar[str]
    monitor: ClassVar[str]
    least: ClassVar[int] = 2
    predicted: ClassVar[str] = "probabilities"
    arrow: ClassVar[str] = "true → predicted"
    form: ClassVar[str] = ".6f"
    takes_logits: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()
    saved: ClassVar[tuple[str, ...]] = ()
    weights: Weights = None  # of the training loss, as asked for
    weight: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", None, persistent=False)
        self.chooser: Metric | None = None

    def prepare(self, targets: Tensor | None, names: Sequence[str]) -> None:
        """Take what a training needs from the targets of its whole split, if they are known.

        Raises:
            UserError: The weights that are asked for make no sense.
        """
        asked = self.weights
        if not asked:
            return
        option = f"model.{self.options[0]}={asked}"
        if asked == "balanced":
            if targets is None:
                raise UserError(f"{option}: the data has no train_targets to count")
            self.weight = self.balanced(targets, len(names)).float()
            for name, weight in zip(names, self.weight.tolist(), strict=True):
                if not 0 < weight < torch.inf:
                    raise UserError(f"{option}: none or all of the training data is {name!r}")
        elif len(asked) != len(names) or min(asked) < 0 or max(asked) == 0:
            raise UserError(f"{option}: give {len(names)} numbers, none below 0, or balanced")
        else:
            self.weight = torch.tensor(asked, dtype=torch.float32)

    @abstractmethod
    def balanced(self, targets: Tensor, n: int) -> Tensor:
        """Return the weights of `n` outputs that follow from how often each is in the targets."""

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, (N,), which validation and test average."""

    def train_loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a training batch, weighted and smoothed as the options say."""
        return self.loss(outputs, target).mean()

    @abstractmethod
    def activate(self, outputs: Tensor) -> Tensor:
        """Return probabilities, or values in the units of the targets."""

    @abstractmethod
    def metrics(self, n: int) -> Metrics:
        """Return the metrics of validation and test."""

    def found(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return `preds` and `target` of each sample, and what else the figures of a test need."""
        return {"preds": self.activate(outputs), "target": self.fitting(outputs, target)}

    def fitting(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return numbers for each output in the outputs' shape and type."""
        if target.numel() != outputs.numel():
            shapes = f"targets are {list(target.shape)}, outputs {list(outputs.shape)}"
            raise UserError(f"{self.name} needs a number for each output: {shapes}")
        return target.reshape(outputs.shape).to(outputs.dtype)

    def choose(self) -> None:
        """Decide what is left to the validations of a training."""

    def header(self, names: Sequence[str], k: int) -> list[str]:
        """Return the columns of a table of predictions, of `k` classes."""
        return list(names)

    def row(self, values: Tensor, names: Sequence[str], k: int) -> list[str]:
        """Return the line of a sample in that table, from its predictions, (K,)."""
        return [f"{value:{self.form}}" for value in values.tolist()]

    @abstractmethod
    def words(self, values: Tensor, names: Sequence[str]) -> list[str]:
        """Return what a prediction or target of one sample says, for a line or two."""

    def apart(self, target: Tensor, preds: Tensor, names: Sequence[str]) -> Sequence[list[str]]:
        """Return the words for target and prediction of one sample that differ."""
        true, said = self.words(target, names), self.words(preds, names)
        return [x for x in true if x not in said], [x for x in said if x not in true]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, as plain values."""
        return {name: getattr(self, name).tolist() for name in self.saved}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        for name, value in state.items():
            setattr(self, name, torch.tensor(value, device=getattr(self, name).device))


class Classification(Task):
    """One class for each sample: labels (N,) int64, in training also shares of classes (N, K)."""

    name, things, monitor = "classification", "classes", "val/acc"
    options = ("class_weight", "label_smoothing")
    takes_logits = True  # of large ones the probabilities are the same

    def __init__(self, class_weight: Weights = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise UserError(f"model.label_smoothing={label_smoothing}: must lie between 0 and 1")
        self.weights, self.label_smoothing = class_weight, label_smoothing

    def balanced(self, targets: Tensor, n: int) -> Tensor:  # as scikit-learn has it
        return len(targets) / (n * targets.bincount(minlength=n))

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(outputs, target, reduction="none")

    def train_loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        smooth = self.label_smoothing
        return F.cross_entropy(outputs, target, self.weight, label_smoothing=smooth)

    def activate(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1)

    def metrics(self, n: int) -> Metrics:
        return {
            "acc": of.MulticlassAccuracy(n, average="micro", validate_args=False),
            "acc_macro": of.MulticlassAccuracy(n, average="macro", validate_args=False),
            "f1_macro": of.MulticlassF1Score(n, average="macro", validate_args=False),
        }

    def found(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        confidence = self.activate(outputs).amax(1)
        return {"preds": outputs.argmax(1), "target": target, "confidence": confidence}

    def header(self, names: Sequence[str], k: int) -> list[str]:
        ranks = range(1, min(k, len(names)) + 1)
        return [name for r in ranks for name in (f"class_{r}", f"probability_{r}")]

    def row(self, values: Tensor, names: Sequence[str], k: int) -> list[str]:
        top = values.topk(min(k, len(values)))
        ranked = zip(top.indices.tolist(), super().row(top.values, names, k), strict=True)
        return [cell for i, p in ranked for cell in (names[i], p)]

    def words(self, values: Tensor, names: Sequence[str]) -> list[str]:
        if values.ndim:  # probabilities, which a label has not
            return [names[int(values.argmax())], f"{float(values.max()):.0%}"]
        return [names[int(values)]]


class MultiLabel(Task):
    """Any number of labels for each sample: targets (N, K) of 0 and 1.

    Each validation of a training chooses `thresholds`, the probabilities from which on a label
    is said to be there: those with the highest F1. Before the first one they are 0.5.
    """

    name, things, monitor = "multilabel", "labels", "val/map"
    options, saved, arrow = ("pos_weight",), ("thresholds",), "missed → wrongly predicted"

    def __init__(self, pos_weight: Weights = None) -> None:
        super().__init__()
        self.weights = pos_weight
        self.thresholds = torch.tensor(0.5)  # no buffer, which an EMA would average

    def balanced(self, targets: Tensor, n: int) -> Tensor:  # as torch's BCEWithLogitsLoss has it
        return (len(targets) - targets.sum(0)) / targets.sum(0)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        target = self.fitting(outputs, target)
        return F.binary_cross_entropy_with_logits(outputs, target, reduction="none").mean(1)

    def train_loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        target = self.fitting(outputs, target)
        return F.binary_cross_entropy_with_logits(outputs, target, pos_weight=self.weight)

    def activate(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def metrics(self, n: int) -> Metrics:
        self.chooser = of.MultilabelPrecisionRecallCurve(n, thresholds=101, validate_args=False)
        return {
            "acc": of.MultilabelExactMatch(n, validate_args=False),
            "f1_macro": of.MultilabelF1Score(n, average="macro", validate_args=False),
            "f1_micro": of.MultilabelF1Score(n, average="micro", validate_args=False),
            "map": of.MultilabelAveragePrecision(n, average="macro", validate_args=False),
        }

    def choose(self) -> None:
        assert self.chooser is not None
        precision, recall, thresholds = (values.cpu() for values in self.chooser.compute())
        f1 = (2 * precision * recall / (precision + recall)).nan_to_num()[:, :-1]
        # Of several that are as good, the one next to 0.5.
        far = (thresholds - 0.5).abs().masked_fill(f1 < f1.amax(1, keepdim=True), torch.inf)
        self.thresholds = thresholds[far.argmin(1)]

    def header(self, names: Sequence[str], k: int) -> list[str]:
        return ["labels", *names]

    def row(self, values: Tensor, names: Sequence[str], k: int) -> list[str]:
        return ["|".join(self.words(values, names)), *super().row(values, names, k)]

    def words(self, values: Tensor, names: Sequence[str]) -> list[str]:
        said = (values >= self.thresholds).tolist()
        return [name for name, is_said in zip(names, said, strict=True) if is_said]


class Regression(Task):
    """Numbers for each sample: targets (N, K), or (N,) for one.

    The network makes them in standard deviations from the mean of the training targets, and the
    loss is the squared error of that; predictions and metrics are in the units of the targets.
    """

    name, things, monitor = "regression", "targets", "val/loss"
    least, predicted, form, saved = 1, "values", ".7g", ("mean", "std")
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0), persistent=False)
        self.register_buffer("std", torch.tensor(1.0), persistent=False)

    def prepare(self, targets: Tensor | None, names: Sequence[str]) -> None:
        if targets is not None:
            rows = targets.reshape(len(targets), -1).double()
            std = rows.std(0, correction=0)
            self.mean, self.std = rows.mean(0).float(), std.where(std > 0, 1.0).float()

    def standardise(self, values: Tensor) -> Tensor:
        """Return targets as the network makes them."""
        return (values - self.mean) / self.std

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs - self.standardise(self.fitting(outputs, target))).square().mean(1)

    def activate(self, outputs: Tensor) -> Tensor:
        return outputs * self.std + self.mean

    def metrics(self, n: int) -> Metrics:
        r2 = StandardisedR2(self.standardise)
        return {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False), "r2": r2}

    def words(self, values: Tensor, names: Sequence[str]) -> list[str]:
        named = zip(names, values.tolist(), strict=True)
        return [f"{name} {v:.4g}" if len(names) > 1 else f"{v:.4g}" for name, v in named]

    def apart(self, target: Tensor, preds: Tensor, names: Sequence[str]) -> Sequence[list[str]]:
        worst = int(((preds - target) / self.std.cpu()).abs().argmax())
        return self.words(target, names)[worst:][:1], [f"{preds[worst]:.4g}"]


class StandardisedR2(R2Score):
    """R2 of standardised values, whose squares keep their digits; NaN of a single sample."""

    def __init__(self, standardise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.standardise = standardise

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(self.standardise(preds), self.standardise(target))

    def compute(self) -> Tensor:
        return super().compute() if self.total > 1 else torch.tensor(torch.nan)


TASKS: dict[str, type[Task]] = {t.name: t for t in (Classification, MultiLabel, Regression)}
