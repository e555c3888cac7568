"""Seconds until the command line answers, beside a stock LightningCLI and the imports alone.

Each command runs in turns with its peer, several times, in a process of its own. The peer of an
answer is a stock LightningCLI; that of what goes further, the import of torch, torchvision and
Lightning, and what is measured is the difference. The training step is the first one of the default
recipe, with W&B offline.

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

IMPORTS = "import torch, torchvision, lightning.pytorch"
# To the end that a first step comes to: Python takes most of a second to clear up behind torch.
AT_ONCE = f"{IMPORTS}, os; os._exit(0)"
WANDB = f"{IMPORTS}, os, wandb; wandb.init(); os._exit(0)"
STOCK = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel
LightningCLI(DemoModel, BoringDataModule)
"""


def python(code: str) -> list[str]:
    """The command that runs it."""
    return [sys.executable, "-c", code]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    os.environ |= {"WANDB_MODE": "offline", "PYTHONPATH": str(Path(__file__).parent)}
    with tempfile.TemporaryDirectory() as folder:
        stock = str(Path(folder, "stock.py"))
        Path(stock).write_text(STOCK)
        own, peer = [sys.executable, TRAIN], [sys.executable, stock]
        step = [*own, "--trainer.callbacks+=first_step.FirstStep"]
        cases = {
            "--help": ([*own, "--help"], [*peer, "--help"], "stock LightningCLI"),
            "a wrong flag": (
                [*own, "--trainer.max_epoch=1"],
                [*peer, "fit", "--trainer.max_epoch=1"],
                "stock LightningCLI",
            ),
            "fit --help": ([*own, "fit", "--help"], [*peer, "fit", "--help"], "stock LightningCLI"),
            "--print_config": ([*own, "--print_config"], python(IMPORTS), "imports"),
            "the first training step": (step, python(AT_ONCE), "imports"),
            "the same, beside W&B alone": (step, python(WANDB), "imports and wandb.init"),
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
            if title.startswith("imports"):
                value = statistics.median(found["ours"]) - statistics.median(found["peer"])
                text = f"{text}, {value:+.2f} s"
            rows.append(Row(name, value, {"here": here, "peer": f"{peer}, {title}", "ratio": text}))
    hand_over(rows)


if __name__ == "__main__":
    main()
