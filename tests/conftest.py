"""What all tests share: no account, no progress bars, a folder of their own."""

import csv
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["WANDB_MODE"] = "disabled"  # tests that look at W&B say offline
os.environ["OMP_NUM_THREADS"] = "1"  # pytest -n 2 on two cores
os.environ.pop("WANDB_API_KEY", None)

import pytest
import torch
from matplotlib.figure import Figure

torch.set_num_threads(1)
gc.disable()  # until all is imported


def pytest_collection_finish() -> None:
    """What is there to stay is left out of the search for garbage: a sixth of the tests' time."""
    gc.freeze()
    gc.enable()


def logged(folder: Path) -> list[dict[str, str]]:
    """The lines of a run's metrics.csv, without the time, which no two runs share."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert all(float(row.pop("time")) >= 0 for row in rows)
    return rows


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in this process, in an empty folder, on a small and fast recipe.

    Its pictures of a test are blank: to draw them takes longer than the training.
    """
    from anneal.cli import main

    for what in ("confusion", "mistakes"):
        monkeypatch.setattr(f"anneal.callbacks.test_pictures.draw_{what}", lambda *_: Figure())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)

    def run(*args: str):
        quick = ["--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false"]
        return main([*args, *(quick if args[0] in COMMANDS else [])])

    return run


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory) -> Path:
    """A folder of runs with `digits`, the last weights tested: to be copied, not changed."""
    from anneal.cli import main

    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(SMALL.replace("logger: false", "logger: null"))
    quiet = ["--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config=small.yaml", "--run_name=digits", *quiet])
    return folder / "runs"


COMMANDS = ("fit", "validate", "test", "predict")
SMALL = """
trainer:
  max_epochs: 2
  limit_train_batches: 4
  limit_val_batches: 2
  limit_test_batches: 2
  log_every_n_steps: 2
  accelerator: cpu
  logger: false
model:
  class_path: MLP
  init_args:
    width: 8
    depth: 1
    optimizer:
      class_path: SGD
      init_args: {lr: 0.1, momentum: 0.9}
data:
  class_path: MNISTDataModule
  init_args: {batch_size: 32, shift: 1, rotation: 5}
"""
