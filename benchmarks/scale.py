"""Whether a long run stays as fast and as small as it began: memory and time of a step.

100,000 steps in 100 epochs of a linear classifier with 1,000 classes, by the command line with all
it does by default (bar, CSV, W&B offline, checkpoints), on one thread. A step is timed in seconds
of the processor, so that other programs disturb it little. Memory is that which the process has for
itself (Linux). The report is made of the run's metrics.csv as it was after a tenth
and at the end.

    python benchmarks/scale.py
    python benchmarks/scale.py --steps=20000
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from index_size import own_megabytes
from torch import Tensor, nn
from training import TRAIN, yours
from turns import Row, hand_over

from anneal.data.in_memory import InMemoryBatches

CLASSES, EPOCHS, BATCH, SIDE = 1000, 100, 8, 8
WINDOW = 5  # epochs whose median counts
CONFIG = """
trainer: {{max_epochs: {epochs}, accelerator: cpu, callbacks: {{class_path: scale.Watch}}}}
model:
  class_path: scale.Linear
  init_args:
    num_classes: null
    optimizer: {{class_path: SGD, init_args: {{lr: 0.01, momentum: 0.9}}}}
    schedule: {{scheduler: CosineAnnealingLR}}
data: {{class_path: scale.Noise, init_args: {{steps: {steps}}}}}
"""
REPORT = """
import resource, sys
from anneal.report.page import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class Noise(pl.LightningDataModule):
    """Random pictures of 8 x 8 pixels in 1,000 classes.

    Args:
        steps: Batches of 8 in an epoch.
    """

    def __init__(self, steps: int = 1000) -> None:
        super().__init__()
        self.class_names = [f"class {i}" for i in range(CLASSES)]
        self.train = _noise(BATCH * steps)
        self.val = _noise(CLASSES)

    def train_dataloader(self) -> InMemoryBatches:
        return InMemoryBatches(*self.train, BATCH, seed=0)

    def val_dataloader(self) -> InMemoryBatches:
        return InMemoryBatches(*self.val, 200)


class Linear(yours.Classifier):
    """From 64 pixels to 1,000 classes."""

    def build(self) -> None:
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, self.num_classes))


class Watch(pl.Callback):
    """Writes watch.json: microseconds of a step and megabytes of the process, by epoch."""

    def __init__(self) -> None:
        self.microseconds: list[float] = []
        self.megabytes: list[float] = []
        self.start = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        last = trainer.num_training_batches - 1
        if i == 0:
            self.start = time.process_time()
        if i == last:
            self.microseconds.append((time.process_time() - self.start) / last * 1e6)
            self.megabytes.append(own_megabytes())

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        Path("watch.json").write_text(json.dumps([self.microseconds, self.megabytes]))


def _noise(n: int) -> tuple[Tensor, Tensor]:
    images = torch.randint(256, (n, 1, SIDE, SIDE), dtype=torch.uint8)
    return images, torch.arange(n) % CLASSES


def report(folder: Path) -> tuple[float, float]:
    """Seconds of a report on the run, and its megabytes at the most, with the interpreter's."""
    start = time.perf_counter()
    shown = subprocess.run(
        [sys.executable, "-c", REPORT, str(folder)],
        cwd=folder.parent,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return time.perf_counter() - start, int(shown.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    args = parser.parse_args()
    steps = args.steps // EPOCHS
    os.environ |= {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "long.yaml").write_text(CONFIG.format(epochs=EPOCHS, steps=steps))
        command = [sys.executable, TRAIN, "--config=long.yaml", "--run_name=long"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        times, memory = json.loads((folder / "watch.json").read_text())
        tenth = EPOCHS // 10
        early, late = slice(tenth - WINDOW, tenth), slice(EPOCHS - WINDOW, EPOCHS)
        run = folder / "runs" / "long"
        table = pd.read_csv(run / "metrics.csv")
        short = folder / "runs" / "tenth"
        short.mkdir()
        table[table["step"] < tenth * steps].to_csv(short / "metrics.csv", index=False)
        (short / "config.yaml").write_text((run / "config.yaml").read_text())
        sizes = [(f / "metrics.csv").stat().st_size / 2**20 for f in (short, run)]
        reports = [report(f) for f in (short, run)]
    pairs = {
        "a step, µs": [statistics.median(times[part]) for part in (early, late)],
        "memory of the training, MB": [statistics.median(memory[part]) for part in (early, late)],
        "metrics.csv, MB": sizes,
        "a report, s": [seconds for seconds, _ in reports],
        "memory of the report, MB": [megabytes for _, megabytes in reports],
    }
    rows = []
    for what, (then, end) in pairs.items():
        cells = {"at 10 %": f"{then:,.1f}", "at the end": f"{end:,.1f}"}
        rows.append(Row(what, end / then, cells | {"ratio": f"{end / then:.2f}"}))
    hand_over(rows)


if __name__ == "__main__":
    main()
