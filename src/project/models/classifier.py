"""What the networks for images share: normalisation, training step, metrics and optimizer."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from anneal import (
    OptimizerCallable,
    Rule,
    Schedule,
    TaskModule,
    UserError,
    configure_optimizers,
)

Batch = tuple[Tensor, Tensor]


class Classifier(TaskModule):
    """Base of the networks for images; a subclass sets `self.net`, from images to outputs.

    Images are (N, C, H, W) with values from 0 to 255, uint8 or float. Outputs are of one class for
    each image, of several labels or of numbers, as the task of the data is. Validation, test and
    prediction are in `TaskModule`; `self.task` has the loss: `loss` returns another one here.

    Args:
        num_classes: Number of outputs, the same as in the data. None: as many as the data has, for
            a subclass that builds its network in `build`.
        mean: Mean of each channel, for pixels scaled to 0..1; the default is MNIST's.
        std: Standard deviation of each channel, likewise.
        optimizer: Any `torch.optim.Optimizer`; None: AdamW with torch's defaults.
        schedule: How the learning rate changes.
        decay_norm: Whether the optimizer's weight decay applies to norms too.
        decay_bias: Whether it applies to biases too, those of norms aside.
        lr_batch_size: Number of samples in a step that the optimizer's lr is meant for, 256 in most
            recipes; lr is scaled to the actual number (processes x batch_size x accumulation).
            None: lr is not scaled.
        rules: What applies to some of the parameters only: settings or an optimizer.
        top_k: Number of classes of one more metric of classification: `acc_top3` counts a
            prediction as right if the class is among the 3 most likely.
        **kwargs: `task`, weights and smoothing of the training loss, `compile`: see `TaskModule`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int | None = 10,
        mean: Sequence[float] = (0.1307,),
        std: Sequence[float] = (0.3081,),
        # No class as default: its arguments would reach the class chosen instead (AdamW's
        # weight_decay, SGD).
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008 (never changed)
        decay_norm: bool = True,
        decay_bias: bool = True,
        lr_batch_size: int | None = None,
        rules: Sequence[Rule] = (),
        top_k: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if top_k < 1:
            raise UserError(f"model: top_k={top_k} must be at least 1")
        if not mean or len(std) != len(mean):
            raise UserError(
                f"model: mean={list(mean)} and std={list(std)} need a number for each channel"
            )
        if min(std) <= 0:
            raise UserError(f"model: std={list(std)} must be more than 0")
        self.top_k = top_k
        self.optimizer = optimizer
        self.schedule = schedule
        self.decay_norm = decay_norm
        self.decay_bias = decay_bias
        self.lr_batch_size = lr_batch_size
        self.rules = rules
        for name, values in (("mean", mean), ("std", std)):
            # In units of pixels. Not part of the state: the hyperparameters hold them.
            self.register_buffer(name, 255 * torch.tensor(values).view(-1, 1, 1), persistent=False)

    def metrics(self, num_classes: int) -> dict[str, Metric | MetricCollection]:
        """Return the metrics of validation and test: those of the task, and yours."""
        metrics = super().metrics(num_classes)
        if self.task.name == "classification" and num_classes > self.top_k:
            metrics[f"acc_top{self.top_k}"] = MulticlassAccuracy(
                num_classes, top_k=self.top_k, average="micro", validate_args=False
            )
        return metrics

    def forward(self, images: Tensor) -> Tensor:
        """Return outputs (N, num_classes) of images (N, C, H, W) with values from 0 to 255."""
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        # With channels last in memory, convolutions are about twice as fast in bf16.
        logits: Tensor = self.net(pixels.contiguous(memory_format=torch.channels_last))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch; targets are labels (N,), or numbers (N, num_classes)."""
        images, target = batch
        outputs = self(images).float()
        loss = self.task.train_loss(outputs, target)
        self.log("train/loss", loss, batch_size=len(target), prog_bar=True)
        self.count_hits(outputs, target)  # for train/acc
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
