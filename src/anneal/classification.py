"""Base of classifiers: class names, exact counts and metrics, checkpoints."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from traceback import extract_tb
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchmetrics import MeanMetric, Metric, MetricCollection

from anneal.errors import UserError, first_line, other_unicode
from anneal.system import SITE_PACKAGES

Batch = tuple[Tensor, Tensor]
LATE = 10**9  # an epoch in which images have their last size


class ClassificationModule(LightningModule):
    """Base of classifiers: a subclass has the network, the loss, the metrics and the optimizer.

    It takes the class names from the data and keeps them in the checkpoint, refuses data of other
    classes, and computes every metric exactly over the samples of a split and all processes.

    Args:
        num_classes: Number of classes, the same as in the data. None: as many as the data has, for
            a subclass that builds its network in `build`.

    Attributes:
        net: The network, from images (N, C, H, W) to logits (N, num_classes).
        class_names: Names by label; None until the data or a checkpoint tells them.
        counts: Samples of the last validation and test, by split.
        compile_net: Whether torch.compile runs the network.
    """

    net: nn.Module
    compile_net = False

    def __init__(self, num_classes: int | None) -> None:
        super().__init__()
        # A checkpoint holds plain values only, so that torch.load(weights_only=True) reads it. From
        # the command line all of them are plain; from Python an optimizer is a class or function.
        self.save_hyperparameters(logger=False)
        rich = [name for name, value in self.hparams.items() if not is_plain(value)]
        self.save_hyperparameters(ignore=rich, logger=False)
        self.num_classes = 0  # until it is known
        self.class_names: list[str] | None = None
        self.counts: dict[str, int] = {}
        self._counted = [0, 0]
        self._hits_and_seen = torch.tensor([0, 0])
        self.mean_loss = MeanMetric()
        if num_classes is not None:
            self._set_num_classes(num_classes)

    # ---- what a subclass writes

    def build(self) -> None:
        """Build `self.net` if that has to wait until the number of classes is known."""
        raise UserError(f"{type(self).__name__}: set model.num_classes")

    def metrics(self, num_classes: int) -> dict[str, Metric | MetricCollection]:
        """Return what validation and test log of logits (N, num_classes) and labels (N,)."""
        raise NotImplementedError

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, (N,); validation and test log its mean."""
        raise NotImplementedError

    def predict_logits(self, images: Tensor) -> Tensor:
        """Return logits for validation, test and prediction, by default those of `forward`."""
        logits: Tensor = self(images)
        return logits

    # ---- what it may call

    def count_hits(self, logits: Tensor, target: Tensor) -> None:
        """Count a training batch for `train/acc`.

        By hand: a metric object costs as much as a small network's whole step.
        """
        hard = target if target.ndim == 1 else target.argmax(1)  # MixUp gives shares of classes
        self._hits_and_seen[0] += (logits.detach().argmax(1) == hard).sum()
        self._hits_and_seen[1] += len(target)

    # ---- what Lightning calls

    def setup(self, stage: str) -> None:
        """Take the class names from the data."""
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
        """Build the network if the number of classes was left to the data."""
        names = self._names_in_data()
        if names is not None and not self.num_classes:
            self._set_num_classes(len(names))
            self.build()
        if self.num_classes:
            # Groups would merge metrics that agree on the first batch: acc and acc_top3 at 100 %.
            metrics = self.metrics(self.num_classes)
            self.evaluated = MetricCollection(metrics, compute_groups=False)
        if self.num_classes and not isinstance(self.net, FSDPModule):  # its pieces have no layout
            self.net.to(memory_format=torch.channels_last)
        if self.num_classes and self.compile_net:
            self.net.compile()  # in place: the names of the weights stay

    def on_fit_start(self) -> None:
        if not isinstance(self.net, FSDPModule):
            with self.trainer.precision_plugin.val_step_context():
                self._try_images(self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        # One process resumes what a checkpoint from within an epoch has counted.
        counted = self._counted if self.global_rank == 0 else [0, 0]
        self._hits_and_seen = torch.tensor(counted, device=self.device)
        self._counted = [0, 0]

    def on_train_epoch_end(self) -> None:
        hits, seen = self.trainer.strategy.reduce(self._hits_and_seen, reduce_op="sum")
        self.log("train/acc", hits / seen, sync_dist=True)
        self._hits_and_seen.zero_()

    def on_validation_epoch_start(self) -> None:
        self.evaluated.reset()
        self.mean_loss.reset()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return `loss`, `preds` and `target` of each sample, all (N,)."""
        return self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return probabilities (N, num_classes)."""
        return self.predict_logits(batch[0]).float().softmax(1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_names"] = self.class_names
        checkpoint["counts"] = self.counts
        counted = self.trainer.strategy.reduce(self._hits_and_seen.clone(), reduce_op="sum")
        checkpoint["hits_and_seen"] = counted.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("class_names")
        if not self.num_classes:  # in a prediction no data tell it
            self._set_num_classes(checkpoint["hyper_parameters"]["num_classes"])
            self.build()
            self.net.to(memory_format=torch.channels_last)
        self._check_names(stored, self.class_names)
        self.class_names = stored or self.class_names
        self._counted = checkpoint.get("hits_and_seen", [0, 0])

    def _names_in_data(self) -> Sequence[str] | None:
        try:
            datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        except RuntimeError:  # no trainer: loaded from a checkpoint, from Python
            return None
        return getattr(datamodule, "class_names", None)

    def _set_num_classes(self, n: int) -> None:
        if n < 2:
            raise UserError(f"a classifier needs at least 2 classes, not {n}")
        self.num_classes = n
        self.hparams["num_classes"] = n

    def _try_images(self, data: Any) -> None:
        """Raise UserError if torch says that the network can't take images as the data has them.

        What goes wrong in code of the user's shows itself in the training, with a traceback.
        """
        shape = getattr(data, "image_shape", (0, 0, 0))
        sides = {data.size_of(epoch) for epoch in (0, LATE)} if hasattr(data, "size_of") else set()
        shapes = [(shape[0], side, side) for side in sides] + [shape] * any(shape)
        modes = {module: module.training for module in self.modules()}
        try:
            eager = torch.compiler.set_stance("force_eager")
            with eager, torch.no_grad(), torch.random.fork_rng(devices=[]):
                for shape in shapes:
                    images = torch.zeros(2, *shape, dtype=torch.uint8, device=self.device)
                    (self.eval().predict_logits if shape == data.image_shape else self)(images)
        except Exception as e:  # of torch's, or of the user's
            raised_in = extract_tb(e.__traceback__)[-1].filename
            if raised_in.startswith(SITE_PACKAGES) or "must match the size of tensor" in str(e):
                owner, size = type(self).__name__, " x ".join(map(str, shape))
                raise UserError(f"{owner} can't take images of {size}: {first_line(e)}") from e
        finally:
            for module, training in modes.items():
                module.training = training

    def _evaluate(self, batch: Batch) -> dict[str, Tensor]:
        images, target = batch
        logits = self.predict_logits(images).float()
        loss = self.loss(logits, target)
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
        """Refuse a checkpoint whose outputs mean something else than the labels of the data."""
        for i, (stored, now) in enumerate(zip_longest(checkpoint or [], data or [])):
            if checkpoint and data and stored != now:
                raise UserError(
                    "the checkpoint was trained on other classes than the data has: class "
                    f"{i} is {stored!r} in the checkpoint and {now!r} in the data"
                    f"{other_unicode(now or '', [stored or ''])}"
                )


def is_plain(value: Any) -> bool:
    """Whether a value is one that JSON, and so a configuration, can hold."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
