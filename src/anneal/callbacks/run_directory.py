"""The run's folder and what it was trained with: in it, in every checkpoint and in W&B."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.model_helpers import is_overridden

from anneal.errors import UserError, in_a_line
from anneal.lightning_internals import callback_of, callbacks_of, metrics_to_log, validation_is_due
from anneal.optim.callback import ScheduleCallback
from anneal.progress import in_training, loggers_with
from anneal.runs.folder import configs_of, next_free_path
from anneal.runs.lock import hold
from anneal.runs.resume import stop_of, was_stopped
from anneal.system import atomic_write, code_version, write_csv


@dataclass(eq=False)
class RunDirectory(Callback):
    """The folder that a training writes, made when all processes have read their configuration."""

    path: Path
    config: str  # what `config.yaml` holds
    # The checkpoint from which this folder's own run resumes, empty if it has none yet; None: a new
    # run in a new folder.
    resumed_from: dict[str, Any] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    extra_rows: list[int] = field(default_factory=list)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.environment = environment(trainer)
        if stage != "fit" or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        file = self._write_config()
        for logger in loggers_with(trainer, "log_config"):
            logger.log_config(yaml.safe_load(self.config) | {"code": code_version()}, file)
        for logger in loggers_with(trainer, "rewind"):
            saved = self.resumed_from or {}
            pending = saved.get("step_metrics", [0, {}])[1]
            step = saved.get("global_step", 0)
            without = saved.get("extra_rows", [0, 0])
            rows = logger.rewind(step, saved.get("rows"), without, pending)
            if self.resumed_from is not None:
                for viewer in loggers_with(trainer, "catch_up"):
                    viewer.catch_up(rows, trainer.log_every_n_steps)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not any(optimizer.param_groups for optimizer in trainer.optimizers):
            owner = type(pl_module).__name__
            raise UserError(f"{owner}.configure_optimizers returns no optimizer to train with")
        callback = callback_of(trainer, ScheduleCallback)
        if callback and self.path.is_dir() and trainer.is_global_zero:
            rows = callback.schedule.groups()
            write_csv(self.path / "groups.csv", [rows[0], *(row.values() for row in rows)])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the lines of a validation that is made only because the run is about to end."""
        stops = in_training(trainer) and trainer.should_stop
        if stops and not validation_is_due(trainer):
            self.extra_rows = [logger.rows() for logger in loggers_with(trainer, "rows")]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(self.extra_rows) == 1:
            self.extra_rows += [logger.rows() for logger in loggers_with(trainer, "rows")]

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        checkpoint["model_class"] = f"{type(module).__module__}.{type(module).__qualname__}"
        checkpoint["environment"] = self.environment
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["predicts"] = is_overridden("predict_dataloader", data, LightningDataModule)
        for logger in loggers_with(trainer, "rows"):
            checkpoint["rows"] = logger.rows()
        if len(self.extra_rows) == 2:
            checkpoint["extra_rows"] = self.extra_rows
        if stop := stop_of(trainer, self.config):
            checkpoint["stopped"] = stop
        step, values = metrics_to_log(trainer)
        if values:
            checkpoint["step_metrics"] = [step, {"epoch": trainer.current_epoch, **values}]

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        """Stop again where the run has stopped, and log what a kill has left out.

        Lightning logs after its callbacks have saved, and forgets that a callback asked to stop.
        """
        for callback in callbacks_of(trainer, EarlyStopping):  # what is typed, not what is stored
            state = checkpoint["callbacks"].get(callback.state_key, {})
            state["patience"] = callback.patience
        if not self.resumed_from:
            return
        trainer.should_stop = was_stopped(checkpoint, trainer, self.config)
        step, values = checkpoint.get("step_metrics", [0, {}])
        tables = loggers_with(trainer, "has") if values and trainer.is_global_zero else []
        if any(not table.has(values, step) for table in tables):
            for logger in trainer.loggers:
                logger.log_metrics(values, step)

    def _write_config(self) -> Path:
        """Write `config.yaml`; `config-2.yaml` and so on when a resumed run has other settings."""
        file = self.path / "config.yaml"
        with in_a_line(f"can't write {file}"):
            self.path.mkdir(parents=True, exist_ok=True)
            if self.resumed_from is None:  # else it is held already
                hold(self.path)
            if written := configs_of(self.path):
                if self.resumed_from is None:
                    raise UserError(f"{self.path} has just been made by another run")
                if written[-1].read_text() == self.config:
                    return written[-1]
                file = next_free_path(file)
            with atomic_write(file) as part:
                part.write_text(self.config)
        return file


def environment(trainer: Trainer) -> dict[str, str]:
    """Return what a run is trained with: releases, machine, devices, and the code's commit."""
    device = trainer.strategy.root_device
    code = code_version()
    dirty = "-dirty" if code["dirty"] else ""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "lightning")},
        "system": platform.platform(),
        "devices": f"{trainer.world_size} x {name}",
        **({"commit": f"{code['commit']}{dirty}"} if code["commit"] else {}),
    }
