"""Two processes of one training: if one fails both end, and its reason is the last thing shown."""

import os
import re
import socket
from pathlib import Path

import pytest
from helpers import idle_time
from launch import NEW_INTERPRETER, Training
from test_processes import column
from test_trust import _processes_in_group

from anneal import testing as photos
from anneal.data.sampler import make_generator
from anneal.vision.index import ImageFolder

FIT = ("fit", "--config=small.yaml", "--run_name=r")
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")


def failing(rank: int, how: str) -> tuple[str, ...]:
    callback = "--trainer.callbacks"
    return (
        f"{callback}=ranks.Fail",
        f"{callback}.rank={rank}",
        f"{callback}.how={how}",
    )


def ends(folder: Path, *args: str, **env: str) -> tuple[int, list[str]]:
    """Exit status and what was shown by a training after which no process is left."""
    run = Training(folder, *FIT, *TWO, *args, **env)
    status, _ = run.end()
    assert not _processes_in_group(run.process.pid)
    return status, run.log.read_text().splitlines()


@pytest.mark.parametrize(
    ("rank", "how", "status", "shown"),
    [
        (1, "memory", 1, "error: out of memory: lower data.batch_size"),
        (0, "bug", 1, "RuntimeError: shapes 3 and 4"),
        (1, "late", 1, "error: picture.jpg can't be read"),
        (1, "killed", 137, "error: process 1 was killed by SIGKILL"),
        (0, "killed", -9, "error: the process that has started this one is gone"),
    ],
)
def test_one_process_fails_and_all_end_with_its_reason_as_the_last_line(
    tmp_path, rank, how, status, shown
):
    found, lines = ends(tmp_path, *failing(rank, how))
    assert idle_time() - float((tmp_path / "failed").read_text()) < 30
    assert found == status, lines
    if how == "bug":  # the line under a traceback
        assert lines.pop().startswith("to repeat this step: python train.py replay ")
    assert lines[-1].startswith(shown), lines
    assert sum(line.startswith(shown) for line in lines) == 1
    assert sum("Traceback" in line for line in lines) <= (how == "bug")


def test_a_picture_that_only_the_second_process_reads_is_the_last_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = photos.image_folder(tmp_path / "data", train=4, val=2)
    pictures = ImageFolder.splits(root)["train"]
    # The second place of the first epoch's order is the second process's.
    bad = Path(pictures.path(int(pictures.order(make_generator(0, 0))[1])))
    bad.write_bytes(bad.read_bytes()[:400])
    (tmp_path / "photos.yaml").write_text(PHOTOS)
    status, lines = ends(tmp_path, "--config=photos.yaml", **NEW_INTERPRETER)
    assert status == 1
    assert lines[-1].startswith(f"error: data/train/{bad.parent.name}/{bad.name} can't be read")


PHOTOS = """
model: {class_path: ImageClassifier, init_args: {arch: resnet18, width: 8}}
data:
  class_path: ImageFolderDataModule
  init_args:
    {root: data, batch_size: 2, num_workers: 0, train_size: 24, val_resize: 28, val_size: 24}
"""


@pytest.mark.parametrize(
    ("rank", "how", "shown"),
    [
        (1, "unreadable", "traceback : error: picture.jpg can't be read"),
        (0, "bug", "RuntimeError: shapes 3 and 4"),
        (1, "killed", "traceback : Signal 9 (SIGKILL) received by PID"),
    ],
)
def test_torchrun_shows_the_reason_of_the_process_that_failed(tmp_path, rank, how, shown):
    two = ("--standalone", "--nproc_per_node=2")
    status, output = Training(tmp_path, *FIT, *TWO, *failing(rank, how), torchrun=two).end()
    assert status == 1
    *_, block = output.partition("Root Cause (first observed failure):")
    assert f"rank      : {rank} " in block
    assert shown in block, output
    places = Path("/proc").glob("[0-9]*/cwd")
    assert str(tmp_path) not in map(os.path.realpath, places)  # no process is left


def test_a_port_that_is_taken_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, lines = ends(tmp_path, MASTER_PORT=port)
    assert status == 2
    assert lines[-1].startswith(f"error: MASTER_PORT={port}: another program has this port")
    assert not any("Traceback" in line for line in lines)


def test_a_worker_that_is_killed_is_one_line(run, tmp_path, capsys):
    photos.image_folder(tmp_path / "data", train=4, val=2)
    (tmp_path / "photos.yaml").write_text(PHOTOS)
    worker = ("--data.num_workers=1", "--data.augment=tiny.BusError")
    with pytest.raises(SystemExit) as e:
        run("fit", "--config=small.yaml", "--config=photos.yaml", *worker)
    assert e.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    how = r"(killed by signal: Bus error|exited unexpectedly)\."  # as torch gets to know of it
    assert re.match(f"error: a process that reads the data: {how} Is the memory full", error)
    assert "--shm-size" in error


def test_an_odd_number_of_samples_ends_on_two_processes(tmp_path):
    """37 samples in batches of 8 and two processes: 16, 16 and 5."""
    uneven = ("--data.batch_size=8", "--data.val_size=3963", "--trainer.limit_train_batches=1.0")
    run = Training(tmp_path, *FIT, *TWO, *uneven, "--trainer.max_epochs=1")
    run.finish()
    assert column(tmp_path / "runs" / "r", "samples") == {1: 32, 2: 37}


def test_each_process_draws_its_own_numbers_and_the_same_in_every_run(tmp_path):
    drops = ("--trainer.callbacks=ranks.Dropped", "--trainer.max_epochs=1")
    drawn = []
    for name in ("a", "b"):
        Training(tmp_path, *FIT[:2], f"--run_name={name}", *TWO, *drops).finish()
        files = [tmp_path / "runs" / name / f"drawn-{rank}" for rank in (0, 1)]
        drawn.append([file.read_text().splitlines() for file in files])
    assert drawn[0] == drawn[1]
    assert len({*drawn[0][0], *drawn[0][1]}) == 8  # four steps in two processes
