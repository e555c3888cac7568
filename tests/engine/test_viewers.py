"""Each viewer shows what `metrics.csv` has: every value once, at its step, whatever was killed."""

import csv
import re
import sqlite3
from collections import Counter
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
from launch import Training, train
from lightning.pytorch.loggers.logger import Logger
from pages import ROOT, commands
from wandb_reader import read

from anneal.cli.schema import resolve
from anneal.loggers import viewers
from anneal.loggers.viewers import TrackioLogger

# Trackio is not among the tools of development, since it holds Pillow back.
PACKAGES = {
    "TensorBoardLogger": "tensorboard",
    "MLFlowLogger": "mlflow",
    "TrackioLogger": "trackio",
}
KILL = ("--trainer.callbacks+=tiny.KillIfFirst", "--trainer.callbacks.step=7")
FIT = ("fit", "--config=small.yaml", "--run_name=r", "--trainer.logger=null")
FIT += ("--trainer.log_every_n_steps=1",)
RUNS = ROOT / "docs/runs.md"
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")


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
    client, run = mlflow_run(folder)
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            yield name, metric.step, metric.value


def in_trackio(folder):
    logger = TrackioLogger(str(folder))
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
    """The folder of a run of two processes, killed in its second epoch, resumed and tested."""
    folder = tmp_path_factory.mktemp("viewers")
    written = [word for words in commands(RUNS) for word in words if "logger+=" in word]
    assert [word.partition("+=")[2] for word in written] == list(PACKAGES)
    loggers = [w for w in written if find_spec(PACKAGES[w.partition("+=")[2]])]
    status, output = Training(folder, *FIT, *TWO, *KILL, *loggers, WANDB_MODE="offline").end()
    assert status == -9, output
    output = train(folder, "fit", "--run_name=r", "--resume=auto", WANDB_MODE="offline")
    for name in (PACKAGES[word.partition("+=")[2]] for word in loggers):
        line = rf"^look +((?:TRACKIO_DIR=\S+ )?)\S*?({name} .*)"
        (look,) = re.findall(line, output, re.MULTILINE)
        assert "".join(look).replace("runs/r", "runs/NAME") in RUNS.read_text()
    one = "--trainer.devices=1"
    train(folder, "test", "--ckpt_path=best", one, WANDB_MODE="offline")
    if (store := folder / "runs/r/mlflow/mlflow.db").exists():  # where later tests have theirs
        with closing(sqlite3.connect(store)) as database:
            assert database.execute("SELECT COUNT(*) FROM runs").fetchone() == (1,)
    return folder / "runs/r"


def needs(logger):
    pytest.importorskip(PACKAGES.get(logger, "wandb"))


def mlflow_run(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.resolve()}/mlflow/mlflow.db")
    return client, client.get_run((folder / "mlflow/run-id").read_text())


@pytest.mark.parametrize("logger", READERS)
def test_a_viewer_has_each_value_once_after_a_kill_and_a_resume(resumed, logger):
    needs(logger)
    expected = logged(resumed)
    names = {name for name, _, _ in expected}
    found = [row for row in READERS[logger](resumed) if row[0] in names]
    # `samples` is logged twice at the end of an epoch, between which it may have been killed.
    assert not Counter(row[:2] for row in found) - Counter(row[:2] for row in expected)
    assert {row[:2]: row[2] for row in found} == pytest.approx({r[:2]: r[2] for r in expected})


def test_tensorboard_has_figures_and_the_configuration(resumed):
    needs("TensorBoardLogger")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(resumed / "tensorboard/r")).Reload()
    tests = [step for name, step, _ in logged(resumed) if name == "test/acc"]
    assert [event.step for event in written.Images("test/confusion")] == tests
    *_, text = written.Tensors("config/text_summary")
    assert b"max_epochs: 2" in text.tensor_proto.string_val[0]
    settings = written.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"model.optimizer.lr" in settings


def test_mlflow_has_figures_the_configuration_and_the_end(resumed):
    needs("MLFlowLogger")
    client, run = mlflow_run(resumed)
    assert (run.info.run_name, run.info.status) == ("r", "FINISHED")
    assert run.data.params["model.optimizer.lr"] == "0.1"
    figures = client.list_artifacts(run.info.run_id, "images")
    assert {"images/test-confusion.png", "images/test-confusion-2.png"} <= {f.path for f in figures}
    assert "config.yaml" in {f.path for f in client.list_artifacts(run.info.run_id)}


def test_trackio_has_figures_and_the_configuration(resumed):
    needs("TrackioLogger")
    trackio = TrackioLogger(str(resumed))._trackio()
    (run,) = trackio.Api().runs("anneal")
    assert run.name == "r"
    assert run.config["model.optimizer.lr"] == 0.1
    assert len(list((resumed / "trackio/media").rglob("*.png"))) == 4


