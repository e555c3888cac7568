"""What an epoch has measured so far, kept for a run that is resumed within it."""

from typing import Any

from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import Metric

from anneal.launch import gather
from anneal.lightning_internals import add_sums, epoch_values, set_state, sums_of_epoch
from anneal.progress import resume_position


class EpochMetrics(Callback):
    """Save the sums behind values logged with `on_epoch`, and the torchmetrics of a training step.

    Lightning begins them anew. On another number of processes than before they are, too.
    """

    def __init__(self) -> None:
        self._updated: dict[str, Metric] = {}  # in a training step
        self._counts: dict[str, int] | None = None
        self._stored: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stored = move_data_to_device(self._stored, pl_module.device)
        for name, metric in _metrics(pl_module).items():
            if name in (states := self._stored.get("states", {})):
                set_state(metric, states[name])
                self._updated[name] = metric

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._counts is None:
            self._counts = {n: m.update_count for n, m in _metrics(pl_module).items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._counts:
            metrics = _metrics(pl_module)
            self._updated |= {n: m for n, m in metrics.items() if m.update_count > self._counts[n]}
            self._counts = {}
        if self._stored:
            add_sums(trainer, self._stored.get("sums", {}))
            self._stored = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stored and trainer.is_last_batch:  # none of its batches came in this process
            pl_module.log_dict(self._stored.get("values", {}))
        self._stored = {}

    def on_save_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        if not resume_position(trainer)[1]:
            return
        if trainer.is_last_batch:
            mine = self._stored or {"values": epoch_values(trainer)}
        else:
            states = {name: metric.metric_state for name, metric in self._updated.items()}
            mine = {"sums": sums_of_epoch(trainer), "states": states}
        gathered = gather(trainer, mine)
        if any(any(each.values()) for each in gathered):
            checkpoint["epoch_metrics"] = gathered

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        gathered = checkpoint.get("epoch_metrics", [])
        if len(gathered) == trainer.world_size:
            self._stored = gathered[trainer.global_rank]


def _metrics(module: LightningModule) -> dict[str, Metric]:
    return {name: m for name, m in module.named_modules() if isinstance(m, Metric)}
