"""Start Lightning's Trainer from the settings of a configuration."""

import os
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    ModelSummary,
    ProgressBar,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from anneal.cli.values import check_range
from anneal.errors import UserError, first_line
from anneal.launch import watch
from anneal.lightning_internals import callbacks_of
from anneal.runs.checkpoint_io import AtomicCheckpointIO
from anneal.system import keep_freed_memory

PREVIEW_COMMANDS = ("schedule", "lr_find", "show-batch", "replay")
WHOLE_WEIGHTS = (StochasticWeightAveraging, WeightAveraging)
Settings = dict[str, Any]

# A look ahead leaves nothing behind.
NO_TRACES: Settings = {
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}
# As many steps as the search asks for, and no validation among them.
SEARCH: Settings = {
    "callbacks": None,
    "check_val_every_n_epoch": 2**31,
    "max_epochs": -1,
    "max_steps": -1,
    "max_time": None,
    "num_sanity_val_steps": 0,
    "val_check_interval": None,
}
# A step is repeated without what writes, and with loggers for a module that calls its own.
REPLAY: Settings = {
    "detect_anomaly": False,
    "logger": DummyLogger(),
    "max_time": None,
    "profiler": None,
}


def as_list(value: Any) -> list[Any]:
    """What a setting holds: nothing, one thing or a list of them."""
    return value if isinstance(value, list) else [] if value is None else [value]


def start(settings: Settings) -> Trainer:
    """A trainer that saves whole files; raises UserError if its settings make no sense."""
    for key, value in settings.items():
        check_range(key, value, f"--trainer.{key}: ")
    if not settings["barebones"]:
        settings["plugins"] = [*as_list(settings["plugins"]), AtomicCheckpointIO()]
    try:
        trainer = Trainer(**settings)
    except (ValueError, TypeError, ImportError, RuntimeError) as e:  # no such device, ...
        raise UserError(f"trainer: {first_line(e)}") from e
    strategy: Any = trainer.strategy
    watch(strategy)
    averages = callbacks_of(trainer, WHOLE_WEIGHTS)
    if averages and isinstance(strategy, ModelParallelStrategy):
        raise UserError(
            f"{type(averages[0]).__name__} averages whole weights, and "
            f"--trainer.strategy={settings['strategy']} keeps them in pieces: leave one of them out"
        )
    if strategy.root_device.type == "cpu":
        if settings["sync_batchnorm"] and trainer.world_size > 1:
            raise UserError(
                "--trainer.sync_batchnorm=true: torch has it for GPUs only; leave it out, and each "
                "process normalises by its own batch"
            )
        keep_freed_memory()
        if not torch.cuda.is_available():  # each step of an optimizer asks again, for 50 µs
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return trainer


def preview_trainer(command: str, settings: Settings) -> Trainer:
    """A trainer that leaves nothing behind.

    A schedule depends on how many devices there are, and not on whether they are here: where the
    run itself could not start, as many processes on a CPU stand in for them.
    """
    settings = settings | NO_TRACES
    if command == "replay":
        writers = Checkpoint | ProgressBar | ModelSummary
        callbacks = [c for c in as_list(settings["callbacks"]) if not isinstance(c, writers)]
        return start(settings | REPLAY | {"callbacks": callbacks})
    if command in ("lr_find", "show-batch"):
        if settings["fast_dev_run"] or settings["barebones"]:
            raise UserError(f"{command}: leave out --trainer.fast_dev_run and --trainer.barebones")
        return start(settings | SEARCH)
    try:
        return start(settings)
    except (UserError, MisconfigurationException):
        devices = settings["devices"]
        if isinstance(devices, str) and "," in devices:
            devices = devices.split(",")
        count = len(devices) if isinstance(devices, list) else devices
        if count in ("auto", -1, "-1"):
            raise
        elsewhere = {"accelerator": "cpu", "devices": count, "strategy": "auto"}
        return start(settings | elsewhere | {"plugins": None, "sync_batchnorm": False})
