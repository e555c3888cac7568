"""The command line: what `python train.py ...` does, from the configuration to the summary."""

import logging
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from tempfile import TemporaryFile
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

import anneal.callbacks
import anneal.data
import anneal.modules
import anneal.sharding  # registers --trainer.strategy=fsdp2
from anneal import runs
from anneal.callbacks.checkpoint import Checkpoint
from anneal.callbacks.epoch_seed import EpochSeed
from anneal.callbacks.finite import StopOnNonFinite
from anneal.callbacks.lr_monitor import LearningRateMonitor
from anneal.callbacks.progress_bar import ProgressBar
from anneal.callbacks.requeue import Requeue
from anneal.callbacks.run_folder import RunFolder
from anneal.callbacks.samples import SamplesSeen
from anneal.callbacks.test_pictures import TestPictures
from anneal.complete import COMMANDS, complete, typed_options
from anneal.data.decode import decode
from anneal.errors import UserError
from anneal.loggers.csv_logger import CSVLogger
from anneal.loggers.wandb_logger import WandbLogger
from anneal.parser import HOW_TO, Parser
from anneal.predictions import draw_sheet, most_likely, write_predictions
from anneal.resume import check_optimizer, differences, misfit, nothing_left
from anneal.summary import summary

# Groups of their own on the command line, so that --trainer.callbacks can't drop them.
NAMED = {
    "checkpoint": Checkpoint,
    "lr_monitor": LearningRateMonitor,
    "progress_bar": ProgressBar,
}

# A class is known by its short name once its file is imported.
for package in (anneal.callbacks, anneal.data, anneal.modules):
    for module in iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)


def main(args: list[str] | None = None) -> "AnnealCLI":
    """Runs one command.

    Args:
        args: Words of the command line; None: those the program was started with.

    Raises:
        SystemExit: With the status of a `UserError`, after its message.
    """
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning's own, each run
    # A resumed run is meant to go on in its folder.
    warnings.filterwarnings("ignore", ".*exists and is not empty.*", UserWarning)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "💡" not in record.getMessage()  # advertisements
    )
    try:
        return AnnealCLI(complete(sys.argv[1:] if args is None else args))
    except (UserError, MisconfigurationException) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.status if isinstance(e, UserError) else 2)


