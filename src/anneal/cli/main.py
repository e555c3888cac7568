"""The command line: what `python train.py ...` does, from the configuration to the summary."""

import logging
import sys
import time
import warnings
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden

from anneal import launch as processes
from anneal.cli import attached
from anneal.cli.complete import compared, complete, recipe
from anneal.cli.entry import COMMANDS, PROG, keep_options
from anneal.cli.failures import describe_failure, nothing_trained
from anneal.cli.parser import Parser
from anneal.cli.summary import summary
from anneal.cli.trainer import (
    PREVIEW_COMMANDS,
    Trainer,
    as_list,
    preview_trainer,
    read_limits,
    start,
)
from anneal.commands.lr_find import report
from anneal.commands.predict import check_predicts, save_predictions
from anneal.commands.schedule_plots import show
from anneal.errors import UserError
from anneal.loggers.wandb_logger import WandbLogger
from anneal.progress import SampleCounter
from anneal.runs import folder as runs
from anneal.runs.exported import ExportedClassifier, is_exported, read
from anneal.runs.resume import check_optimizer, differences, nothing_left, state_dict_mismatch

ENGINE = ("anneal.callbacks", "anneal.vision")


def import_packages(names: Iterable[str]) -> None:
    """Imports all modules of these packages: a class is known by its short name from then on."""
    for name in (*ENGINE, *names):
        package = import_module(name)
        for module in iter_modules(package.__path__, f"{name}."):
            import_module(module.name)


