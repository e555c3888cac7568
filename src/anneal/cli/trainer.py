"""Lightning's Trainer, with three commands more: schedule, lr_find and export."""

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from anneal.commands.export import export
from anneal.commands.lr_find import Search, search
from anneal.commands.schedule import Preview, preview
from anneal.errors import UserError
from anneal.launch import Launcher
from anneal.runs.checkpoint_io import AtomicCheckpointIO
from anneal.runs.exported import ENDINGS
from anneal.runs.folder import next_free_path
from anneal.system import keep_freed_memory

PREVIEW_COMMANDS = ("schedule", "lr_find")
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


class Trainer(pl.Trainer):
    """Customize every aspect of training via flags."""

    def schedule(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        compare: str | None = None,
        steps_per_epoch: int | None = None,
        samples: int | None = None,
        metric_from: str | None = None,
        output: Path | None = None,
    ) -> Preview:
        """The learning rate of every step of a run, without its data and without training.

        Args:
            compare: Another configuration for the same picture: files and overrides in quotes, such
                as --compare='configs/mnist_step.yaml --model.optimizer.lr=0.2', which are laid over
                what else is typed. Without a file, the overrides alone. Can be repeated.
            steps_per_epoch: Optimizer steps in an epoch. None: as many as the data makes.
            samples: Training samples, where the data is not at hand: ImageNet has 1281167.
            metric_from: What a plateau is to look at: a run's name or folder, or a CSV file with a
                column for the metric. Without --config, the run's configuration is the one to
                start from.
            output: The picture's file. None: schedule.png in the folder of runs.
        """
        return preview(self, model, datamodule, steps_per_epoch, samples, metric_from)

    def lr_find(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        min_lr: float = 1e-6,
        max_lr: float = 10.0,
        num_training: int = 100,
        mode: Literal["exponential", "linear"] = "exponential",
        early_stop_threshold: float | None = 4.0,
        output: Path | None = None,
    ) -> Search:
        """The loss at rising learning rates, and the rate at which it falls fastest.

        Args:
            min_lr: Rate of the first step.
            max_lr: Rate of the last.
            num_training: Steps between them.
            mode: Whether each step multiplies the rate or adds to it.
            early_stop_threshold: Ends the search when the loss is so many times its lowest. None:
                goes on to the end.
            output: The picture's file. None: lr_find.png in the folder of runs.
        """
        return search(
            self, model, datamodule, min_lr, max_lr, num_training, mode, early_stop_threshold
        )

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str | None = None,
        format: Literal["onnx", "torch_export"] = "onnx",
        output: Path | None = None,
    ) -> None:
        """One file that makes probabilities of plain pixels, the class names in it.

        It takes uint8 pixels, (batch, C, H, W) from 0 to 255, with any number of pictures in a
        batch. H and W are those that the data module validates with: of photos, the square that is
        cut from the resized picture. All that comes after is in the file. It computes in float32.

        Args:
            ckpt_path: `best`, `last` or a checkpoint's file.
            format: `onnx`, for ONNX Runtime and others, or `torch_export`, for torch.export.load.
            output: The file. None: model.onnx or model.pt2 in the run's folder.
        """
        assert ckpt_path is not None
        folder = Path(self.default_root_dir)
        path = output or next_free_path(folder / f"model{ENDINGS[format]}")
        print(export(model, datamodule, Path(ckpt_path), format, path))


def as_list(value: Any) -> list[Any]:
    """What a setting holds: nothing, one thing or a list of them."""
    return value if isinstance(value, list) else [] if value is None else [value]


def read_limits(parser: LightningArgumentParser) -> None:
    """Has 1 read as one batch: Lightning tries float first, and 1.0 is the whole split."""
    for action in parser._actions:
        if action.dest.startswith("trainer.limit_"):
            action._typehint = int | float | None  # type: ignore[attr-defined]


def _check(settings: Settings) -> None:
    """Raises UserError if a setting makes no sense and Lightning takes it."""
    for key, least in (
        ("accumulate_grad_batches", 1),
        ("gradient_clip_val", 0),
        ("log_every_n_steps", 0),
    ):
        if settings[key] is not None and settings[key] < least:
            raise UserError(f"--trainer.{key}={settings[key]}: must be at least {least}")


def start(settings: Settings) -> Trainer:
    """A trainer that saves whole files; raises UserError if its settings make no sense."""
    _check(settings)
    if not settings["barebones"]:
        settings["plugins"] = [*as_list(settings["plugins"]), AtomicCheckpointIO()]
    try:
        trainer = Trainer(**settings)
    except (ValueError, TypeError, ImportError, RuntimeError) as e:  # no such device, ...
        raise UserError(f"trainer: {str(e).strip().splitlines()[0]}") from e
    strategy: Any = trainer.strategy
    if type(launcher := strategy.launcher) is _SubprocessScriptLauncher:
        strategy._launcher = Launcher(
            launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
        )
    if strategy.root_device.type == "cpu":
        if settings["sync_batchnorm"] and trainer.world_size > 1:
            raise UserError(
                "--trainer.sync_batchnorm=true: torch has it for GPUs only; leave it out, and each "
                "process normalises by its own batch"
            )
        keep_freed_memory()
    return trainer


def preview_trainer(command: str, settings: Settings) -> Trainer:
    """A trainer that leaves nothing behind.

    A schedule depends on how many devices there are, and not on whether they are here: where the
    run itself could not start, as many processes on a CPU stand in for them.
    """
    settings = settings | NO_TRACES
    if command == "lr_find":
        if settings["fast_dev_run"] or settings["barebones"]:
            raise UserError("lr_find: leave out --trainer.fast_dev_run and --trainer.barebones")
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
