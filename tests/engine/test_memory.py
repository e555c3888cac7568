"""When memory runs out: what took it, and a batch size that fits in fact."""

import os
import resource
import sys
from pathlib import Path

import pytest
import torch
from helpers import SMALL
from launch import FORKS, QUIET

from anneal import testing as photos
from anneal.cli.failures import explain, is_out_of_memory
from anneal.testing import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
DIGITS = (
    "--config=small.yaml",
    "--model=MNISTConvNet",
    "--model.width=16",
    "--model.depth=2",
    "--trainer.limit_train_batches=1",
)


def command(log: Path, room: float, words: tuple[str, ...]) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + int(room * 1e9), resource.RLIM_INFINITY))
    main([*words, *QUIET])


def limited(room: float, *words: str) -> tuple[int, str]:
    """Exit status and last line of a command that may take so many GB more than Python has now."""
    process = FORKS.Process(target=command, args=(log := Path("log"), room, words))
    process.start()
    process.join()
    return process.exitcode, log.read_text().strip().splitlines()[-1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "small.yaml").write_text(SMALL)


def test_a_training_says_which_batch_fits_and_that_one_does(folder):
    words = ("fit", *DIGITS)
    status, line = limited(0.5, *words, "--data.batch_size=3600")
    assert status == 1
    assert line.startswith("error: out of memory: weights 0.0002")
    assert ", gradients 0.0002" in line
    assert ", optimizer state 0.0002" in line
    assert "activations of 3600 x 1 x 28 x 28 1." in line
    *_, batch, steps = line.split()
    sizes = [int(flag.partition("=")[2]) for flag in (batch, steps)]
    assert batch.startswith("--data.batch_size=")
    assert steps.startswith("--trainer.accumulate_grad_batches=")
    assert sizes[0] * sizes[1] == 3600
    assert sizes[0] >= 100  # and not one at a time
    status, line = limited(0.5, *words, batch, steps)
    assert status == 0, line


PHOTOS = """
model:
  class_path: ImageClassifier
  init_args: {arch: resnet18, width: 16, optimizer: {class_path: SGD, init_args: {lr: 0.01}}}
data:
  class_path: ImageFolderDataModule
  init_args: {root: data, num_workers: 0, train_size: 32, val_resize: 224, val_size: 224}
"""


def test_an_evaluation_says_which_batch_fits_and_that_one_does(folder, tmp_path):
    photos.image_folder(tmp_path / "data", train=70, val=70)
    (tmp_path / "photos.yaml").write_text(PHOTOS)
    limits = "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"
    words = (
        "fit",
        "--config=small.yaml",
        "--config=photos.yaml",
        *limits,
        "--run_name=r",
        "--resume=auto",
    )
    status, line = limited(0.3, *words, "--data.batch_size=210")
    assert status == 1
    assert ", optimizer state 0.00281 GB, activations of 210 x 3 x 224 x 224 0." in line
    *_, batch, steps = line.split()
    assert steps.startswith("--trainer.accumulate_grad_batches=")
    status, line = limited(0.3, *words, batch, steps)
    assert status == 0, line
    words = ("validate", "--ckpt_path=last")
    status, line = limited(0.3, *words, "--data.batch_size=210")
    assert status == 1
    assert line.startswith("error: out of memory: weights 0.00282 GB, activations of 210 x 3 x 224")
    assert line.split()[-1].startswith("--data.batch_size=")
    status, line = limited(0.3, *words, line.split()[-1])
    assert status == 0, line


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_every_kind_of_full_memory_is_known(error):
    assert is_out_of_memory(error)
    assert explain(error).startswith("out of memory: lower data.batch_size or the model's size (")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("out of memory")])
def test_other_errors_are_none_of_memory(error):
    assert not is_out_of_memory(error)