class AnnealCLI(LightningCLI):
    """LightningCLI with named callbacks, a folder for each run, and checkpoints by name."""

    def __init__(self, args: list[str]) -> None:
        self.typed_args = args
        self.checkpoint: dict[str, Any] = {}
        self.run_loggers: list[Any] = []
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # RunFolder does it, also into checkpoints and W&B
            trainer_defaults={"default_root_dir": "runs"},
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={
                "prog": "python train.py",
                "description": "Train, test and use networks with any optimizer and any schedule.",
                "epilog": HOW_TO,
                **{name: {"description": about} for name, about in COMMANDS.items()},
            },
            auto_configure_optimizers=False,  # it stands in the module, where a reader looks
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run", type=str | None, help="Name of the run that --ckpt_path=best|last is about"
        )
        parser.add_argument(
            "--run_name", type=str | None, help="Name of the new run's folder instead of a new one"
        )
        for name, callback in NAMED.items():
            parser.add_lightning_class_args(callback, name)
        parser.add_class_arguments(WandbLogger, "wandb", skip={"run_dir"}, instantiate=False)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(args)  # type: ignore[arg-type]
        config = self.config[self.config.subcommand]
        if not 0 <= int(config.seed_everything) < 2**32:
            raise UserError(f"--seed_everything={config.seed_everything}: must be 0 to 4294967295")
        if config.run and not config.ckpt_path:
            raise UserError("--run says whose checkpoint --ckpt_path=best or last means: give both")

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would lay a checkpoint's hyper-parameters over what is typed."""

    # ---- between configuration and run

    def before_instantiate_classes(self) -> None:
        """Finds the checkpoint and the run's folder."""
        config = self.config[self.subcommand]
        root = Path(config.trainer.default_root_dir)
        path = None
        if config.ckpt_path:
            path = runs.find_checkpoint(root, config.ckpt_path, config.run)
            config.ckpt_path, config.weights_only = str(path), True
            self.checkpoint = runs.read_checkpoint(path)
        elif self.subcommand != "fit":
            raise UserError(
                f"{self.subcommand} needs trained weights: --ckpt_path=best, last or a file"
                " (and --run=NAME for another run than the newest)"
            )
        self.folder = self._find_folder(root, path)
        if not config.trainer.fast_dev_run:
            try:
                root.mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=root).close()
            except OSError as e:
                raise UserError(f"can't write the run's folder into {root}: {e.strerror}") from e

    def _find_folder(self, root: Path, checkpoint: Path | None) -> Path:
        """A run goes on from its `last.ckpt` in its own folder; all else starts a new one."""
        config = self.config[self.subcommand]
        own = runs.run_of(checkpoint) if checkpoint else None
        self.goes_on = bool(own and checkpoint.name == runs.LAST and not config.run_name)  # type: ignore[union-attr]
        if own and (self.goes_on or self.subcommand != "fit"):
            return own
        if config.run_name:
            if Path(config.run_name).name != config.run_name:
                raise UserError(f"--run_name={config.run_name}: a name, not a path")
            folder = root / config.run_name
            if folder.exists():
                raise UserError(f"--run_name={config.run_name}: {folder} is there already")
            return folder
        files = typed_options(self.typed_args).config or []
        named = [p for p in files if p.suffix in (".yaml", ".yml", ".json")]
        source = named[-1] if named else own / "config.yaml" if own else Path("run")
        return root / runs.new_name(runs.recipe_of(source))

    def config_to_save(self) -> str:
        """The resolved configuration, without what is about this one command."""
        assert self.subcommand
        config = self.config[self.subcommand].clone()
        about_command = self._subcommand_method_arguments[self.subcommand]
        for key in ("config", "run", "run_name", *about_command):
            config.pop(key, None)
        return self._parser(self.subcommand).dump(config, skip_none=False, skip_validation=True)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as e:
            # A class's own UserError comes wrapped in what jsonargparse has to say about it.
            cause: BaseException | None = e
            while cause and not isinstance(cause, UserError):
                cause = cause.__cause__ or cause.__context__
            raise cause or e from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = {**self._get(self.config_init, "trainer"), **kwargs}
        for key, least in (
            ("accumulate_grad_batches", 1),
            ("gradient_clip_val", 0),
            ("log_every_n_steps", 0),
        ):
            if settings[key] is not None and settings[key] < least:  # Lightning takes these
                raise UserError(f"--trainer.{key}={settings[key]}: must be at least {least}")
        settings["default_root_dir"] = self.folder
        callbacks: list[Callback] = []
        if not settings["barebones"]:
            settings["logger"] = self._loggers(settings["logger"])
            callbacks = self._callbacks(settings)
        try:
            trainer = self._instantiate_trainer(settings, callbacks)
        except (ValueError, TypeError, ImportError, RuntimeError) as e:  # no such device, ...
            raise UserError(f"trainer: {str(e).strip().splitlines()[0]}") from e
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if settings["sync_batchnorm"] and on_cpu and trainer.world_size > 1:
            raise UserError(
                "--trainer.sync_batchnorm=true: torch has it for GPUs only; leave it out, and each "
                "process normalises by its own batch"
            )
        return trainer

    def _callbacks(self, settings: dict[str, Any]) -> list[Callback]:
        """The named ones, but for those that the trainer's settings switch off, and the others."""
        named = {key: self._get(self.config_init, key) for key in NAMED}
        if settings["enable_checkpointing"] is False:
            del named["checkpoint"]
        elif named["checkpoint"].dirpath is None:
            named["checkpoint"].dirpath = str(self.folder / "checkpoints")
        if settings["enable_progress_bar"] is False:
            del named["progress_bar"]
        step = self.checkpoint["global_step"] if self.goes_on else None
        self.samples = SamplesSeen()
        others: list[Callback] = [
            RunFolder(self.folder, self.config_to_save(), step),
            self.samples,
            StopOnNonFinite(),
            EpochSeed(),
            TestPictures(self.folder),
        ]
        if "checkpoint" in named:
            others.append(Requeue(Path(named["checkpoint"].dirpath)))
        return [*named.values(), *others]

    def _loggers(self, asked: Any) -> Any:
        """The CSV file and W&B; a logger given instead takes W&B's place."""
        if asked is False or self.subcommand in ("validate", "predict"):
            return asked or False
        self.run_loggers = [CSVLogger(self.folder)]
        if asked in (None, True):
            wandb = self._get(self.config_init, "wandb")
            self.run_loggers.append(WandbLogger(self.folder, **wandb.as_dict()))
        else:
            self.run_loggers += asked if isinstance(asked, list) else [asked]
        return list(self.run_loggers)

    # ---- the commands

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the command, and ends the W&B run however that went."""
        status = 1
        try:
            super()._run_subcommand(subcommand)
            status = 0
        except SystemExit as e:  # handed back to SLURM's queue
            status = int(e.code or 0)
            raise
        except (RuntimeError, ValueError) as e:
            if "Error(s) in loading state_dict" in str(e):
                path = self.config[subcommand].ckpt_path
                raise UserError(misfit(path, str(e), self._differences())) from e
            if str(e).strip().startswith(("Early stopping conditioned on", "`val_check_interval`")):
                raise UserError(f"trainer: {str(e).strip().splitlines()[0]}") from e
            raise
        finally:
            for logger in self.run_loggers:
                if isinstance(logger, WandbLogger):
                    logger.finish(status)

    def fit(self, **kwargs: Any) -> None:
        """Trains, tests the weights of the last epoch if there is test data, and sums up."""
        if self.goes_on and (done := nothing_left(self.checkpoint, self.trainer)):
            print(f"{self.folder} {done}")
            return
        check_optimizer(self._differences())
        started = time.monotonic()
        self.trainer.fit(**kwargs)
        seconds = time.monotonic() - started
        if self.trainer.global_step == self.checkpoint.get("global_step", 0):
            raise UserError(
                "nothing was trained: see trainer.limit_train_batches, max_epochs="
                f"{self.trainer.max_epochs} and max_steps={self.trainer.max_steps}",
                status=1,
            )
        if self.trainer.fast_dev_run or self.trainer.barebones:  # type: ignore[attr-defined]
            return
        metrics = dict(self.trainer.callback_metrics)
        if (
            is_overridden("test_step", self.model)
            and is_overridden("test_dataloader", self.datamodule, LightningDataModule)
            and getattr(self.datamodule, "has_test", True)
        ):
            last_epoch = self.trainer.fit_loop.epoch_progress.current.ready - 1
            self._stand_at(self.trainer.global_step, last_epoch)
            self.trainer.test(self.model, self.datamodule, verbose=False)
            metrics |= self.trainer.callback_metrics
        if self.trainer.is_global_zero:
            looks = [g.look for g in self.run_loggers if isinstance(g, WandbLogger)]
            speed = self.samples.samples_per_second
            print(summary(self.trainer, metrics, seconds, speed, self.folder, looks))

    def test(self, **kwargs: Any) -> None:
        """Tests a checkpoint."""
        self._stand_at(self.checkpoint["global_step"], self.checkpoint["epoch"])
        self.trainer.test(**kwargs)

    def _stand_at(self, global_step: int, epoch: int) -> None:
        """Has a test logged at the last step and epoch that went into the weights."""
        loop = self.trainer.fit_loop
        loop.epoch_loop._batches_that_stepped = max(0, global_step - 1)
        loop.epoch_progress.current.completed = epoch

    def predict(self, **kwargs: Any) -> None:
        """Writes `predictions.csv` with the most likely classes of every sample.

        Of pictures in files, also `predictions.png` with the first of them.
        """
        if self.trainer.world_size > 1:
            raise UserError("predict runs in one process: --trainer.devices=1")
        if not hasattr(self.model, "class_names"):
            raise UserError(
                f"predict writes the probabilities of classes, and {type(self.model).__name__} is "
                "no Classifier: call its predict_step from Python"
            )
        batches = self.trainer.predict(**kwargs | {"return_predictions": True})
        tops = most_likely(batches, self.model.top_k, self.model.class_names)  # type: ignore[arg-type]
        pictures = getattr(self.datamodule, "predicted", None)
        left_out = self.datamodule.left_out if pictures else {}
        if not tops:
            raise UserError(f"no picture can be read: {next(iter(left_out.items()), '')}")
        path = runs.unused(self.folder / "predictions.csv")
        if pictures is None:
            write_predictions(path, tops)
        else:
            numbers = [i for i in range(len(pictures)) if pictures.path(i) not in left_out]
            write_predictions(path, tops, [pictures.path(i) for i in numbers])
            images = (decode(pictures.read(i)) for i in numbers)
            sheet = runs.unused(path.with_suffix(".png"))
            draw_sheet(images, tops, len(tops)).savefig(sheet, dpi=120)
            print(sheet)
        print(path)
        if left_out:
            print(f"left out, as they can't be read: {len(left_out)}", file=sys.stderr)
            for broken, reason in left_out.items():
                print(f"  {broken}: {reason}", file=sys.stderr)

    def _differences(self) -> list[tuple[str, Any, Any]]:
        return differences(self.checkpoint.get("config"), self.config_to_save())
