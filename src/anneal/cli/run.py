"""One command's run: what `train.py` works with."""

import os
import time
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import Console
from rich.markup import escape

from anneal.callbacks.checkpoint import Checkpoint
from anneal.callbacks.data_wait import DataWait
from anneal.callbacks.epoch_metrics import EpochMetrics
from anneal.callbacks.failure_recorder import FailureRecorder
from anneal.callbacks.graceful_shutdown import GracefulShutdown
from anneal.callbacks.run_directory import RunDirectory
from anneal.callbacks.seed_every_epoch import SeedEveryEpoch
from anneal.cli.chosen import REPLACED, build_object, put_in_place
from anneal.cli.parser import DEFAULT_CALLBACKS
from anneal.cli.trainer import PREVIEW_COMMANDS, as_list, preview_trainer, start
from anneal.errors import UserError
from anneal.lightning_internals import INSTANTIATOR, set_logged_step
from anneal.loggers.csv import CSVLogger
from anneal.loggers.viewers import Viewer
from anneal.loggers.wandb import WandbLogger
from anneal.progress import Clock
from anneal.runs import resume
from anneal.runs.folder import last_of
from anneal.tasks.kinds import TASKS
from anneal.tasks.test_report import TestReport

MOST_WAIT = 0.1  # of a training's time, for data, that is not worth a word
WAIT_ADVICE = "have a DataLoader's workers prepare the batches, or prepare the data once"


