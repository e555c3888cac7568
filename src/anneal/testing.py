"""What the tests of a project use: a command run in an empty folder, and small photos.

A pytest plugin, named in pyproject.toml: no account, no progress bars, one thread, and for each
test the same random numbers.
"""

import csv
import gc
import io
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

# Before torch and numpy are imported, below.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["WANDB_MODE"] = "disabled"  # tests that look at W&B say offline
os.environ["OMP_NUM_THREADS"] = "1"  # pytest -n 2 on two cores
os.environ.pop("WANDB_API_KEY", None)
# Workers that give way to whatever computes would wait for the tests of other processes.
vars(os)["sched_setscheduler"] = lambda *_: None
gc.disable()  # until all is imported

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(1)
QUIET = ("--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false")
COLORS = {"n01": (200, 40, 40), "n02": (40, 200, 40), "n03": (40, 40, 200)}


def pytest_collection_finish() -> None:
    """Leave what is there to stay out of the search for garbage: a sixth of the tests' time."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any) -> None:
    """Begin each fixture with random numbers of its own, whichever test asks for it first."""
    _seed(crc32(fixturedef.argname.encode()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Begin each test with the same random numbers, whichever tests this process has run."""
    _seed(0)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def main(args: list[str]) -> Any:
    """Run the words of a command line in this process, with the classes that train.py names."""
    import train
    from anneal.cli.entry import main as run

    return run(train.fit, train.PACKAGES, args)


@pytest.fixture(autouse=True)
def new_process() -> Iterator[None]:
    """Begin as a new process does: its signals, Lightning's log, and no seed for workers."""
    new: dict[int, Any] = dict.fromkeys((signal.SIGTERM, signal.SIGUSR1), signal.SIG_DFL)
    new[signal.SIGINT] = signal.default_int_handler
    before = {number: signal.signal(number, handler) for number, handler in new.items()}
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Leave the figures of trainings blank: to draw them takes longer than the training."""
    for what in (
        "tasks.test_report.draw_confusion",
        "tasks.test_report.draw_calibration",
        "tasks.test_report.draw_top_losses",
        "report.curves.still",
    ):
        patch.setattr(f"anneal.{what}", lambda *_: Figure((0.1, 0.1)))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command in this process, in an empty folder, without bars, tables and figures."""
    monkeypatch.chdir(tmp_path)
    draw_nothing(monkeypatch)

    def run(*args: str) -> Any:
        quiet = QUIET if args[0] in ("fit", "validate", "test", "predict") else ()
        return main([*args, *quiet])

    return run


def logged(folder: Path) -> list[dict[str, str]]:
    """Return the lines of a run's metrics.csv, without times, which no two runs share."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert all(float(row.pop("time")) >= 0 for row in rows)
    assert all(0 <= float(row.pop("data/wait", 0) or 0) <= 1 for row in rows)
    return rows


def wait_for(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    """Wait until a condition holds; after so many seconds, more than a busy machine takes, fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def picture(
    color: tuple[int, int, int] = (200, 40, 40), seed: int = 0, size: tuple[int, int] = (40, 32)
) -> Image.Image:
    """Return an image of one colour with noise, and a light bar along its top."""
    noise = np.random.default_rng(seed).integers(-25, 26, (size[1], size[0], 3))
    pixels = np.clip(np.array(color) + noise, 0, 255)
    pixels[: size[1] // 5] = np.minimum(pixels[: size[1] // 5] + 50, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    """Save an image, as a JPEG if nothing else is said, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, options.pop("format", "JPEG"), **{"quality": 90, **options})
    return path


def encoded(image: Image.Image, image_format: str = "JPEG", **options: Any) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def image_folder(
    root: Path, train: int = 8, val: int = 4, colors: dict[str, tuple[int, int, int]] = COLORS
) -> Path:
    """Write class folders in train and val, with so many small images in each class."""
    for split, n in (("train", train), ("val", val)):
        for number, (name, color) in enumerate(colors.items()):
            for i in range(n):
                image = picture(color, seed=1000 * number + i + 500 * (split == "val"))
                save(image, root / split / name / f"{name}_{i:03d}.JPEG")
    return root
