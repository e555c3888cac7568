"""One command's run: what `train.py` works with."""

import os
import time
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from anneal.callbacks.accumulation import RescaleLastAccumulation
from anneal.callbacks.checkpoint import Checkpoint
from anneal.callbacks.epoch_metrics import EpochMetrics
from anneal.callbacks.failure_recorder import FailureRecorder
from anneal.callbacks.graceful_shutdown import GracefulShutdown
from anneal.callbacks.run_directory import RunDirectory
from anneal.callbacks.seed_every_epoch import SeedEveryEpoch
from anneal.callbacks.test_report import TestReport
from anneal.cli.chosen import REPLACED, build_object, put_in_place
from anneal.cli.failures import nothing_trained
from anneal.cli.parser import DEFAULT_CALLBACKS
from anneal.cli.summary import summary
from anneal.cli.trainer import PREVIEW_COMMANDS, as_list, preview_trainer, start
from anneal.errors import UserError
from anneal.lightning_internals import INSTANTIATOR, set_logged_step
from anneal.loggers.csv import CSVLogger
from anneal.loggers.wandb import WandbLogger
from anneal.progress import Clock
from anneal.runs.ended import is_tested, stopped_early
from anneal.runs.resume import Differences, differences, nothing_left


class Run:
    """A run: its configuration, its folder, and the objects that the configuration names.

    Args:
        command: What is done.
        config: The whole configuration.
        parser: Builds the objects that it names.
        text: What `config.yaml` holds of it.
        recipe: Name of the recipe; "": of none.

    Attributes:
        folder: The run's folder.
        ckpt_path: The checkpoint to start from; None: none.
        checkpoint: What is in it.
        resumes: Whether the run of that folder resumes.
        own: The options of the command itself.
        arguments: Those of the model, as plain values.
        project: The package of the models, after which W&B's project is called.
        preview: What `schedule` has found.
    """

    def __init__(
        self, command: str, config: Namespace, parser: ArgumentParser, text: str, recipe: str = ""
    ) -> None:
        self.command = command
        self.config = config
        self.text = text
        self.recipe = recipe
        self.folder = Path(config.trainer.default_root_dir)
        self.ckpt_path: Path | None = None
        self.checkpoint: dict[str, Any] = {}
        self.resumes = False
        self.own: dict[str, Any] = {}
        self.arguments: dict[str, Any] = {}
        self.project = "project"
        self.preview: Any = None
        self.loggers: list[Any] = []
        self._parser = parser
        self._metrics: dict[str, Any] = {}
        self._clock = Clock()
        self._started = self._seconds = 0.0
        self._done = ""  # that nothing is left to train

    @cached_property
    def built(self) -> Namespace:
        """The objects that the configuration names, built."""
        refusals: list[UserError] = []  # jsonargparse makes other errors of them
        build = partial(build_object, self.folder, vars(self.config.wandb), refusals)
        try:
            built: Namespace = self._parser.instantiate(
                self.config, instantiators=[(build, object, True)]
            )
            return built
        except ValueError as e:
            raise (refusals[0] if refusals else e) from None

    @property
    def model(self) -> LightningModule:
        """The module that `model` names."""
        model: LightningModule = self.built.model
        if model.hparams and not INSTANTIATOR.items() <= model.hparams.items():
            # Also those that are no plain values, so that `load_from_checkpoint` can build them.
            more = {k: v for k, v in self.arguments.items() if k not in model.hparams}
            model.hparams.update({**more, **INSTANTIATOR})
        return model

    @property
    def data(self) -> LightningDataModule:
        """The data module that `data` names."""
        data: LightningDataModule = self.built.data
        return data

    @cached_property
    def trainer(self) -> Trainer:
        """Lightning's Trainer, with the run's callbacks, loggers and folder."""
        settings = dict(vars(self.built.trainer))
        if self.command == "replay":
            self._scratch = TemporaryDirectory()
            settings["default_root_dir"] = self._scratch.name
            settings["callbacks"] = [*as_list(settings["callbacks"]), self.built.health]
        if self.command in PREVIEW_COMMANDS:
            return preview_trainer(self.command, settings)
        settings["default_root_dir"] = self.folder
        if not settings["barebones"]:
            settings["logger"] = self._loggers(settings["logger"])
            settings["callbacks"] = [self._clock, *self._callbacks(settings)]
        self._started = time.monotonic()
        return start(settings)

    def is_over(self) -> bool:
        """Return whether the run that resumes is trained and tested; if it is trained, say so."""
        if not (self.resumes and self.checkpoint):  # none in a run that ended before its first
            return False
        checkpoint, trainer = self.checkpoint, self.trainer
        early = stopped_early(checkpoint, trainer, self.text)
        self._done = nothing_left(checkpoint, trainer) or early
        if not self._done:
            return False
        print(f"{self.folder} {self._done}")
        return is_tested(self.folder, checkpoint["global_step"]) or not self._has_test()

    @property
    def objects(self) -> list[Any]:
        """What there is by now of the user's choice."""
        objects: list[Any] = [self.built.model, self.built.data] if "built" in vars(self) else []
        if "trainer" in vars(self):
            objects += [*self.trainer.optimizers, *self.trainer.loggers]
            objects += self.trainer.callbacks  # type: ignore[attr-defined]
            objects += [self.trainer.strategy] * (self.config.trainer.strategy != "auto")
        return objects

    def test(self) -> None:
        """Test the weights of the last step, if there is test data, and log that at this step.

        Raises:
            UserError: No step was trained.
        """
        trainer = self.trainer
        self._seconds = time.monotonic() - self._started
        trained = trainer.global_step != self.checkpoint.get("global_step", 0)
        if not (trained or self._done or self._clock.has_validated):
            raise nothing_trained(trainer)
        self._metrics = dict(trainer.callback_metrics)
        if self._has_test():
            last_epoch = trainer.fit_loop.epoch_progress.current.ready - 1
            set_logged_step(trainer, max(0, trainer.global_step - 1), last_epoch)
            trainer.test(self.model, self.data, verbose=False)

    def _has_test(self) -> bool:
        trainer = self.trainer
        return (
            not trainer.fast_dev_run  # type: ignore[attr-defined]
            and not trainer.barebones
            and is_overridden("test_step", self.model)
            and isinstance(self.data, LightningDataModule)
            and is_overridden("test_dataloader", self.data, LightningDataModule)
            and getattr(self.data, "has_test", True)
        )

    def summarize(self) -> None:
        """Print the best and last metrics, time and speed, and where to look."""
        trainer = self.trainer
        quick = trainer.fast_dev_run or trainer.barebones  # type: ignore[attr-defined]
        if not quick and trainer.is_global_zero:
            looks = [g.look for g in self.loggers if isinstance(g, WandbLogger)]
            speed = self._clock.samples_per_second
            metrics = {**self._metrics, **trainer.callback_metrics}
            print(summary(trainer, metrics, self._seconds, speed, self.folder, looks))

    def differences(self) -> Differences:
        """Return the keys of the model that differ from those in the checkpoint."""
        return differences(self.checkpoint.get("config"), self.text)

    def finish(self, status: int) -> None:
        """End the recording of the run with an exit status."""
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                logger.finish(status)

    def _callbacks(self, settings: dict[str, Any]) -> list[Any]:
        """Return the user's and the default ones that these, or other settings, don't replace."""
        named = {name: self.built[name] for name in DEFAULT_CALLBACKS}
        chosen = as_list(settings["callbacks"])
        for name, kind in REPLACED.items():
            if any(isinstance(callback, kind) for callback in chosen):
                del named[name]
        if settings["enable_checkpointing"] is False:
            named.pop("checkpoint", None)
        if settings["enable_progress_bar"] is False:
            named.pop("progress_bar", None)
        put_in_place([*named.values(), *chosen], self.folder / "checkpoints")
        others: list[Any] = [
            RunDirectory(self.folder, self.text, self.checkpoint if self.resumes else None),
            RescaleLastAccumulation(),
            SeedEveryEpoch(),
            EpochMetrics(),
            TestReport(self.folder),
        ]
        # Of several checkpoints Lightning takes the first for the run's.
        first = [c for c in [*named.values(), *chosen] if isinstance(c, Checkpoint)]
        checkpoints = [Path(str(c.dirpath)) for c in first[:1]]
        others += map(GracefulShutdown, checkpoints)
        last = [*checkpoints, self.folder / "checkpoints"][0]
        others.append(FailureRecorder(self.folder, last, self.text))
        every = [*first, *chosen, *named.values(), *others]
        return list(dict.fromkeys(every))

    def _loggers(self, asked: Any) -> Any:
        """Return the CSV file and W&B; a logger given instead takes W&B's place."""
        own = [logger for logger in as_list(asked) if not isinstance(logger, CSVLogger | bool)]
        if asked is False or self.command in ("validate", "predict", "export"):
            # Lightning's own default is one more CSV.
            return [logger for logger in own if not isinstance(logger, WandbLogger)] or False
        if self.project != "project":
            os.environ.setdefault("WANDB_PROJECT", self.project)  # as `make rename` called it
        if asked in (None, True):
            own = [WandbLogger(self.folder, **vars(self.config.wandb))]
        self.loggers = [CSVLogger(self.folder), *own]
        return list(self.loggers)