@dataclass(eq=False)
class Run:
    """A run: its configuration, its folder, and the objects that the configuration names."""

    command: str
    config: Namespace  # the whole of it
    parser: ArgumentParser  # builds the objects that it names
    text: str  # what `config.yaml` holds of it
    recipe: str = ""  # its name; "": of none
    own: dict[str, Any] = field(default_factory=dict)  # the options of the command itself
    arguments: dict[str, Any] = field(default_factory=dict)  # of the model, as plain values
    project: str = "project"  # the package of the models, after which W&B's project is called

    def __post_init__(self) -> None:
        self.folder = Path(self.config.trainer.default_root_dir)
        self.ckpt_path: Path | None = None  # the checkpoint to start from
        self.checkpoint: dict[str, Any] = {}  # what is in it
        self.resumed_from: dict[str, Any] | None = None  # its own, of a run that resumes
        self.preview: Any = None  # what `schedule` has found
        self.loggers: list[Any] = []
        self._metrics: dict[str, Any] = {}
        self._clock, self._data_wait = Clock(), DataWait()
        self._started = self._seconds = 0.0
        self._done = ""  # that nothing is left to train

    @cached_property
    def built(self) -> Namespace:
        """The objects that the configuration names, built."""
        if self.project != "project":
            os.environ.setdefault("WANDB_PROJECT", self.project)  # as `make rename` called it
        refusals: list[UserError] = []  # jsonargparse makes other errors of them
        build = partial(build_object, self.folder, vars(self.config.wandb), refusals)
        try:
            built: Namespace = self.parser.instantiate(
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
        if not (checkpoint := self.resumed_from):  # none in a run that ended before its first
            return False
        trainer = self.trainer
        early = resume.stopped_early(checkpoint, trainer, self.text)
        self._done = resume.nothing_left(checkpoint, trainer) or early
        if not self._done:
            return False
        print(f"{self.folder} {self._done}")
        return resume.is_tested(self.folder, checkpoint["global_step"]) or not self._has_test()

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
        """Test the last weights, if there is test data, and log that at their step."""
        trainer = self.trainer
        self._seconds = time.monotonic() - self._started
        trained = trainer.global_step != self.checkpoint.get("global_step", 0)
        if not (trained or self._done or self._clock.has_validated):
            n = trainer.num_training_batches  # infinite where the data was not asked for
            data = f"the training data gives {n} batches (is a rest dropped?), " if n == 0 else ""
            raise UserError(
                f"nothing was trained: {data}limit_train_batches={trainer.limit_train_batches}, "
                f"max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}",
                status=1,
            )
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

    def facts(self) -> dict[str, Any]:
        """Return what is known of the run by now, as plain values."""
        facts: dict[str, Any] = {"folder": str(self.folder)}
        if "trainer" not in vars(self):
            return facts
        trainer, checkpoint = self.trainer, self.trainer.checkpoint_callback
        facts["monitor"] = str(getattr(checkpoint, "monitor", None) or "val/acc")
        if isinstance(checkpoint, Checkpoint) and checkpoint.best_model_score is not None:
            facts["best"] = float(checkpoint.best_model_score)
            facts["best_checkpoint"] = checkpoint.best_model_path
        facts["last_checkpoint"] = str(last_of(self.folder) or "")
        metrics = {**self._metrics, **trainer.callback_metrics}
        facts["metrics"] = {name: float(value) for name, value in metrics.items()}
        if trainer.global_step >= trainer.max_steps > -1:
            facts["ended"] = f"after max_steps={trainer.max_steps}"
        elif trainer.should_stop:
            epoch = trainer.fit_loop.epoch_progress.current.ready - 1
            facts["ended"] = f"in epoch {epoch}: {resume.why_told(trainer)}"
        if speed := self._clock.samples_per_second:  # else it was trained before
            facts |= {"seconds": self._seconds, "samples_per_second": speed}
            facts["data_wait"] = self._data_wait.share
        looks = [logger.look for logger in self.loggers if isinstance(logger, Viewer)]
        return {**facts, "look": [look for look in looks if look]}

    def summarize(self) -> None:
        """Print the best and last metrics, why it ended, time and speed, and where to look."""
        trainer, facts = self.trainer, self.facts()
        quick = trainer.fast_dev_run or trainer.barebones  # type: ignore[attr-defined]
        if quick or not trainer.is_global_zero:
            return
        monitor = facts["monitor"]
        metrics = {name: significant(value) for name, value in facts["metrics"].items()}
        lines = {f"last {monitor}": metrics.get(monitor, "")}
        if "best" in facts:
            best = f"{significant(facts['best'])}   {Path(facts['best_checkpoint']).name}"
            lines = {f"best {monitor}": best, **lines}
        tested = {name[5:]: text for name, text in metrics.items() if name.startswith("test/")}
        name = monitor.removeprefix("val/")
        if name in tested:
            others = [f"{other} {text}" for other, text in tested.items() if other != name]
            lines[f"test/{name}"] = f"{tested[name]}   {', '.join(others[:5])}".rstrip()
        lines["ended"] = facts.get("ended", "")
        if "seconds" in facts:
            speed = f"{facts['samples_per_second']:,.0f} samples/s in training"
            wait = f"{100 * facts['data_wait']:.0f} % of it waiting for data"
            lines["time"] = f"{facts['seconds']:.1f} s, {speed}, {wait}"
            if facts["data_wait"] > MOST_WAIT:
                lines["waiting"] = getattr(self.data, "wait_advice", WAIT_ADVICE)
        lines["folder"] = facts["folder"]
        shown = [pair for pair in lines.items() if pair[1]]
        # In colour where it is a terminal.
        console = Console(soft_wrap=True, emoji=False, highlight=False)
        console.print()
        for name, text in [*shown, *(("look", look) for look in facts["look"])]:
            console.print(f"[cyan]{name:<14}[/] {escape(text)}")

    def differences(self) -> resume.Differences:
        """Return the keys of the model that differ from those in the checkpoint."""
        return resume.differences(self.checkpoint.get("config"), self.text)

    def finish(self, status: int) -> None:
        """End the recording of the run with an exit status, and draw the curves of a training."""
        for logger in self.loggers:
            if isinstance(logger, Viewer):
                logger.finish(status)
        if self.command != "fit" or not self.loggers or "trainer" not in vars(self):
            return
        trainer: Any = self.trainer
        trained = trainer.global_step and not (self._done or trainer.fast_dev_run)
        if trained and trainer.is_global_zero:
            from anneal.report.curves import draw_curves  # imports pandas

            draw_curves(self.folder)

    def _callbacks(self, settings: dict[str, Any]) -> list[Any]:
        """Return the user's and the default ones that these, or other settings, don't replace."""
        named = {name: self.built[name] for name in DEFAULT_CALLBACKS}
        if not self.config.checkpoint.monitor and (task := self.checkpoint.get("task")):
            named["checkpoint"].watch(TASKS[task].monitor)
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
            RunDirectory(self.folder, self.text, self.resumed_from),
            SeedEveryEpoch(),
            EpochMetrics(),
            self._data_wait,
            TestReport(self.folder),
        ]
        # Of several checkpoints Lightning takes the first for the run's.
        first = [c for c in [*named.values(), *chosen] if isinstance(c, Checkpoint)]
        checkpoints = [Path(str(c.dirpath)) for c in first[:1]]
        others += map(GracefulShutdown, checkpoints)
        last = [*checkpoints, self.folder / "checkpoints"][0]
        others.append(FailureRecorder(self.folder, last, self.text))
        return list(dict.fromkeys([*first, *chosen, *named.values(), *others]))

    def _loggers(self, asked: Any) -> Any:
        """Return the CSV file and W&B; a logger given instead takes W&B's place."""
        own = [logger for logger in as_list(asked) if not isinstance(logger, CSVLogger | bool)]
        if asked is False or self.command in ("validate", "predict", "export"):
            # Lightning's own default is one more CSV.
            return [logger for logger in own if not isinstance(logger, Viewer)] or False
        if asked in (None, True):
            own = [WandbLogger(self.folder, **vars(self.config.wandb))]
        self.loggers = [CSVLogger(self.folder), *own]
        return list(self.loggers)


def significant(value: float) -> str:
    """Return a number with four decimals, or with four digits where these would say little."""
    return f"{value:.4f}" if 0.1 <= abs(value) < 1e5 else f"{value:.4g}"
