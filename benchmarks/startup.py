"""Seconds until the command line answers, beside a stock LightningCLI and the imports alone.

Each command runs in turns with its peer, several times, in a process of its own. The peer of an
answer is a stock LightningCLI; that of what goes further, the import of torch, torchvision and
Lightning.

    python benchmarks/startup.py
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = str(Path(__file__).parents[1] / "train.py")
FLOOR = [sys.executable, "-c", "import torch, torchvision, lightning.pytorch"]
STOCK = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel
LightningCLI(DemoModel, BoringDataModule)
"""
FIRST_STEP = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.logger=false"]


def seconds(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as folder:
        stock = str(Path(folder, "stock.py"))
        Path(stock).write_text(STOCK)
        own, peer = [sys.executable, TRAIN], [sys.executable, stock]
        cases = {
            "--help": ([*own, "--help"], [*peer, "--help"], "stock LightningCLI"),
            "a wrong flag": (
                [*own, "--trainer.max_epoch=1"],
                [*peer, "fit", "--trainer.max_epoch=1"],
                "stock LightningCLI",
            ),
            "fit --help": ([*own, "fit", "--help"], [*peer, "fit", "--help"], "stock LightningCLI"),
            "--print_config": ([*own, "--print_config"], FLOOR, "imports"),
            "a training step": ([*own, *FIRST_STEP], FLOOR, "imports"),
        }
        for name, (command, other, title) in cases.items():
            seconds(command, folder)  # the first reads from the disk
            pairs = [(seconds(command, folder), seconds(other, folder)) for _ in range(args.times)]
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            print(f"{name:16} {ours:6.2f} s, {ratio:5.2f} of {theirs:.2f} s ({title})", flush=True)


if __name__ == "__main__":
    main()
