"""What all image classifiers share: preprocessing, loss, metrics, class names."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from anneal.errors import UserError
from anneal.optim import OptimizerCallable, Schedule, configure_optimizers

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """Base of the classifiers. A subclass builds `self.net`, from images to logits.

    Images are (N, C, H, W) with values from 0 to 255, uint8 or float.

    Args:
        num_classes: Number of classes, the same as in the data. None: as many as the data has, for
            a subclass that builds its network in `build`.
        mean: Mean of each channel of pixels scaled to 0..1, by default MNIST's.
        std: Standard deviation of the same.
        label_smoothing: Share of the target spread evenly over all classes, in training only.
        optimizer: Any `torch.optim.Optimizer`; None: AdamW as torch has it.
        schedule: How the learning rate changes.
        decay_norm: Whether the optimizer's weight decay applies to norms too.
        decay_bias: Whether it applies to biases too, those of norms aside.
        lr_batch_size: The number of samples in a step that the optimizer's lr is given for, as 256
            in most recipes: it is scaled to the real one (processes x batch_size x accumulation).
            None: lr as it is.
        top_k: `acc_top3` counts a prediction as right if the class is among the 3 most likely.
    """

    net: nn.Module
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
        top_k: int = 3,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise UserError(f"model.label_smoothing={label_smoothing}: must lie between 0 and 1")
        # A checkpoint holds plain values only, so that torch.load(weights_only=True) reads it. From
        # the command line all of them are plain; from Python an optimizer is a class or function.
        self.save_hyperparameters(logger=False)
        rich = [name for name, value in self.hparams.items() if not _is_plain(value)]
        self.save_hyperparameters(ignore=rich, logger=False)
        self.num_classes = 0  # until it is known
        self.top_k = top_k
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.schedule = schedule
        self.decay_norm = decay_norm
        self.decay_bias = decay_bias
        self.lr_batch_size = lr_batch_size
        self.class_names: list[str] | None = None
        self.counts: dict[str, int] = {}  # samples of the last validation, and test
        self._counted = [0, 0]
        self._hits_and_seen = torch.tensor([0, 0])
        for name, values in (("mean", mean), ("std", std)):
            # In the units of the pixels. Not in the state: the hyper-parameters have them.
            self.register_buffer(name, 255 * torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.mean_loss = MeanMetric()
        if num_classes is not None:
            self._set_num_classes(num_classes)

    def build(self) -> None:
        """Builds `self.net` if that has to wait until the number of classes is known."""
        raise UserError(f"{type(self).__name__}: set model.num_classes")

    def metrics(self, num_classes: int) -> dict[str, Metric | MetricCollection]:
        """What validation and test log of logits (N, num_classes) and labels (N,), by name."""
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
        """Logits (N, num_classes) of plain pixels, (N, C, H, W) from 0 to 255."""
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        # With the channels last in memory, convolutions are about twice as fast in bf16.
        logits: Tensor = self.net(pixels.contiguous(memory_format=torch.channels_last))
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule as configured."""
        return configure_optimizers(
            self,
            self.optimizer,
            self.schedule,
            self.decay_norm,
            self.decay_bias,
            self.lr_batch_size,
        )

    def setup(self, stage: str) -> None:
        """Takes the class names from the data."""
        if (names := self._names_in_data()) is None:
            return
        if self.num_classes and len(names) != self.num_classes:
            raise UserError(
                f"{len(names)} classes in the data, {self.num_classes} in the model: "
                f"set model.num_classes to {len(names)}"
            )
        self._check_names(self.class_names, names)
        self.class_names = list(names)

    def configure_model(self) -> None:
        """Builds the network if the number of classes was left to the data."""
        names = self._names_in_data()
        if names is not None and not self.num_classes:
            self._set_num_classes(len(names))
            self.build()
        if self.num_classes and not isinstance(self.net, FSDPModule):  # its pieces have no layout
            self.net.to(memory_format=torch.channels_last)

    def on_train_start(self) -> None:
        # What a checkpoint from within an epoch has counted goes on in one process.
        counted = self._counted if self.global_rank == 0 else [0, 0]
        self._hits_and_seen = torch.tensor(counted, device=self.device)
        self._counted = [0, 0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, target = batch
        logits = self(images).float()
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, batch_size=len(target), prog_bar=True)
        # Counted by hand: a metric object costs as much as a small network's whole step.
        hard = target if target.ndim == 1 else target.argmax(1)  # MixUp gives shares of classes
        hits = (logits.detach().argmax(1) == hard).sum()
        self._hits_and_seen[0] += hits
        self._hits_and_seen[1] += len(target)
        return loss

    def on_train_epoch_end(self) -> None:
        hits, seen = self.trainer.strategy.reduce(self._hits_and_seen, reduce_op="sum")
        self.log("train/acc", hits / seen, sync_dist=True)
        self._hits_and_seen.zero_()

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self._start_evaluation()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns `loss`, `preds` and `target` of each sample, all (N,)."""
        return self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probabilities (N, num_classes)."""
        return self.evaluate(batch[0]).float().softmax(1)

    def evaluate(self, images: Tensor) -> Tensor:
        """Logits in validation, test and prediction, where a subclass may look more than once."""
        logits: Tensor = self(images)
        return logits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_names"] = self.class_names
        checkpoint["counts"] = self.counts
        counted = self.trainer.strategy.reduce(self._hits_and_seen.clone(), reduce_op="sum")
        checkpoint["hits_and_seen"] = counted.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("class_names")
        if not self.num_classes:  # to predict, there are no data that tell it
            self._set_num_classes(checkpoint["hyper_parameters"]["num_classes"])
            self.build()
            self.net.to(memory_format=torch.channels_last)
        self._check_names(stored, self.class_names)
        self.class_names = stored or self.class_names
        self._counted = checkpoint.get("hits_and_seen", [0, 0])

    def _names_in_data(self) -> Sequence[str] | None:
        if self._trainer is None:  # loaded from a checkpoint, from Python
            return None
        return getattr(self.trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]

    def _set_num_classes(self, n: int) -> None:
        if n < 2:
            raise UserError(f"a classifier needs at least 2 classes, not {n}")
        self.num_classes = n
        self.hparams["num_classes"] = n
        # Groups would merge metrics that agree on the first batch: acc and acc_top3 at 100 %.
        self.evaluated = MetricCollection(self.metrics(n), compute_groups=False)

    def _start_evaluation(self) -> None:
        self.evaluated.reset()
        self.mean_loss.reset()

    def _evaluate(self, batch: Batch) -> dict[str, Tensor]:
        images, target = batch
        logits = self.evaluate(images).float()
        loss = F.cross_entropy(logits, target, reduction="none")
        self.mean_loss.update(loss)
        self.evaluated.update(logits, target)
        return {"loss": loss, "preds": logits.argmax(1), "target": target}

    def _log_evaluation(self, stage: str) -> None:
        # Computed here, exactly over all samples and processes: Lightning's own mean of values from
        # steps rounds the number of samples down to a multiple of the processes.
        if not self.mean_loss.update_called:
            raise UserError(
                f"no {stage} sample could be read: there is nothing to measure", status=1
            )
        seen = self.mean_loss.weight.clone()
        self.counts[stage] = int(self.trainer.strategy.reduce(seen, reduce_op="sum"))
        for name, value in {"loss": self.mean_loss.compute(), **self.evaluated.compute()}.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "acc", sync_dist=True)

    @staticmethod
    def _check_names(checkpoint: Sequence[str] | None, data: Sequence[str] | None) -> None:
        """Refuses a checkpoint whose outputs mean something else than the labels of the data."""
        for i, (stored, now) in enumerate(zip_longest(checkpoint or [], data or [])):
            if checkpoint and data and stored != now:
                raise UserError(
                    "the checkpoint was trained on other classes than the data has: class "
                    f"{i} is {stored!r} in the checkpoint and {now!r} in the data"
                )


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
