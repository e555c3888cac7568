"""What shows a run beside `metrics.csv`: the same numbers, each once, whatever was killed.

TensorBoard, MLflow and Trackio; W&B has a file of its own. Each is imported when it is used.
"""

import logging
import os
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
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

Rows = Iterable[Mapping[str, str]]


class Viewer(Logger):
    """A logger that continues a resumed run: what was lost is sent, and nothing twice."""

    package = ""
    look = ""  # the address or the command that shows the run; empty: nothing does
    _sent: frozenset[tuple[int, str]] = frozenset()

    def place(self, run_dir: str | os.PathLike[str], save_dir: Any) -> Path:
        """Return the folder to write into: by default one in the run's, called as the package."""
        if not find_spec(self.package):
            needs = f"{type(self).__name__} needs {self.package}"
            raise UserError(f"{needs}: pip install {self.package}")
        self.run_dir = Path(run_dir).resolve()
        return Path(save_dir or Path(run_dir) / self.package)

    def recorded(self) -> Iterable[tuple[int, str]] | None:
        """Return the steps and names of what is there; None: all that was logged."""
        return None

    @rank_zero_only
    def catch_up(self, rows: Rows, again: Rows, every: int) -> None:
        """Continue a run whose `metrics.csv` has these rows, and had those that come `again`.

        Of rows with nothing but a learning rate, those of `every` so many steps are sent.
        """
        have = self.recorded()
        self._sent = frozenset(_cells([*rows, *again]) if have is None else have)
        for row in rows:
            step, values = int(row["step"]), {name: float(row[name]) for _, name in _cells([row])}
            if not all(name.startswith("lr") for name in values) or (every and step % every == 0):
                self.log_metrics(values | {"epoch": float(row["epoch"] or 0)}, step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send a row at the index of the optimizer step, but for what was sent before a resume."""
        metrics = {k: v for k, v in metrics.items() if (step, k) not in self._sent}
        if metrics.keys() - {"epoch"}:
            self.send(metrics, step)

    def send(self, metrics: dict[str, Any], step: int | None) -> None:
        """Send a row."""
        super().log_metrics(metrics, step)  # type: ignore[safe-super]

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kw: Any) -> None:
        """Do nothing: they are part of the configuration, and would be there twice."""

    def finish(self, exit_code: int = 0) -> None:
        """End the run; with another `exit_code` than 0 it has failed."""


class TensorBoardLogger(Viewer, LightningTensorBoardLogger):
    """Show the run in TensorBoard.

    Args:
        run_dir: The run's folder.
        save_dir: Where `name/version` is made; by default `tensorboard` in the run's folder.
        name: A folder for several runs; by default none.
        version: The run's own folder; by default named after the run.
        kwargs: Of Lightning's TensorBoardLogger.
    """

    package = "tensorboard"
    rows_are_cheap = True

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        save_dir: str | os.PathLike[str] | None = None,
        name: str = "",
        version: str | None = None,
        **kwargs: Any,
    ) -> None:
        folder = self.place(run_dir, save_dir)
        # What a kill can lose, and how late it is shown.
        kwargs = {"version": version or self.run_dir.name, "flush_secs": 1, **kwargs}
        super().__init__(folder, name, **kwargs)
        self.look = typed(self.package, "--logdir", folder)

    def recorded(self) -> Iterable[tuple[int, str]]:
        reader = import_module("tensorboard.backend.event_processing.event_accumulator")
        written = reader.EventAccumulator(self.log_dir, {"scalars": 0}).Reload()
        return ((e.step, k) for k in written.Tags()["scalars"] for e in written.Scalars(k))

    @rank_zero_only
    def log_config(self, config: dict[str, Any], file: Path) -> None:
        """Show the configuration as a text, and its values as hyper-parameters."""
        from torch.utils.tensorboard.summary import hparams

        self.experiment.add_text(file.stem, "    " + file.read_text().replace("\n", "\n    "))
        for part in hparams(_settings(config), {})[
            1:
        ]:  # the first would say that there are no metrics
            self.experiment.file_writer.add_summary(part)

    @rank_zero_only
    def log_image(self, key: str, images: list[str], step: int | None = None) -> None:
        """Show image files."""
        for path in images:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self.experiment.add_image(key, pixels, step, dataformats="HWC")

    @rank_zero_only
    def save(self) -> None:
        """Write what is held back."""
        self.experiment.flush()


class MLFlowLogger(Viewer, LightningMLFlowLogger):
    """Show the run in MLflow.

    Args:
        run_dir: The run's folder.
        save_dir: Where `mlflow.db` and images are; by default `mlflow` in the run's folder.
        tracking_uri: A server instead; by default MLFLOW_TRACKING_URI.
        experiment_name: By default that of the project.
        run_name: By default the name of the run's folder.
        kwargs: Of Lightning's MLFlowLogger.
    """

    package = "mlflow"
    _initialized = _log_model = False
    _run_id = _experiment_id = None

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        save_dir: str | os.PathLike[str] | None = None,
        tracking_uri: str | None = None,
        experiment_name: str | None = None,
        run_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        store = self.place(run_dir, save_dir) / "mlflow.db"
        self._server = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
        self._arguments = {
            "tracking_uri": self._server or f"sqlite:///{store.resolve()}",
            "experiment_name": experiment_name or default_project(),
            "run_name": run_name or self.run_dir.name,
            **{name: value for name, value in kwargs.items() if value is not None},
        }
        if not self._server:
            folder = store.resolve().with_name("artifacts")
            self._arguments.setdefault("artifact_location", folder.as_uri())
        self.look = typed(self.package, "ui", "--backend-store-uri", f"sqlite:///{store}")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client; the run is begun or continued when it is first used."""
        if not self._initialized:
            for name in ("mlflow.store.db.utils", LightningMLFlowLogger.__module__):
                logging.getLogger(name).setLevel(logging.ERROR)  # how a database is made
            try:
                self._start()
            except Exception as e:
                where = self._arguments["tracking_uri"]
                raise UserError(f"MLFlowLogger: {where}: {first_line(e)}") from e
        return super().experiment

    def _start(self) -> None:
        mark = self.run_dir / self.package / "run"  # where it is, and which
        server, _, run_id = mark.read_text().partition("\n") if mark.exists() else ("", "", "")
        mark.parent.mkdir(parents=True, exist_ok=True)
        known = {"run_id": run_id} if run_id and server == self._server else {}
        super().__init__(**{**known, **self._arguments})
        super().experiment.update_run(self._run_id, status="RUNNING")
        mark.write_text(f"{self._server}\n{self._run_id}")
        if self._server.startswith("http"):
            self.look = f"{self._server}/#/experiments/{self._experiment_id}/runs/{self._run_id}"

    def recorded(self) -> Iterable[tuple[int, str]]:
        run, history = self.experiment.get_run(self.run_id), self.experiment.get_metric_history
        return ((m.step, k) for k in run.data.metrics for m in history(self.run_id, k))

    @rank_zero_only
    def log_config(self, config: dict[str, Any], file: Path) -> None:
        """Send the configuration; of its values those that are new, as MLflow changes none."""
        known = self.experiment.get_run(self.run_id).data.params
        new = {key: value for key, value in _settings(config).items() if key not in known}
        LightningMLFlowLogger.log_hyperparams(self, new)
        self.experiment.log_artifact(self.run_id, str(file))

    @rank_zero_only
    def log_image(self, key: str, images: list[str], step: int | None = None) -> None:
        """Send image files."""
        for path in images:
            self.experiment.log_artifact(self.run_id, path, f"images/{Path(key).parent}")

    @rank_zero_only
    def finish(self, exit_code: int = 0) -> None:
        if self._initialized:
            status = {0: "FINISHED", 130: "KILLED", 143: "KILLED"}.get(exit_code, "FAILED")
            self.experiment.set_terminated(self.run_id, status)


class TrackioLogger(Viewer):
    """Show the run in Trackio.

    Args:
        run_dir: The run's folder.
        save_dir: Trackio's folder; by default `trackio` in the run's folder.
        project: By default that of W&B.
        name: By default the name of the run's folder.
        group: Puts the runs of one experiment together.
        space_id: A Space of Hugging Face to send to instead.
        server_url: A server of Trackio's to send to instead.
    """

    package = "trackio"
    rows_are_cheap = True
    name = version = None

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        save_dir: str | os.PathLike[str] | None = None,
        project: str | None = None,
        name: str | None = None,
        group: str | None = None,
        space_id: str | None = None,
        server_url: str | None = None,
    ) -> None:
        self._folder = self.place(run_dir, save_dir)
        project, name = project or default_project(), name or self.run_dir.name
        self._arguments: dict[str, Any] = {"project": project, "name": name, "group": group}
        self._arguments |= {"space_id": space_id, "server_url": server_url}
        self._remote = space_id or server_url
        self._experiment: Any = None
        show = typed(self.package, "show", "--project", project)
        self.look = self._remote or f"TRACKIO_DIR={shlex.quote(str(self._folder))} {show}"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run, begun or continued when it is first used."""
        if self._experiment is None:
            self._experiment = self._quietly("init", **self._arguments, resume="allow", embed=False)
        return self._experiment

    def recorded(self) -> Iterable[tuple[int, str]] | None:
        if self._remote:
            return None
        run, storage = self.experiment, self._trackio().sqlite_storage.SQLiteStorage
        rows = storage.get_logs(run.project, run.name, run_id=run.id)
        return ((row["step"], name) for row in rows for name in row)

    @rank_zero_only
    def log_config(self, config: dict[str, Any], file: Path) -> None:
        """Send the configuration."""
        self._arguments["config"] = _settings(config)

    @rank_zero_only
    def log_image(self, key: str, images: list[str], step: int | None = None) -> None:
        """Send image files."""
        for path in images:
            self.experiment.log({key: self._trackio().Image(path)}, step)

    def send(self, metrics: dict[str, Any], step: int | None) -> None:
        self.experiment.log({name: float(value) for name, value in metrics.items()}, step)

    @rank_zero_only
    def finish(self, exit_code: int = 0) -> None:
        if self._experiment is not None:
            self._quietly("finish")
            self._experiment = None

    def _trackio(self) -> Any:
        """Return the package, which takes its folder from where it is imported."""
        loaded: Any = sys.modules.get("trackio")
        if loaded and self._folder != loaded.TRACKIO_DIR:
            for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
                del sys.modules[name]
        os.environ["TRACKIO_DIR"] = str(self._folder)
        return import_module("trackio")

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


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return what is set in a configuration, by dotted keys; its lists are in its text alone."""
    values = ((key, v) for key, v in flatten(config) if v is not None and not isinstance(v, list))
    return {k: v if isinstance(v, bool | int | float) else str(v) for k, v in values}


def _cells(rows: Rows) -> Iterable[tuple[int, str]]:
    """Yield the step and the name of each value."""
    for row in rows:
        values = (k for k, value in row.items() if value and k not in ("step", "epoch", "time"))
        yield from ((int(row["step"]), name) for name in values)
