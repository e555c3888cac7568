"""The callbacks and loggers that go with a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from anneal.callbacks.accumulation import RescaleLastAccumulation
from anneal.callbacks.checkpoint import Checkpoint
from anneal.callbacks.epoch_seed import SeedEveryEpoch
from anneal.callbacks.health import NonFiniteGuard
from anneal.callbacks.interrupt import GracefulShutdown
from anneal.callbacks.lr_monitor import LearningRateMonitor
from anneal.callbacks.progress_bar import ProgressBar
from anneal.callbacks.run_folder import RunDirectory
from anneal.callbacks.test_report import TestReport
from anneal.loggers.csv import CSVLogger
from anneal.loggers.wandb_logger import WandbLogger
from anneal.progress import SampleCounter

# Groups of their own on the command line, so that --trainer.callbacks can't drop them.
DEFAULT_CALLBACKS = {
    "checkpoint": Checkpoint,
    "health": NonFiniteGuard,
    "lr_monitor": LearningRateMonitor,
    "progress_bar": ProgressBar,
}


def callbacks(
    named: Mapping[str, Any],
    settings: Mapping[str, Any],
    folder: Path,
    config: str,
    resumed_from: int | None,
) -> list[Callback]:
    """The named ones, but for those that the trainer's settings switch off, and the others.

    Args:
        named: By the keys of `DEFAULT_CALLBACKS`.
        settings: The trainer's.
        folder: The run's.
        config: The resolved configuration as YAML.
        resumed_from: Optimizer steps of the checkpoint that the run goes on from; None: a new run.
    """
    named = dict(named)
    if settings["enable_checkpointing"] is False:
        del named["checkpoint"]
    elif named["checkpoint"].dirpath is None:
        named["checkpoint"].dirpath = str(folder / "checkpoints")
    if settings["enable_progress_bar"] is False:
        del named["progress_bar"]
    others: list[Callback] = [
        RunDirectory(folder, config, resumed_from),
        SampleCounter(),
        RescaleLastAccumulation(),
        SeedEveryEpoch(),
        TestReport(folder),
    ]
    if "checkpoint" in named:
        others.append(GracefulShutdown(Path(named["checkpoint"].dirpath)))
    return [*named.values(), *others]


def loggers(asked: Any, folder: Path, wandb: Mapping[str, Any]) -> list[Any]:
    """The CSV file and W&B; a logger given instead takes W&B's place.

    Args:
        asked: The trainer's `logger`.
        folder: The run's.
        wandb: Arguments of `WandbLogger`.
    """
    own = [CSVLogger(folder)]
    if asked in (None, True):
        return [*own, WandbLogger(folder, **wandb)]
    return [*own, *(asked if isinstance(asked, list) else [asked])]
