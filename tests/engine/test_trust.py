"""A training that is stopped, killed or starved loses nothing and says what happened."""

import errno
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from launch import Training, script, train
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from test_schedule import PLATEAU
from tiny import Tiny, loader

from anneal.callbacks.checkpoint import Checkpoint
from anneal.callbacks.graceful_shutdown import GracefulShutdown
from anneal.callbacks.seed_every_epoch import SeedEveryEpoch
from anneal.data.in_memory import InMemoryBatches
from anneal.errors import UserError
from anneal.optim.schedule import Schedule
from anneal.progress import Clock, resume_position
from anneal.runs.checkpoint_io import AtomicCheckpointIO
from anneal.testing import logged

LONG = ("fit", "--config=small.yaml", "--trainer.max_epochs=4", "--trainer.limit_train_batches=10")
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=9999")


def last(folder: Path, run: str) -> dict:
    return torch.load(folder / "runs" / run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_run(folder: Path, found: str, expected: str) -> None:
    a, b = last(folder, found), last(folder, expected)
    assert all(torch.equal(t, b["state_dict"][k]) for k, t in a["state_dict"].items())
    assert repr(a["optimizer_states"]) == repr(b["optimizer_states"])
    assert logged(folder / "runs" / found) == logged(folder / "runs" / expected)


# ---- signals


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    train(folder, *LONG, "--run_name=whole")
    return folder


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_saves_that_moment_and_goes_on_bit_for_bit(
    undisturbed, number, status
):
    name = f"stopped-{number}"
    run = Training.held_at(15, undisturbed, *LONG, f"--run_name={name}")
    run.send(number)
    run.go_on()
    code, output = run.end()
    assert code == status
    assert last(undisturbed, name)["global_step"] == 16
    assert f"stopped by {number.name}: saved" in output.splitlines()[-1]
    assert "at step 16" in output.splitlines()[-1]
    assert "Traceback" not in output
    train(undisturbed, *LONG, f"--run_name={name}", "--resume=auto")
    assert_same_run(undisturbed, name, "whole")


def test_a_second_signal_ends_at_once_and_leaves_whole_files(undisturbed):
    save = ("--run_name=twice", "--checkpoint.every_n_train_steps=1")
    run = Training.held_at(3, undisturbed, *LONG, *save)
    run.send(signal.SIGTERM)
    assert run.process.is_alive()
    run.send(signal.SIGTERM)
    assert run.end()[0] == 143  # though it is held up
    run.go_on()
    assert last(undisturbed, "twice")["global_step"] == 3
    for path in (undisturbed / "runs" / "twice" / "checkpoints").glob("*.ckpt"):
        assert "state_dict" in torch.load(path, weights_only=True)


def test_a_validation_is_not_waited_for_and_made_by_the_resumed_run(run, monkeypatch, capsys):
    fit = ("fit", "--config=small.yaml", "--trainer.logger=true", "--trainer.limit_val_batches=8")
    run(*fit, "--run_name=whole")
    validated = []

    class Signal(pl.Callback):
        def on_validation_batch_start(self, trainer, *args) -> None:
            if trainer.sanity_checking:
                return
            if not validated:
                os.kill(os.getpid(), signal.SIGTERM)
            validated.append(trainer.global_step)

    with monkeypatch.context() as patch:
        patch.setattr("anneal.cli.run.SeedEveryEpoch", Signal)
        with pytest.raises(SystemExit) as e:
            run(*fit, "--run_name=told")
    assert e.value.code == 143
    assert validated == [4]
    assert "last.ckpt is from before this validation" in capsys.readouterr().err
    run(*fit, "--run_name=told", "--resume=auto")
    assert_same_run(Path(), "told", "whole")


def test_two_processes_stop_at_the_same_step_when_one_is_told_to(undisturbed):
    run = Training.held_at(20, undisturbed, *LONG, *TWO, "--run_name=two")
    run.send(signal.SIGTERM)
    run.go_on()
    code, output = run.end()
    assert code == 143
    assert output.count("stopped by SIGTERM: saved") == 1
    assert not _processes_in_group(run.process.pid)


def test_one_that_is_left_alone_once_all_is_saved_says_so(capsys):
    """The other process may be gone before this one has heard that both have saved."""
    callback = GracefulShutdown(Path("run"))
    callback._told, callback._saved = signal.SIGTERM, True
    lost = torch.distributed.DistNetworkError("Connection closed by peer")
    with pytest.raises(SystemExit) as end:
        callback.on_exception(SimpleNamespace(is_global_zero=True), None, lost)
    assert end.value.code == 143
    assert capsys.readouterr().err == "stopped by SIGTERM: saved run/last.ckpt\n"


def test_processes_whose_steps_are_long_ask_each_other_by_time(undisturbed):
    """A step takes 1.2 s: told in one, they end after it, not ten steps later."""
    steps = ("--trainer.accumulate_grad_batches=4", "--trainer.limit_train_batches=400")
    slow = ("--trainer.callbacks=ranks.Slow", "--run_name=slow")
    run = Training.held_at(2, undisturbed, *LONG, *TWO, *steps, *slow)
    run.send(signal.SIGTERM)
    run.go_on()
    code, output = run.end()
    assert code == 143, output
    assert "stopped by SIGTERM: saved" in output
    assert last(undisturbed, "slow")["global_step"] == 3


def _processes_in_group(group: int) -> list[str]:
    deadline = time.monotonic() + 300
    while True:
        listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True)
        left = [
            line
            for line in listed.stdout.splitlines()
            if line.split()[0] == str(group) and not line.split()[1].startswith("Z")
        ]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


