"""Seconds until the command line answers, beside a stock LightningCLI and the imports alone.

Each command runs in turns with its peer, several times, in a process of its own. The peer of an
answer is a stock LightningCLI; that of what goes further, the import of torch, torchvision and
Lightning.

    python benchmarks/startup.py
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from training import TRAIN
from turns import Row, hand_over, in_turns, ratio, seconds

FLOOR = [sys.executable, "-c", "import torch, torchvision, lightning.pytorch"]
STOCK = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel
LightningCLI(DemoModel, BoringDataModule)
"""
FIRST_STEP = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.logger=false"]


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
        rows = []
        for name, (command, other, title) in cases.items():
            seconds(command, folder, check=False)  # the first reads from the disk
            ways = {
                "ours": lambda command=command: seconds(command, folder, check=False),
                "peer": lambda other=other: seconds(other, folder, check=False),
            }
            found = in_turns(ways, args.times)
            value, text = ratio(found["ours"], found["peer"])
            here, peer = (f"{statistics.median(found[who]):.2f} s" for who in ("ours", "peer"))
            rows.append(Row(name, value, {"here": here, "peer": f"{peer}, {title}", "ratio": text}))
    hand_over(rows)


if __name__ == "__main__":
    main()
