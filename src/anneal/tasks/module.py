"""Base of a model with one of the three tasks: names, exact counts and metrics, checkpoints."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchmetrics import MeanMetric, MetricCollection

from anneal.errors import UserError, other_unicode
from anneal.lightning_internals import QuickModule
from anneal.system import is_plain
from anneal.tasks.kinds import TASKS, Classification, Metrics, Task, Weights
from anneal.tasks.try_images import try_images

Batch = tuple[Tensor, Tensor]


class TaskModule(QuickModule):
    """Base of models with a task: a subclass has the network, the training step, the optimizer.

    It takes the task and the names of the outputs from the data and keeps them in the checkpoint,
    refuses data of others, and computes every metric exactly over the samples of a split and all
    processes.

    Args:
        num_classes: Number of outputs: of classes, labels or targets, the same as in the data.
            None: as many as the data has, for a subclass that builds its network in `build`.
        task: `classification` (one class for each sample), `multilabel` or `regression`. None:
            what the data says, by default classification.
        class_weight: Weight of each class in the training loss, in the order of the classes;
            validation and test are not weighted. `balanced`: samples / (classes x samples of the
            class). Classification only.
        pos_weight: Weight of the samples that have a label, for each label, in the training loss.
            `balanced`: samples without it / samples with it. Multilabel only.
        label_smoothing: Share of the training target spread over all classes. Classification only.
        compile: Whether torch.compile runs the network.

    Attributes:
        net: The network, from images (N, C, H, W) to outputs (N, num_classes).
        class_names: Names of the outputs; None until the data or a checkpoint tells them.
        counts: Samples of the last validation and test, by split.
    """

    net: nn.Module
    task: Task

    def __init__(
        self,
        num_classes: int | None,
        task: Literal["classification", "multilabel", "regression"] | None = None,
        class_weight: Weights = None,
        pos_weight: Weights = None,
        label_smoothing: float = 0.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        # A checkpoint holds plain values only, so that torch.load(weights_only=True) reads it. From
        # the command line all of them are plain; from Python an optimizer is a class or function.
        self.save_hyperparameters(logger=False)
        rich = [name for name, value in self.hparams.items() if not is_plain(value)]
        self._options: dict[str, Any] = {"class_weight": class_weight, "pos_weight": pos_weight}
        self._options["label_smoothing"] = label_smoothing
        # A subclass need not take them.
        optional = {**self._options, "task": task, "compile": compile}
        unset = [name for name, value in optional.items() if not value]
        self.save_hyperparameters(ignore=[*rich, *unset], logger=False)
        self.compile_net = compile
        self._known_task: str | None = None
        self._set_task(task or Classification.name, "model.task says")
        self._known_task = task
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
        """Build `self.net` if that has to wait until the number of outputs is known."""
        raise UserError(f"{type(self).__name__}: set model.num_classes")

    def metrics(self, num_classes: int) -> Metrics:
        """Return what validation and test log, by default what the task has.

        Of classification, metrics are given logits (N, num_classes) and labels (N,); else
        probabilities or values, (N, num_classes), and targets (N, num_classes).
        """
        return self.task.metrics(num_classes)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, (N,); validation and test log its mean."""
        return self.task.loss(outputs, target)

    def predict_logits(self, images: Tensor) -> Tensor:
        """Return outputs for validation, test and prediction, by default those of `forward`."""
        logits: Tensor = self(images)
        return logits

    # ---- what it may call

    def count_hits(self, outputs: Tensor, target: Tensor) -> None:
        """Count a training batch for `train/acc`, which only classification has.

        By hand: a metric object costs as much as a small network's whole step.
        """
        if isinstance(self.task, Classification):
            hard = target if target.ndim == 1 else target.argmax(1)  # MixUp gives shares of classes
            self._hits_and_seen[0] += (outputs.detach().argmax(1) == hard).sum()
            self._hits_and_seen[1] += len(target)

    # ---- what Lightning calls

    def configure_model(self) -> None:
        """Take task, names and targets from the data; build the network if that had to wait."""
        self._set_task(self._task_in_data(), "the data is for")
        if names := self._in_data("class_names"):
            if self.num_classes and len(names) != self.num_classes:
                raise UserError(
                    f"{len(names)} {self.task.things} in the data, {self.num_classes} in the "
                    f"model: set model.num_classes to {len(names)}"
                )
            self._check_names(self.class_names, names)
            self.class_names = list(names)
            if not self.num_classes:
                self._set_num_classes(len(names))
                self.build()
        if not self.num_classes:
            return
        if self.num_classes < (least := self.task.least):
            few = f"{self.task.name} needs at least {least} {self.task.things}"
            raise UserError(f"{few}, not {self.num_classes}")
        if self._run and self._run.state.fn == "fit":
            for option, value in self._options.items():
                if value and option not in self.task.options:
                    off = f"--model.{option}={0 if option == 'label_smoothing' else 'null'}"
                    raise UserError(f"model.{option} is not for {self.task.name}: set {off}")
            names = names or list(map(str, range(self.num_classes)))
            self.task.prepare(self._in_data("train_targets"), names)
        # Groups would merge metrics that agree on the first batch: acc and acc_top3 at 100 %.
        self.evaluated = MetricCollection(self.metrics(self.num_classes), compute_groups=False)
        if not isinstance(self.net, FSDPModule):  # its pieces have no layout
            self.net.to(memory_format=torch.channels_last)
        if self.compile_net:
            self.net.compile()  # in place: the names of the weights stay

    def on_fit_start(self) -> None:
        if not isinstance(self.net, FSDPModule):
            with self.trainer.precision_plugin.val_step_context():
                try_images(self, self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        # One process resumes what a checkpoint from within an epoch has counted.
        counted = self._counted if self.global_rank == 0 else [0, 0]
        self._hits_and_seen = torch.tensor(counted, device=self.device)
        self._counted = [0, 0]

    def on_train_epoch_end(self) -> None:
        hits, seen = self.trainer.strategy.reduce(self._hits_and_seen, reduce_op="sum")
        if seen:
            self.log("train/acc", hits / seen, sync_dist=True)
        self._hits_and_seen.zero_()

    def on_validation_epoch_start(self) -> None:
        self.evaluated.reset()
        self.mean_loss.reset()
        if self.task.chooser:
            self.task.chooser.reset()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        found = self._evaluate(batch)
        if self.task.chooser:
            self.task.chooser.update(found["preds"], found["target"])

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")
        if self.task.chooser and not self.trainer.sanity_checking:
            self.task.choose()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return `loss` (N,), `preds` and `target` of each sample: see `Task.found`."""
        return self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return probabilities or values, (N, num_classes)."""
        return self.task.activate(self.predict_logits(batch[0]).float())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_names"] = self.class_names
        checkpoint["task"] = self.task.name
        checkpoint["task_state"] = self.task.state()
        checkpoint["counts"] = self.counts
        counted = self.trainer.strategy.reduce(self._hits_and_seen.clone(), reduce_op="sum")
        checkpoint["hits_and_seen"] = counted.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("class_names")
        self._set_task(checkpoint.get("task", Classification.name), "the checkpoint is for")
        self.task.restore(checkpoint.get("task_state", {}))
        if not self.num_classes:  # in a prediction no data tell it
            self._set_num_classes(checkpoint["hyper_parameters"]["num_classes"])
            self.build()
            self.net.to(memory_format=torch.channels_last)
        self._check_names(stored, self.class_names)
        self.class_names = stored or self.class_names
        self._counted = checkpoint.get("hits_and_seen", [0, 0])

    @property
    def checkpoint_monitor(self) -> str | None:
        """The metric that decides which checkpoint is the best, once the task is known."""
        name = self._task_in_data() or self._known_task
        return TASKS[name].monitor if name in TASKS else None

    @property
    def _run(self) -> Any:
        """The trainer; None of a module that is loaded from a checkpoint, from Python."""
        with suppress(RuntimeError):
            return self.trainer
        return None

    def _in_data(self, attribute: str, default: Any = None) -> Any:
        return getattr(getattr(self._run, "datamodule", None), attribute, default)

    def _task_in_data(self) -> str | None:
        """Return what the data is for; None: it has not been read, or says nothing."""
        if (names := self._in_data("class_names", ())) is None:
            return None
        unsaid = (self._known_task or Classification.name) if names else None
        return self._in_data("task") or unsaid

    def _set_task(self, name: str | None, owner: str) -> None:
        """Take the task that somebody names, or raise UserError if another one is known."""
        if name is None:
            return
        if name not in TASKS:
            raise UserError(f"{owner} {name}: there are {', '.join(TASKS)}")
        if self._known_task not in (None, name):
            raise UserError(f"{owner} {name}, and the model is for {self._known_task}")
        kind = TASKS[name]
        if type(getattr(self, "task", None)) is not kind:
            self.task = kind(**{option: self._options[option] for option in kind.options})
        self._known_task = name

    def _set_num_classes(self, n: int) -> None:
        if n < 1:
            raise UserError(f"model.num_classes={n}: must be at least 1")
        self.num_classes = n
        self.hparams["num_classes"] = n

    def _evaluate(self, batch: Batch) -> dict[str, Tensor]:
        images, target = batch
        outputs = self.predict_logits(images).float()
        loss = self.loss(outputs, target)
        self.mean_loss.update(loss)
        found = self.task.found(outputs, target)
        measured = outputs if self.task.takes_logits else found["preds"]
        self.evaluated.update(measured, found["target"])
        return {"loss": loss, **found}

    def _log_evaluation(self, stage: str) -> None:
        # Computed here, exactly over all samples and processes: Lightning's own mean of values from
        # steps rounds the number of samples down to a multiple of the processes.
        if not self.mean_loss.update_called:
            raise UserError(f"no {stage} sample could be read: nothing to measure", status=1)
        seen = self.mean_loss.weight.clone()
        self.counts[stage] = int(self.trainer.strategy.reduce(seen, reduce_op="sum"))
        for name, value in {"loss": self.mean_loss.compute(), **self.evaluated.compute()}.items():
            shown = name == self.task.monitor.removeprefix("val/")
            self.log(f"{stage}/{name}", value, prog_bar=shown, sync_dist=True)

    def _check_names(self, checkpoint: Sequence[str] | None, data: Sequence[str] | None) -> None:
        """Refuse a checkpoint whose outputs mean something else than the names in the data."""
        thing = {"classes": "class"}.get(self.task.things, "output")
        for i, (stored, now) in enumerate(zip_longest(checkpoint or [], data or [])):
            if checkpoint and data and stored != now:
                raise UserError(
                    f"the checkpoint was trained on other {self.task.things} than the data has: "
                    f"{thing} {i} is {stored!r} in the checkpoint and {now!r} in the data"
                    f"{other_unicode(now or '', [stored or ''])}"
                )


ClassificationModule = TaskModule  # its name until there were three tasks