# ---- kills


def test_kills_at_random_moments_and_in_a_save_lose_nothing(tmp_path):
    path = Path(__file__).parents[2] / "benchmarks" / "kills.py"
    assert "nothing differs" in script(tmp_path, path, "--kills=4", "--only=plateau")


class Draws(Tiny):
    """Its loss depends on random numbers, and its validation on the weights."""

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]) + torch.rand(1)).square().mean()

    def validation_step(self, batch, batch_idx):
        loss = self.net(batch[0]).square().mean()
        self.log_dict({"val/loss": loss, "val/acc": -loss}, batch_size=1)


class Die(pl.Callback):
    """Ends the training without warning when a hook is called for the n-th time, from 0."""

    def __init__(self, hook: str, n: int) -> None:
        self.n = n
        setattr(self, hook, self._count)

    def _count(self, trainer, *args) -> None:
        self.n -= not trainer.sanity_checking
        if self.n < 0:
            raise OSError("crash")


def train_three_epochs(folder, *callbacks, ckpt_path=None, batch_size=2) -> Draws:
    pl.seed_everything(0, verbose=False)
    module = Draws(partial(torch.optim.SGD, lr=0.1, momentum=0.9), Schedule(PLATEAU))
    checkpoint = Checkpoint("val/loss", dirpath=folder, every_n_train_steps=1)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, SeedEveryEpoch(), Clock(), checkpoint],
    )
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    data = InMemoryBatches(
        x, x[:, 0], batch_size, seed=0, position=partial(resume_position, trainer)
    )
    trainer.fit(module, data, loader(2), ckpt_path=ckpt_path, weights_only=True)
    return module


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory) -> list[torch.Tensor]:
    return list(train_three_epochs(tmp_path_factory.mktemp("whole")).parameters())


@pytest.mark.parametrize(
    ("hook", "n"),
    [
        *(("on_train_batch_start", n) for n in range(1, 24)),
        *(("on_validation_start", n) for n in range(3)),
        *(("on_validation_end", n) for n in range(3)),
        *(("on_train_epoch_end", n) for n in range(3)),
    ],
)
def test_a_run_that_dies_anywhere_goes_on_bit_for_bit(tmp_path, never_stopped, hook, n):
    with pytest.raises(OSError, match="crash"):
        train_three_epochs(tmp_path, Die(hook, n))
    found = train_three_epochs(tmp_path, ckpt_path=tmp_path / "last.ckpt").parameters()
    assert all(torch.equal(a, b) for a, b in zip(found, never_stopped, strict=True))


@pytest.mark.parametrize(("of", "every", "last"), [("step", 1, 3), ("step", 0, 6), ("epoch", 0, 4)])
def test_what_was_saved_but_not_logged_is_logged_when_the_run_goes_on(
    run, monkeypatch, of, every, last
):
    often = ("--trainer.log_every_n_steps=1", f"--checkpoint.every_n_train_steps={every}")
    fit = ("fit", "--config=small.yaml", "--trainer.logger=true", *often)
    run(*fit, "--run_name=whole")
    name = f"update_train_{of}_metrics"
    update = getattr(_LoggerConnector, name)

    def die(connector):
        if connector.trainer.global_step == last:
            raise OSError("crash")
        update(connector)

    with monkeypatch.context() as patch:
        patch.setattr(_LoggerConnector, name, die)
        with pytest.raises(OSError, match="crash"):
            run(*fit, "--run_name=died")
    run("fit", "--ckpt_path=last", "--run=died")
    assert logged(Path("runs/died")) == logged(Path("runs/whole"))


# ---- other batches than before


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
def test_a_run_that_goes_on_with_other_batches_sees_each_sample_once(tmp_path, batch_size):
    """It stops after 6 of 16 samples of the second epoch."""
    seen: list[list[float]] = [[], [], []]

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen[trainer.current_epoch] += batch[0][:, 0].tolist()

    with pytest.raises(OSError, match="crash"):
        train_three_epochs(tmp_path, Watch(), Die("on_train_batch_start", 11))
    last = tmp_path / "last.ckpt"
    module = train_three_epochs(tmp_path, Watch(), ckpt_path=last, batch_size=batch_size)
    assert [len(set(epoch)) for epoch in seen] == [16, 16, 16]
    assert [len(epoch) for epoch in seen] == [16, 16, 16]
    assert module.validations == 3


# ---- files


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    saver = AtomicCheckpointIO()
    saver.save_checkpoint({"state_dict": {"w": torch.zeros(1000)}}, path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("anneal.system.os.fsync", full)
    with pytest.raises(UserError, match=r"can't save .*last.ckpt: No space left on device"):
        saver.save_checkpoint({"state_dict": {"w": torch.ones(1000)}}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert float(torch.load(path, weights_only=True)["state_dict"]["w"].sum()) == 0


def test_damaged_files_of_all_kinds_end_in_a_line(tmp_path):
    path = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
    assert script(tmp_path, path, "--files=10").count(" 0 wrong") == 5


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_ends_the_run_in_a_line_and_every_checkpoint_loads(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        run = Training(
            tmp_path,
            *("fit", "--config=small.yaml", "--trainer.max_epochs=60", "--model.width=32"),
            *("--checkpoint.save_top_k=-1", f"--trainer.default_root_dir={disk}"),
        )
        status, output = run.end()
        checkpoints = list(disk.rglob("*.ckpt"))
        assert len(checkpoints) > 1
        for path in checkpoints:
            assert "state_dict" in torch.load(path, weights_only=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert status == 1
    assert "No space left on device" in output.splitlines()[-1]
    assert "Traceback" not in output