def main(packages: Iterable[str], args: list[str] | None = None) -> "CLI":
    """Runs one command.

    Args:
        packages: Where short names are looked up, beside the engine's own.
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
    import_packages(packages)
    try:
        with processes.together(describe_failure):
            return CLI(complete(sys.argv[1:] if args is None else args))
    except (KeyboardInterrupt, SystemExit) as e:
        # Lightning makes exit status 1 of a Ctrl-C before the training.
        if isinstance(e, SystemExit) and not isinstance(e.__context__, KeyboardInterrupt):
            raise
        sys.exit(130)


class CLI(LightningCLI):
    """LightningCLI with named callbacks, a folder for each run, and checkpoints by name."""

    trainer: Trainer

    def __init__(self, args: list[str], shows: bool = True) -> None:
        """Runs a command line; a preview of a schedule is shown, or only kept as `preview`."""
        self.typed_args = args
        self.shows = shows
        self.checkpoint: dict[str, Any] = {}
        self.run_loggers: list[Any] = []
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=Trainer,
            save_config_callback=None,  # RunDirectory does it, also into checkpoints and W&B
            trainer_defaults={"default_root_dir": "runs"},
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={
                "prog": PROG,
                **{name: {"description": about} for name, about in COMMANDS.items()},
            },
            auto_configure_optimizers=False,  # it stands in the module, where a reader looks
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        own = {command: {"model", "datamodule"} for command in ("export", *PREVIEW_COMMANDS)}
        return LightningCLI.subcommands() | own

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        """Only the command that is typed gets its options, which take long to make."""
        if subcommand != self.typed_args[0]:
            return self.init_parser(**kwargs)
        parser: Any = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        keep_options(subcommand, parser.options())
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str | None, help="The run that best or last is of")
        parser.add_argument(
            "--resume",
            type=Literal["auto"] | None,
            help="auto: go on from the last.ckpt of --run_name if it is there, else start that run",
        )
        parser.add_argument("--run_name", type=str | None, help="The folder of the run, by name")
        for name, callback in attached.DEFAULT_CALLBACKS.items():
            parser.add_lightning_class_args(callback, name)
        parser.add_class_arguments(WandbLogger, "wandb", skip={"run_dir"}, instantiate=False)
        read_limits(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(self.typed_args)
        config = self.config[self.config.subcommand]
        if not 0 <= int(config.seed_everything) < 2**32:
            raise UserError(f"--seed_everything={config.seed_everything}: must be 0 to 4294967295")
        if config.resume and not config.run_name:
            raise UserError("--resume=auto needs the --run_name to start or to go on with")
        if config.run and not config.get("ckpt_path"):
            raise UserError("--run says whose checkpoint --ckpt_path=best or last means: give both")

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would lay a checkpoint's hyper-parameters over what is typed."""

    # ---- between configuration and run

    def before_instantiate_classes(self) -> None:
        """Finds the checkpoint and the run's folder."""
        self.config_text = self._config_to_save()
        self.config_dump = yaml.safe_load(self.config_text)  # has LightningCLI write it no more
        config = self.config[self.subcommand]
        root = self.folder = Path(config.trainer.default_root_dir)
        if self.subcommand in PREVIEW_COMMANDS:
            return
        path = None
        if config.ckpt_path:
            path = runs.find_checkpoint(root, config.ckpt_path, config.run)
            config.ckpt_path = str(path)
            if "weights_only" in config:
                config.weights_only = True
            if not is_exported(path):
                self.checkpoint = runs.read_checkpoint(path)
                runs.check_lightning_checkpoint(self.checkpoint, path, self.subcommand == "fit")
            elif self.subcommand != "predict":
                raise UserError(f"{self.subcommand} needs a checkpoint; {path} is for predict")
        elif self.subcommand != "fit":
            raise UserError(
                f"{self.subcommand} needs trained weights: --ckpt_path=best, last or a file"
                " (and --run=NAME for another run than the newest)"
            )
        fits, resumes = self.subcommand == "fit", bool(config.resume)
        self.folder, self.goes_on = runs.choose_folder(
            root, path, config.run_name, recipe(self.typed_args), fits, resumes
        )
        if not config.trainer.fast_dev_run:
            runs.check_writable(root)

    def _config_to_save(self) -> str:
        """The resolved configuration, without what is about this one command."""
        assert self.subcommand
        config, parser = self.config[self.subcommand].clone(), self._parser(self.subcommand)
        about_command = self._subcommand_method_arguments[self.subcommand]
        for key in ("config", "run", "run_name", "resume", *about_command):
            config.pop(key, None)
        # The third argument, to write null too, has another name since jsonargparse 4.49.
        return str(parser.dump(config, "parser_mode", False, skip_validation=True))

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
        if self.subcommand in PREVIEW_COMMANDS:
            return preview_trainer(self.subcommand, settings)
        settings["default_root_dir"] = self.folder
        if not settings["barebones"]:
            settings["logger"] = self._loggers(settings["logger"])
            settings["callbacks"] = [*as_list(settings["callbacks"]), *self._callbacks(settings)]
        return start(settings)

    def _callbacks(self, settings: dict[str, Any]) -> list[Callback]:
        named = {key: self._get(self.config_init, key) for key in attached.DEFAULT_CALLBACKS}
        step = self.checkpoint.get("global_step", 0) if self.goes_on else None
        return attached.callbacks(named, settings, self.folder, self.config_text, step)

    def _loggers(self, asked: Any) -> Any:
        if asked is False or self.subcommand in ("validate", "predict", "export"):
            return False if asked in (None, True) else asked  # Lightning's own is one more CSV
        wandb = self._get(self.config_init, "wandb").as_dict()
        self.run_loggers = attached.loggers(asked, self.folder, wandb)
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
                raise UserError(state_dict_mismatch(path, str(e), self._differences())) from e
            if str(e).strip().startswith(("Early stopping conditioned on", "`val_check_interval`")):
                raise UserError(f"trainer: {str(e).strip().splitlines()[0]}") from e
            raise
        finally:
            for logger in self.run_loggers:
                if isinstance(logger, WandbLogger):
                    logger.finish(status)

    def fit(self, **kwargs: Any) -> None:
        """Trains, tests the weights of the last epoch if there is test data, and sums up."""
        resumes = self.checkpoint and self.goes_on
        if resumes and (done := nothing_left(self.checkpoint, self.trainer)):
            print(f"{self.folder} {done}")
            return
        check_optimizer(self._differences())
        started = time.monotonic()
        self.trainer.fit(**kwargs)
        seconds = time.monotonic() - started
        if self.trainer.global_step == self.checkpoint.get("global_step", 0):
            raise nothing_trained(self.trainer)
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
            speed = SampleCounter.of(self.trainer).samples_per_second  # type: ignore[union-attr]
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
        """Writes `predictions.csv`; of pictures in files, also `predictions.png` with the first."""
        check_predicts(self.model, self.trainer)
        if is_exported(path := Path(kwargs["ckpt_path"])):
            kwargs |= {"model": ExportedClassifier(read(path), self.model.top_k), "ckpt_path": None}
        batches = self.trainer.predict(**kwargs | {"return_predictions": True})
        save_predictions(self.folder, batches, kwargs["model"], self.datamodule)  # type: ignore[arg-type]

    def schedule(self, compare: str | None, output: Path | None, **kwargs: Any) -> None:
        """Shows the rate of every step, of this configuration and of those to compare."""
        self.preview = self.trainer.schedule(**kwargs)
        if self.shows:
            previews = {recipe(self.typed_args) or "run": self.preview}
            for name, args in compared(self.typed_args):
                unique = name if name not in previews else f"{name} ({len(previews) + 1})"
                previews[unique] = CLI(args, shows=False).preview
            show(previews, output or self.folder / "schedule.png")

    def lr_find(self, output: Path | None, **kwargs: Any) -> None:
        """Shows how the loss depends on the learning rate, and a rate to start from."""
        found = self.trainer.lr_find(**kwargs)
        if self.trainer.is_global_zero:
            report(found, output or self.folder / "lr_find.png")

    def _differences(self) -> list[tuple[str, Any, Any]]:
        return differences(self.checkpoint.get("config"), self.config_text)