@pytest.fixture
def mlflow_store(resumed):
    """MLflow's store of another run, since a new one takes seconds to make."""
    needs("MLFlowLogger")
    return f"--trainer.logger.tracking_uri=sqlite:///{resumed}/mlflow/mlflow.db"


def of_mlflow(resumed):
    return mlflow_run(resumed)[0].get_run(Path("runs/r/mlflow/run-id").read_text())


@pytest.mark.parametrize(("status", "step"), [("FINISHED", -1), ("FAILED", 3)])
def test_mlflow_says_how_a_run_has_ended(run, resumed, mlflow_store, status, step):
    words = (*FIT, "--trainer.logger=MLFlowLogger", mlflow_store)
    try:
        run(*words, "--trainer.callbacks+=tiny.Crash", f"--trainer.callbacks.step={step}")
    except OSError:
        assert step == 3
    found = of_mlflow(resumed)
    assert (found.info.run_name, found.info.status) == ("r", status)


def test_mlflow_continues_a_run_that_was_stopped(run, resumed, mlflow_store):
    logger = ("--trainer.logger=MLFlowLogger", mlflow_store)
    with pytest.raises(SystemExit) as e:
        run(*FIT, *logger, "--trainer.callbacks+=tiny.Interrupt", "--trainer.callbacks.step=3")
    assert e.value.code == 130
    first = of_mlflow(resumed)
    assert first.info.status == "KILLED"
    run(
        "fit", "--run_name=r", "--resume=auto", "--trainer.callbacks=null", "--trainer.max_epochs=3"
    )
    found = of_mlflow(resumed)
    assert (found.info.run_id, found.info.status) == (first.info.run_id, "FINISHED")
    # MLflow never changes a parameter: the file has what it is now.
    files = {f.path for f in mlflow_run(resumed)[0].list_artifacts(found.info.run_id)}
    assert {"config.yaml", "config-2.yaml"} <= files


def test_a_viewer_that_comes_with_a_resume_has_the_whole_run(run):
    needs("TensorBoardLogger")
    run(*FIT, "--trainer.logger=true")
    more = ("--trainer.max_epochs=3", "--trainer.logger+=TensorBoardLogger")
    run("fit", "--run_name=r", "--resume=auto", *more)
    folder = Path("runs/r")
    found = [row for row in in_tensorboard(folder) if row[0] != "epoch"]
    expected = logged(folder)
    assert sorted(row[:2] for row in found) == sorted(row[:2] for row in expected)


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_validate_and_predict_write_nothing_into_a_viewer(run, command):
    needs("TensorBoardLogger")
    run(*FIT, "--trainer.logger=TensorBoardLogger")
    before = sorted(in_tensorboard(Path("runs/r")))
    run(command, "--ckpt_path=last")
    assert sorted(in_tensorboard(Path("runs/r"))) == before


@pytest.mark.parametrize(("logger", "package"), PACKAGES.items())
def test_a_package_that_is_missing_is_one_line_with_its_command(
    run, capsys, monkeypatch, logger, package
):
    monkeypatch.setattr(viewers, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as e:
        run(*FIT, f"--trainer.logger+={logger}")
    assert e.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f": pip install {package}")
    assert not Path("runs/r").exists()


def test_two_runs_in_one_process_have_each_its_trackio(run):
    needs("TrackioLogger")
    for name in ("a", "b"):
        run(*FIT, f"--run_name={name}", "--trainer.logger=TrackioLogger")
        trackio = TrackioLogger(f"runs/{name}")._trackio()
        assert [found.name for found in trackio.Api().runs("anneal")] == [name]


def test_training_goes_on_when_a_viewer_fails_and_a_resume_sends_what_it_lost(
    run, capsys, monkeypatch
):
    needs("TensorBoardLogger")
    from torch.utils.tensorboard import SummaryWriter

    add = SummaryWriter.add_scalar

    def add_scalar(self, tag, value, step):
        if step == 4:
            raise OSError("no space")
        add(self, tag, value, step)

    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "add_scalar", add_scalar)
        run(*FIT, "--trainer.logger=TensorBoardLogger")
    said = capsys.readouterr().err
    assert said.count("TensorBoardLogger has stopped recording: ") == 1
    run("fit", "--run_name=r", "--resume=auto", "--trainer.max_epochs=3")
    folder = Path("runs/r")
    found = {row[:2] for row in in_tensorboard(folder)}
    assert found >= {row[:2] for row in logged(folder) if row[0] != "lr"}


@pytest.mark.parametrize("logger", PACKAGES)
def test_a_viewer_goes_by_the_name_of_its_package_too(logger):
    assert resolve(PACKAGES[logger], Logger) is getattr(viewers, logger)
