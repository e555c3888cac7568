"""What the classifiers share: normalisation, loss, metrics, training step and optimizer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from anneal import (
    ClassificationModule,
    OptimizerCallable,
    Rule,
    Schedule,
    UserError,
    configure_optimizers,
)

Batch = tuple[Tensor, Tensor]


class Classifier(ClassificationModule):
    """Base of the classifiers; a subclass sets `self.net`, which maps images to logits.

    Images are (N, C, H, W) with values from 0 to 255, uint8 or float. Validation, test and
    prediction are in `ClassificationModule`, which takes `loss` and `metrics` from here.

    Args:
        num_classes: Number of classes, the same as in the data. None: as many as the data has, for
            a subclass that builds its network in `build`.
        mean: Mean of each channel, for pixels scaled to 0..1; the default is MNIST's.
        std: Standard deviation of each channel, likewise.
        label_smoothing: Share of the target spread evenly over all classes, in training only.
        optimizer: Any `torch.optim.Optimizer`; None: AdamW with torch's defaults.
        schedule: How the learning rate changes.
        decay_norm: Whether the optimizer's weight decay applies to norms too.
        decay_bias: Whether it applies to biases too, those of norms aside.
        lr_batch_size: Number of samples in a step that the optimizer's lr is meant for, 256 in most
            recipes; lr is scaled to the actual number (processes x batch_size x accumulation).
            None: lr is not scaled.
        rules: What applies to some of the parameters only: settings or an optimizer.
        compile: Whether torch.compile runs the network.
        top_k: Number of classes of the third metric: `acc_top3` counts a prediction as right if
            the class is among the 3 most likely.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int | None = 10,
        mean: Sequence[float] = (0.1307,),
        std: Sequence[float] = (0.3081,),
        label_smoothing: float = 0.0,
        # No class as default: its arguments would reach the class chosen instead (AdamW's
        # weight_decay, SGD).
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008 (never changed)
        decay_norm: bool = True,
        decay_bias: bool = True,
        lr_batch_size: int | None = None,
        rules: Sequence[Rule] = (),
        compile: bool = False,
        top_k: int = 3,
    ) -> None:
        super().__init__(num_classes)
        if not 0 <= label_smoothing <= 1:
            raise UserError(f"model.label_smoothing={label_smoothing}: must lie between 0 and 1")
        if top_k < 1 or not mean or len(std) != len(mean) or min(std) <= 0:
            raise UserError(
                f"model: top_k={top_k} must be at least 1; mean={list(mean)} and std={list(std)} "
                "need a number for each channel, std one above 0"
            )
        self.top_k = top_k
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.schedule = schedule
        self.decay_norm = decay_norm
        self.decay_bias = decay_bias
        self.lr_batch_size = lr_batch_size
        self.rules = rules
        self.compile_net = compile
        for name, values in (("mean", mean), ("std", std)):
            # In units of pixels. Not part of the state: the hyperparameters hold them.
            self.register_buffer(name, 255 * torch.tensor(values).view(-1, 1, 1), persistent=False)

    def metrics(self, num_classes: int) -> dict[str, Metric | MetricCollection]:
        """Return the metrics of validation and test, of logits (N, num_classes), labels (N,)."""
        metrics: dict[str, Metric | MetricCollection] = {
            "acc": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "acc_macro": MulticlassAccuracy(num_classes, average="macro", validate_args=False),
        }
        if num_classes > self.top_k:
            metrics[f"acc_top{self.top_k}"] = MulticlassAccuracy(
                num_classes, top_k=self.top_k, average="micro", validate_args=False
            )
        return metrics

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, C, H, W) with values from 0 to 255."""
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        # With channels last in memory, convolutions are about twice as fast in bf16.
        logits: Tensor = self.net(pixels.contiguous(memory_format=torch.channels_last))
        return logits

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, (N,), that validation and test average."""
        return F.cross_entropy(logits, target, reduction="none")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch; targets are labels (N,) or shares of classes (N, classes)."""
        images, target = batch
        logits = self(images).float()
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, batch_size=len(target), prog_bar=True)
        self.count_hits(logits, target)  # for train/acc
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimizer and schedule as configured."""
        return configure_optimizers(
            self,
            self.optimizer,
            self.schedule,
            decay_norm=self.decay_norm,
            decay_bias=self.decay_bias,
            lr_batch_size=self.lr_batch_size,
            rules=self.rules,
        )
