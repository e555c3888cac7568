"""Each viewer shows what `metrics.csv` has: every value once, at its step, whatever was killed."""

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest
from launch import Training, train
from wandb_reader import read

PACKAGES = {
    "TensorBoardLogger": "tensorboard",
    "MLFlowLogger": "mlflow",
    "TrackioLogger": "trackio",
}
KILL = ("--trainer.callbacks+=tiny.KillIfFirst", "--trainer.callbacks.step=7")
FIT = (
    "fit",
    "--config=small.yaml",
    "--run_name=r",
    "--trainer.logger=null",
    "--trainer.log_every_n_steps=1",
)


def logged(folder):
    """Yield name, step and value of metrics.csv."""
    with Path(folder, "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("step", "epoch", "time")]
    return [(n, int(row["step"]), float(row[n])) for row in rows for n in names if row[n]]


def in_wandb(folder):
    rows = [row for recording in read(folder) for row in recording.history]
    for row in rows:
        step = row.pop("trainer/global_step", None)
        yield from ((name, step, v) for name, v in row.items() if isinstance(v, int | float))


def in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(folder / "tensorboard/r"), {"scalars": 0}).Reload()
    for name in written.Tags()["scalars"]:
        yield from ((name, event.step, event.value) for event in written.Scalars(name))


def in_mlflow(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.resolve()}/mlflow/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            yield name, metric.step, metric.value


def in_trackio(folder):
    from anneal.loggers.viewers import TrackioLogger

    logger = TrackioLogger(folder)
    for row in logger._trackio().sqlite_storage.SQLiteStorage.get_logs("anneal", "r"):
        yield from ((name, row["step"], v) for name, v in row.items() if isinstance(v, int | float))


READERS = {
    "WandbLogger": in_wandb,
    "TensorBoardLogger": in_tensorboard,
    "MLFlowLogger": in_mlflow,
    "TrackioLogger": in_trackio,
}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of a run that was killed in its second epoch, resumed and tested."""
    folder = tmp_path_factory.mktemp("viewers")
    loggers = [f"--trainer.logger+={name}" for name, p in PACKAGES.items() if find_spec(p)]
    status, output = Training(folder, *FIT, *KILL, *loggers, WANDB_MODE="offline").end()
    assert status == -9, output
    train(folder, "fit", "--run_name=r", "--resume=auto", WANDB_MODE="offline")
    train(folder, "test", "--ckpt_path=best", WANDB_MODE="offline")
    return folder / "runs/r"


@pytest.mark.parametrize("logger", READERS)
def test_a_viewer_has_each_value_once_after_a_kill_and_a_resume(resumed, logger):
    pytest.importorskip(PACKAGES.get(logger, "wandb"))
    expected = logged(resumed)
    names = {name for name, _, _ in expected}
    found = [row for row in READERS[logger](resumed) if row[0] in names]
    assert len(found) == len(expected)
    for (name, step, value), row in zip(sorted(found), sorted(expected), strict=True):
        assert (name, step, value) == (*row[:2], pytest.approx(row[2]))
