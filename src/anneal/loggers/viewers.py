"""What shows a run beside `metrics.csv`: the same numbers, each once, whatever was killed.

TensorBoard, MLflow and Trackio; W&B has a file of its own.
"""

import logging
import os
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image

from anneal.errors import UserError, first_line
from anneal.runs.config import flatten


class Viewer(Logger):
    """A logger that continues a resumed run: what was lost is sent, and nothing twice."""

    look = ""  # the address or the command that shows the run; empty: nothing does
    _sent: frozenset[tuple[int, str]] = frozenset()
    _lost = False

    def recorded(self) -> Iterable[tuple[int, str]]:
        """Return the steps and names of what earlier processes have sent."""
        return ()

    def catch_up(self, rows: Iterable[Mapping[str, str]], every: int) -> None:
        """Continue a run whose `metrics.csv` has these rows.

        Of those with nothing but a learning rate, each is sent that is at a multiple of `every`.
        """
        self._sent = frozenset(self.recorded())
        for row in rows:
            step, filled = int(row["step"]), {k: v for k, v in row.items() if v}
            values = {k: float(v) for k, v in filled.items() if k not in ("step", "time")}
            is_rate = all(name == "epoch" or name.startswith("lr") for name in values)
            if not is_rate or (every and step % every == 0):
                self.log_metrics(values, step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send a row at the index of the optimizer step, but for what was sent before a resume."""
        metrics = {k: v for k, v in metrics.items() if (step, k) not in self._sent}
        if metrics.keys() - {"epoch"} and not self._lost:
            with self.unless_lost():
                self.send(metrics, step)

    @contextmanager
    def unless_lost(self) -> Iterator[None]:
        """Train on without a viewer that fails; a resume sends what it has lost."""
        try:
            yield
        except Exception as e:
            self._lost = True
            what = f"{type(self).__name__} has stopped recording: {first_line(e)}"
            print(f"{what}. metrics.csv goes on", file=sys.stderr)

    def send(self, metrics: dict[str, Any], step: int | None) -> None:
        """Send a row."""
        super().log_metrics(metrics, step)  # type: ignore[safe-super]

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kw: Any) -> None:
        """Do nothing: they are part of the configuration, and would be there twice."""

    def finish(self, exit_code: int = 0) -> None:
        """End the run; with another `exit_code` than 0 it has failed."""


class TensorBoardLogger(Viewer, LightningTensorBoardLogger):
    """Show the run in TensorBoard: Lightning's logger, by default in the run's folder."""

    rows_are_cheap = True

    def __init__(
        self,
        run_dir: str,
        save_dir: str | None = None,
        name: str = "",
        version: str | None = None,
        **kwargs: Any,
    ) -> None:
        _check_installed("tensorboard")
        save_dir, version = save_dir or f"{run_dir}/tensorboard", version or _name(run_dir)
        # A second is what a kill can lose, and how late a row is shown.
        super().__init__(save_dir, name, version, **{"flush_secs": 1, **kwargs})
        self.look = typed("tensorboard", "--logdir", save_dir)

    def recorded(self) -> Iterable[tuple[int, str]]:
        reader = import_module("tensorboard.backend.event_processing.event_accumulator")
        written = reader.EventAccumulator(self.log_dir, {"scalars": 0}).Reload()
        return ((e.step, k) for k in written.Tags()["scalars"] for e in written.Scalars(k))

    def log_config(self, config: dict[str, Any], file: Path) -> None:
        """Show the configuration as a text, and its values as hyper-parameters."""
        from torch.utils.tensorboard.summary import hparams

        self.hparams = config
        self.experiment.add_text(file.stem, "    " + file.read_text().replace("\n", "\n    "))
        for part in hparams(_settings(config), {})[1:]:  # the first says that no metric belongs
            self.experiment.file_writer.add_summary(part)

    def log_image(self, key: str, images: list[str], step: int | None = None) -> None:
        for path in images:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self.experiment.add_image(key, pixels, step, dataformats="HWC")


class MLFlowLogger(Viewer, LightningMLFlowLogger):
    """Show the run in MLflow: Lightning's logger, by default with a store in the run's folder."""

    _initialized = _log_model = False
    _run_id = _experiment_id = None

    def __init__(
        self,
        run_dir: str,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        **kwargs: Any,
    ) -> None:
        _check_installed("mlflow")
        server = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._folder = folder = Path(run_dir) / "mlflow"
        self._arguments: dict[str, Any] = {
            "experiment_name": experiment_name or default_project(),
            "run_name": run_name or _name(run_dir),
            "tracking_uri": server or f"sqlite:///{folder.resolve()}/mlflow.db",
            "artifact_location": None if server else f"{folder.resolve().as_uri()}/artifacts",
        }
        self._arguments |= {name: value for name, value in kwargs.items() if value is not None}
        uri = f"sqlite:///{folder}/mlflow.db"
        self.look = server or typed("mlflow", "ui", "--backend-store-uri", uri)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client; the run is begun or continued when it is first used."""
        if not self._initialized:
            for name in ("mlflow.store.db.utils", LightningMLFlowLogger.__module__):
                logging.getLogger(name).setLevel(logging.ERROR)  # how a database is made
            known = self._folder / "run-id"
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                if known.exists():
                    self._arguments = {"run_id": known.read_text(), **self._arguments}
                super().__init__(**self._arguments)
                super().experiment.update_run(self._run_id, status="RUNNING")
            except Exception as e:
                raise UserError(f"MLFlowLogger: {self._tracking_uri}: {first_line(e)}") from e
            known.write_text(str(self._run_id))
        return super().experiment

    def recorded(self) -> Iterable[tuple[int, str]]:
        run, history = self.experiment.get_run(self.run_id), self.experiment.get_metric_history
        return ((m.step, k) for k in run.data.metrics for m in history(self.run_id, k))

    def log_config(self, config: dict[str, Any], file: Path) -> None:
        """Send the configuration; of its values those that are new, as MLflow changes none."""
        known = self.experiment.get_run(self.run_id).data.params
        new = {key: value for key, value in _settings(config).items() if key not in known}
        LightningMLFlowLogger.log_hyperparams(self, new)
        self.experiment.log_artifact(self.run_id, str(file))

    def log_image(self, key: str, images: list[str], step: int | None = None) -> None:
        with self.unless_lost():
            for path in images:
                self.experiment.log_artifact(self.run_id, path, "images")

    def finalize(self, status: str = "success") -> None:
        with self.unless_lost():
            super().finalize(status)

    def finish(self, exit_code: int = 0) -> None:
        if self._initialized and not self._lost:
            self.finalize({0: "FINISHED", 130: "KILLED", 143: "KILLED"}.get(exit_code, "FAILED"))


class TrackioLogger(Viewer):
    """Show the run in Trackio, which writes into the run's folder."""

    rows_are_cheap = True
    name = version = None

    def __init__(self, run_dir: str, project: str | None = None, name: str | None = None) -> None:
        _check_installed("trackio")
        self._folder, project = Path(run_dir) / "trackio", project or default_project()
        self._arguments = {"project": project, "name": name or _name(run_dir)}
        self._experiment: Any = None
        show = typed("trackio", "show", "--project", project)
        self.look = f"TRACKIO_DIR={shlex.quote(str(self._folder))} {show}"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run, begun or continued when it is first used."""
        if self._experiment is None:
            stored = self._storage().get_run_config(*self._arguments.values()) or {}
            config = {name: value for name, value in stored.items() if name[0] != "_"}
            more = {"config": config, "resume": "allow", "embed": False}
            self._experiment = self._quietly("init", **self._arguments, **more)
        return self._experiment

    def recorded(self) -> Iterable[tuple[int, str]]:
        rows = self._storage().get_logs(*self._arguments.values())
        return ((row["step"], name) for row in rows for name in row)

    def log_config(self, config: dict[str, Any], file: Path) -> None:
        """Send the configuration, with the first row."""
        self.experiment.config.update(_settings(config))

    def log_image(self, key: str, images: list[str], step: int | None = None) -> None:
        for path in images:
            self.experiment.log({key: self._trackio().Image(path)}, step)

    def send(self, metrics: dict[str, Any], step: int | None) -> None:
        self.experiment.log({name: float(value) for name, value in metrics.items()}, step)

    def finish(self, exit_code: int = 0) -> None:
        if self._experiment is not None:
            self._quietly("finish")
            self._experiment = None

    def _trackio(self) -> Any:
        """Return the package, which has one folder from its import on."""
        if (loaded := sys.modules.get("trackio")) and self._folder != loaded.TRACKIO_DIR:
            for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
                del sys.modules[name]
        os.environ["TRACKIO_DIR"] = str(self._folder)
        return import_module("trackio")

    def _storage(self) -> Any:
        return self._trackio().sqlite_storage.SQLiteStorage

    def _quietly(self, function: str, **arguments: Any) -> Any:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            return getattr(self._trackio(), function)(**arguments)


def default_project() -> str:
    """Return the name under which viewers have the runs of this project."""
    return os.environ.get("WANDB_PROJECT") or "anneal"


def typed(program: str, *words: object) -> str:
    """Return a command of a viewer, with the path of its program where that is needed."""
    if not shutil.which(program):  # the environment is not activated
        program = os.path.relpath(Path(sys.executable).with_name(program))
    return shlex.join([program, *map(str, words)])


def _check_installed(package: str) -> None:
    if not find_spec(package):
        raise UserError(f"{package} is not installed: pip install {package}")


def _name(run_dir: str) -> str:
    return Path(run_dir).resolve().name


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return what is set in a configuration, by dotted keys; its lists are in its file alone."""
    values = ((key, v) for key, v in flatten(config) if v is not None and not isinstance(v, list))
    return {k: v if isinstance(v, bool | int | float) else str(v) for k, v in values}
