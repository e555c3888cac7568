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
    """What the outputs (N, K) of a network mean; the base of the three tasks."""

    name: ClassVar[str]  # in configurations and checkpoints
    things: ClassVar[str]  # what the outputs are of, at least so many:
    least: ClassVar[int] = 2
    monitor: ClassVar[str]  # the metric that decides which checkpoint is the best
    predicted: ClassVar[str] = "probabilities"  # what `activate` returns, and how it is written:
    form: ClassVar[str] = ".6f"
    arrow: ClassVar[str] = "true → predicted"  # what `apart` returns
    takes_logits: ClassVar[bool] = False  # whether metrics are given the outputs as they are
    options: ClassVar[tuple[str, ...]] = ()  # of the model for this task, that of `weights` first
    saved: ClassVar[tuple[str, ...]] = ()  # attributes that a checkpoint holds
    weights: Weights = None  # of the training loss, as asked for
    weight: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", None, persistent=False)
        self.chooser: Metric | None = None  # what a validation is to measure for `choose`

    def prepare(self, targets: Tensor | None, names: Sequence[str]) -> None:
        """Take what a training needs from the targets of its whole split, if they are known."""
        asked, n = self.weights, len(names)
        if not asked:
            return
        if asked != "balanced":
            weight, wrong = torch.tensor(asked, dtype=torch.float32), f"give {n} numbers above 0"
        elif targets is None:
            raise UserError(f"model.{self.options[0]}: the data has no train_targets to count")
        else:
            weight = self.balanced(targets, n).float()
            wrong = "some of them are on no sample or all"
        if len(weight) != n or not ((weight > 0) & weight.isfinite()).all():
            raise UserError(f"model.{self.options[0]}={asked} for {', '.join(names)}: {wrong}")
        self.weight = weight

    def balanced(self, targets: Tensor, n: int) -> Tensor:
        """Return the weights of `n` outputs that follow from how often each is in the targets."""
        raise NotImplementedError  # of numbers, which have no weights

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
        """Return targets, a number for each output, in the outputs' shape and type."""
        if target.numel() != outputs.numel():
            shapes = f"{list(outputs.shape)}, and not {list(target.shape)}"
            raise UserError(f"targets of {self.name} have the shape of the outputs, {shapes}")
        return target.reshape(outputs.shape).to(outputs.dtype)

    def choose(self) -> None:
        """Decide what is left to the validations of a training."""

    def table(self, samples: Sequence[Tensor], names: Sequence[str], k: int) -> list[list[str]]:
        """Return predictions, (K,) each, as lines under the names of columns, of `k` classes."""
        return [list(names), *([f"{x:{self.form}}" for x in s.tolist()] for s in samples)]

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

    def table(self, samples: Sequence[Tensor], names: Sequence[str], k: int) -> list[list[str]]:
        ranks = range(1, min(k, len(names)) + 1)
        tops = [zip(*(x.tolist() for x in s.topk(len(ranks))), strict=True) for s in samples]
        head = [name for r in ranks for name in (f"class_{r}", f"probability_{r}")]
        lines = ([x for p, i in top for x in (names[i], f"{p:{self.form}}")] for top in tops)
        return [head, *lines]

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

    def table(self, samples: Sequence[Tensor], names: Sequence[str], k: int) -> list[list[str]]:
        said = ["labels", *("|".join(self.words(sample, names)) for sample in samples)]
        lines = super().table(samples, names, k)
        return [[labels, *line] for labels, line in zip(said, lines, strict=True)]

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
            mean, same = rows.mean(0), rows.amin(0) == rows.amax(0)
            lost = ~same & ((std < 1e-5 * mean.abs()) | (std < 1e-15) | (std > 1e15))
            for i in lost.nonzero()[:1, 0].tolist():
                spread = f"{names[i]} is {mean[i]:g} with a standard deviation of {std[i]:g}"
                raise UserError(f"{spread}, which loses digits: subtract a number, or scale it")
            self.mean, self.std = mean.float(), std.masked_fill(same, 1.0).float()

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
