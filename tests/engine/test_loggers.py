"""Nothing is missing in `metrics.csv` and W&B, nothing twice, and training waits for no tracker."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import wandb
from helpers import idle_time
from launch import Training
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from wandb_reader import read
from wandb_server import Server

from anneal import system
from anneal.loggers import wandb as wandb_module
from anneal.loggers.csv import CSVLogger
from anneal.loggers.wandb import WandbLogger
from anneal.progress import log_image
from anneal.system import code_version
from anneal.testing import logged, wait_for

KEY = "0123456789abcdef" * 3


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """A person without an account, on a machine where wandb was never used."""
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home/netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home/config"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield
    wandb.teardown()


def lines(run_dir) -> list[dict[str, str]]:
    with Path(run_dir, "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file, strict=True))


class Line(pl.LightningModule):
    """One weight; every number it logs depends on all the steps before."""

    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"from_the_module": 1})
        self.weight = torch.nn.Parameter(torch.ones(1))

    def loss(self, batch):
        return (self.weight * batch[0] - 1).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(20.0) / 20), batch_size=2)

    val_dataloader = test_dataloader = train_dataloader


class Start(pl.Callback):
    """What the command line does when training starts."""

    def on_train_start(self, trainer, pl_module):
        table, *others = trainer.loggers
        rows = table.rewind(trainer.global_step)
        for logger in others:
            logger.catch_up(rows, 1)


class Kill(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def train(loggers, kill=None, ckpt_path=None, accumulate=1, epoch_end=True):
    """Three epochs of ten batches; the trainer, and its checkpoint callback."""
    folder = loggers[0].save_dir
    save = ModelCheckpoint(
        f"{folder}/checkpoints",
        filename="best",
        monitor="val/loss",
        save_last=True,
        save_on_train_epoch_end=epoch_end,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=loggers,
        max_epochs=3,
        log_every_n_steps=1,
        accumulate_grad_batches=accumulate,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Start(), LearningRateMonitor("step"), save] + [Kill(kill)] * bool(kill),
    )
    try:
        trainer.fit(Line(), ckpt_path=ckpt_path)
    except (KeyboardInterrupt, SystemExit):
        assert kill
    return trainer


# ---------------------------------------------------------------------------------- metrics.csv


def test_csv_is_one_line_a_call_with_step_epoch_and_time_first(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    clock = iter((7.0, 7.0, 8.5, 10.0))
    time = SimpleNamespace(monotonic=lambda: next(clock))  # that of the one module
    monkeypatch.setattr("anneal.loggers.csv.time", time)
    logger.log_metrics({"lr": 0.5}, 0)
    logger.log_metrics({"train/loss": torch.tensor(1.5), "epoch": 0}, 0)
    logger.log_metrics({"val/loss": float("nan"), "epoch": 0}, 1)
    assert (tmp_path / "run/metrics.csv").read_text() == (
        "step,epoch,time,lr,train/loss,val/loss\n0,,0.0,0.5,,\n0,0,1.5,,1.5,\n1,0,3.0,,,nan\n"
    )
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["metrics.csv"]


def test_csv_loses_no_line_when_the_process_is_killed(tmp_path):
    if (child := os.fork()) == 0:
        logger = CSVLogger(tmp_path)
        for step in range(1000):
            logger.log_metrics({"a": step}, step)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [int(row["a"]) for row in lines(tmp_path)] == list(range(1000))


def test_csv_that_was_cut_or_damaged_is_repaired_and_goes_on(tmp_path):
    logger = CSVLogger(tmp_path)
    for step in range(4):
        logger.log_metrics({"a": step * 1.25}, step)
    logger.finalize("failed")
    file = tmp_path / "metrics.csv"
    before = logged(tmp_path)
    text = file.read_text()
    file.write_bytes(text.encode()[:-3] + b"\0\0\0\n3,,7.")  # a block of zeros, a line that was cut
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 3.75}, 3)
    assert logger.rows() == len(logger.rewind(100)) == 4
    assert [row["step"] for row in logger.rewind(3)] == ["0", "1", "2"]
    logger.log_metrics({"a": 3.75}, 3)
    assert logged(tmp_path) == before
    file.write_text("step,ep")  # cut in its first line
    CSVLogger(tmp_path).log_metrics({"a": 1}, 0)
    assert logged(tmp_path) == [{"step": "0", "epoch": "", "a": "1"}]


def test_csv_counts_the_lines_that_it_reads_whatever_stands_in_quotes_or_is_damaged(tmp_path):
    logger = CSVLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"a, b": f"{step}, 2"}, step)
    assert logger.rows() == len(logger.rewind(100)) == 3
    (tmp_path / "metrics.csv").write_text("\n\n")
    assert CSVLogger(tmp_path).rows() == 0


def test_csv_takes_columns_from_a_second_process_while_the_first_goes_on(tmp_path):
    training, test = CSVLogger(tmp_path), CSVLogger(tmp_path)
    training.log_metrics({"train/loss": 1}, 0)
    test.log_metrics({"test/loss": 2}, 0)
    training.log_metrics({"train/loss": 3}, 1)
    test.log_metrics({"test/loss": 4}, 1)
    training.log_metrics({"val/loss": 5}, 1)
    test.log_metrics({"test/loss": 6}, 2)
    rows = lines(tmp_path)
    assert list(rows[0]) == ["step", "epoch", "time", "train/loss", "test/loss", "val/loss"]
    assert ["".join(list(row.values())[3:]) for row in rows] == list("123456")


def test_csv_of_a_long_run_costs_little_and_grows_linearly(tmp_path):
    size = {}
    for count in (10_000, 20_000):
        logger = CSVLogger(tmp_path / str(count))
        start = time.process_time()
        for step in range(count):
            logger.log_metrics({"train/loss": 1 / 3, "epoch": 1}, 100_000 + step)
        logger.log_metrics({"val/loss": 0.5}, count)
        assert (time.process_time() - start) / count < 200e-6
        logger.finalize("success")
        size[count] = logger.path.stat().st_size
    assert size[20_000] / size[10_000] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("epoch_end", [True, False])
def test_csv_of_a_resumed_run_is_the_file_of_an_uninterrupted_one(tmp_path, accumulate, epoch_end):
    how = {"accumulate": accumulate, "epoch_end": epoch_end}
    train([CSVLogger(tmp_path / "whole")], **how).test(ckpt_path="best", verbose=False)
    steps = 3 if accumulate == 4 else 10  # in an epoch
    train([CSVLogger(tmp_path / "resumed")], kill=2 * steps - 1, **how)
    killed = lines(tmp_path / "resumed")
    assert int(killed[-1]["step"]) > steps  # there is something to take back
    last = tmp_path / "resumed/checkpoints/last.ckpt"
    train([CSVLogger(tmp_path / "resumed")], ckpt_path=last, **how).test(
        ckpt_path="best", verbose=False
    )
    assert logged(tmp_path / "resumed") == logged(tmp_path / "whole")
    trained = [int(r["step"]) for r in lines(tmp_path / "whole") if r["train/loss_step"]]
    assert trained == list(range(3 * steps))  # one row for each optimizer step


# ------------------------------------------------------------------------------- W&B, no account


def test_without_an_account_a_run_is_recorded_offline_after_one_line(tmp_path, capfd):
    start = idle_time()
    logger = WandbLogger("runs/mnist 1", tags=["a", "b"], notes="why", group="g")
    _ = logger.experiment
    assert idle_time() - start < 15  # W&B would wait for an answer for minutes
    err = capfd.readouterr().err.splitlines()
    assert err == [
        "W&B: offline (not logged in). Look: wandb leet 'runs/mnist 1/wandb'"
        " · Send later: wandb sync 'runs/mnist 1/wandb'"
    ]
    assert logger.look == "wandb leet 'runs/mnist 1/wandb'"
    Path("config.yaml").write_text("trainer: {max_epochs: 3}\n")
    config = {"seed_everything": 0, "trainer": {"max_epochs": 3, "callbacks": None}, "model": {}}
    logger.log_config(config, "config.yaml")
    logger.log_metrics({"train/loss": 1.0, "epoch": 0}, step=7)
    logger.finalize("success")
    logger.finish()
    assert capfd.readouterr().err == ""
    assert Path("config.yaml").read_text() == "trainer: {max_epochs: 3}\n"

    (run,) = read("runs/mnist 1")
    assert run.folder.name.startswith("offline-run-")
    assert run.run["project"] == "anneal"
    assert run.run["display_name"] == "mnist 1"
    assert run.run["tags"] == ["a", "b"]
    assert (run.run["notes"], run.run["run_group"]) == ("why", "g")
    assert run.config == config
    assert [(r["trainer/global_step"], r["train/loss"], r["epoch"]) for r in run.history] == [
        (7, 1.0, 0)
    ]
    axes = {m.get("glob_name", m.get("name")): m.get("step_metric") for m in run.metrics}
    assert axes["*"] == "trainer/global_step"
    assert "anneal.yaml" in run.files
    assert (run.folder / "files/anneal.yaml").read_text() == "trainer: {max_epochs: 3}\n"
    assert run.exit_code == 0


def test_an_image_is_sent_to_the_loggers_that_take_images(tmp_path):
    path = tmp_path / "figure.png"
    Image.new("RGB", (4, 3)).save(path)
    logger = WandbLogger("run")
    loggers = [CSVLogger("run"), DummyLogger(), logger]
    epoch_loop = SimpleNamespace(_batches_that_stepped=3)
    fit_loop = SimpleNamespace(epoch_loop=epoch_loop)
    log_image(SimpleNamespace(loggers=loggers, fit_loop=fit_loop), "figure", path)
    logger.finish()
    (run,) = read("run")
    (row,) = run.history
    assert [row[f"figure.{key}"] for key in ("count", "width", "height")] == [1, 4, 3]
    assert row["trainer/global_step"] == 3
    assert not Path("run/metrics.csv").exists()


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_mode_is_respected_though_there_is_a_key(mode, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", mode)
    logger = WandbLogger("run")
    logger.log_config({"a": 1}, __file__)
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish()
    assert f"W&B: {mode} (as asked)" in capfd.readouterr().err
    assert len(read("run")) == (mode == "offline")


def test_two_trainings_in_one_process_are_two_runs(tmp_path):
    for name in ("one", "two"):  # nobody calls finish
        logger = WandbLogger(tmp_path / name)
        (tmp_path / "c.yaml").touch()
        logger.log_config({"name": name}, tmp_path / "c.yaml")
        logger.log_metrics({"a": 1.0}, 0)
    logger.finish()
    (one,), (two,) = read("one"), read("two")
    assert one.run["run_id"] != two.run["run_id"]
    assert [r.run["display_name"] for r in (one, two)] == ["one", "two"]
    assert [r.config["name"] for r in (one, two)] == ["one", "two"]
    assert [len(r.history) for r in (one, two)] == [1, 1]


def test_training_goes_on_when_wandb_dies(tmp_path, capfd):
    logger = WandbLogger("run")
    logger.log_metrics({"a": 1.0}, 0)
    children = ["pgrep", "-P", str(os.getpid()), "wandb-core"]
    pid = int(subprocess.run(children, capture_output=True).stdout)
    os.kill(pid, signal.SIGKILL)
    errors = [""]

    def has_noticed() -> bool:
        logger.log_metrics({"a": 1.0}, len(errors))
        errors.append(capfd.readouterr().err)
        return "WandbLogger has stopped recording" in errors[-1]

    wait_for(has_noticed)
    assert not has_noticed()  # once is enough
    logger.finalize("success")
    logger.finish()
    errors.append(capfd.readouterr().err)
    assert "".join(errors).count("WandbLogger has stopped recording") == 1
    with suppress(ConnectionError):
        wandb.teardown()


def test_a_process_of_rank_1_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    table, logger = CSVLogger("run"), WandbLogger("run")
    logger.log_config({}, "config.yaml")
    assert table.rewind(0) is None
    for either in (table, logger):
        either.log_metrics({"a": 1.0}, 0)
        either.finalize("success")
    logger.experiment.log({"a": 1.0})
    logger.finish()
    assert logger.look == ""
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


# -------------------------------------------------------------------------- resumed, and the server


def curve(history, key):
    return [(row["trainer/global_step"], row[key]) for row in history if key in row]


def resumed_training(folder):
    """A training that is killed in its second epoch and resumed, as two processes would do it."""
    train([CSVLogger(folder), WandbLogger(folder)], kill=17)
    wandb.finish()
    last = f"{folder}/checkpoints/last.ckpt"
    trainer = train([CSVLogger(folder), WandbLogger(folder)], ckpt_path=last)
    trainer.test(ckpt_path="best", verbose=False)
    return trainer.loggers[1]


def check_resumed(history, folder):
    """`history` has what metrics.csv has, on the optimizer step, once."""
    for key in ("train/loss_step", "train/loss_epoch", "val/loss", "lr-SGD", "test/loss"):
        expected = [(int(r["step"]), float(r[key])) for r in lines(folder) if r[key]]
        assert curve(history, key) == expected
    assert len(curve(history, "train/loss_step")) == 30
    internal = [row["_step"] for row in history]
    assert internal == sorted(set(internal))


def test_a_resumed_run_keeps_its_id_and_sync_makes_one_run_of_it(monkeypatch, capfd):
    resumed_training("run").finish()
    first, second = read("run")
    assert first.run["run_id"] == second.run["run_id"]
    assert not {"from_the_module"} & (first.config.keys() | second.config.keys())
    err = capfd.readouterr().err
    assert "step" not in err.lower()
    command = re.findall(r"Send later: (.*)", err)
    assert command == ["wandb sync run/wandb", "WANDB_RESUME=allow wandb sync run/wandb"]

    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    subprocess.run(command[1], shell=True, check=True, timeout=600, capture_output=True)
    assert list(server.history) == [first.run["run_id"]]
    check_resumed(server.history[first.run["run_id"]], "run")


def test_a_resumed_run_online_is_one_run_and_its_key_is_in_no_file(monkeypatch, capfd):
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = resumed_training("run")
    assert logger.look.startswith(f"{server.url}/me/anneal/runs/")
    Path("config.yaml").touch()
    logger.log_config({}, "config.yaml")
    logger.finish()
    ((run, history),) = server.history.items()
    assert {r.run["run_id"] for r in read("run")} == {run}
    check_resumed(history, "run")
    assert all(KEY.encode() not in f.read_bytes() for f in Path().rglob("*") if f.is_file())


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="lists processes by /proc")
def test_the_key_is_in_no_output_no_file_and_no_list_of_processes(tmp_path):
    server = Server()
    online = {"WANDB_MODE": "online", "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    run = Training(tmp_path, "fit", "--config=small.yaml", "--run_name=r", **online)
    commands = set()
    while run.process.is_alive():
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                commands.add((process / "cmdline").read_bytes())
        time.sleep(0.05)
    assert KEY not in run.finish()
    assert len(server.history) == 1
    assert any(b"wandb-core" in command for command in commands)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in text for text in (*commands, *written))


def test_a_run_that_goes_on_online_says_how_to_send_its_offline_part(monkeypatch, capfd):
    logger = WandbLogger("run")
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish()
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()
    logger = WandbLogger("run")
    _ = logger.experiment
    logger.finish()
    assert logger.version in server.history
    assert "to send it: WANDB_RESUME=allow wandb sync run/wandb" in capfd.readouterr().err


@pytest.mark.parametrize("trouble", ["closed", "silent", "hang", "500", "refuse"])
def test_training_starts_offline_where_the_server_is_no_use(trouble, monkeypatch, capfd):
    monkeypatch.setattr(wandb_module, "ANSWER_SECONDS", 1.0)
    listener = socket.create_server(("127.0.0.1", 0))  # accepts and never answers
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    if trouble == "closed":
        listener.close()
    elif trouble != "silent":
        url = Server(trouble).url
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    start = idle_time()
    logger = WandbLogger("run")
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish()
    assert idle_time() - start < 10
    err = capfd.readouterr().err
    assert err.startswith("W&B: offline (")
    assert url in err
    assert "key is not known" in err or trouble != "refuse"
    assert len(err.splitlines()) == 1
    (run,) = read("run")
    assert len(run.history) == 1
    listener.close()


def test_a_key_that_can_not_be_one_is_said(monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    WandbLogger("run").finish()
    logger = WandbLogger("run")
    _ = logger.experiment
    logger.finish()
    assert "WANDB_API_KEY" in capfd.readouterr().err


def test_the_end_of_a_run_does_not_wait_for_a_server_that_went_away(monkeypatch, capfd):
    monkeypatch.setattr(wandb_module, "FINISH_SECONDS", 1.0)
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = WandbLogger("run")
    _ = logger.experiment
    server.trouble = "hang"
    monkeypatch.setattr(wandb_module, "INIT_SECONDS", 1.0)
    logger.log_metrics({"a": 1.0}, 0)
    start = idle_time()
    logger.finalize("success")
    logger.finish()
    assert idle_time() - start < 10
    err = capfd.readouterr().err
    assert "Send later: wandb sync --include-online" in err


def test_a_run_that_the_server_refuses_at_its_start_leaves_one_recording(monkeypatch, capfd):
    server = Server()
    monkeypatch.setattr(server, "answer", lambda query, variables: {}, raising=True)
    monkeypatch.setattr(wandb_module, "INIT_SECONDS", 2.0)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = WandbLogger("run")
    logger.log_metrics({"a": 1.0}, 0)
    logger.finish()
    assert "W&B: offline (" in capfd.readouterr().err
    (run,) = read("run")
    assert len(run.history) == 1


# --------------------------------------------------------------------------------------- the code


def test_code_version_is_the_commit_and_whether_the_tree_is_dirty(tmp_path, monkeypatch):
    module = tmp_path / "clone/loggers.py"
    module.parent.mkdir()
    module.touch()
    monkeypatch.setattr(system, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert code_version() == {"commit": None, "dirty": None}

    def git(*args):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", *who, *args]
        return subprocess.run(command, cwd=module.parent, check=True, capture_output=True).stdout

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD").decode().strip()
    assert code_version() == {"commit": commit, "dirty": False}
    module.write_text("changed")
    assert code_version() == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert code_version() == {"commit": None, "dirty": None}
