"""Seconds until a folder of photos is known as well as a plain loop knows it at its end.

plain_photos.py and configs/photos_resnet18.yaml, shortened, train in turns from the same seeds and
with all threads. Accuracies are those on the validation photos after the last epoch.

    python benchmarks/photos_time.py FOLDER
"""

import argparse
import re
import statistics
import subprocess
import sys
from pathlib import Path

import yaml
from training import ROOT, trained
from turns import Row, hand_over, ratio

from anneal.system import cores

PLAIN = ROOT / "benchmarks/plain_photos.py"
CONFIG = ROOT / "configs/photos_resnet18.yaml"
RECIPE = yaml.safe_load(CONFIG.read_text())
Ended = tuple[float, float]  # accuracy and seconds of a training


def plain(root: Path, seed: int) -> Ended:
    """How the plain loop ends."""
    command = [sys.executable, str(PLAIN), str(root), f"--seed={seed}"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"in ([\d.]+) s of training, val/acc ([\d.]+)", shown)
    assert found, shown
    return float(found[2]), float(found[1])


def ours(root: Path, seed: int, epochs: int) -> Ended:
    """How the recipe does; its pictures grow after the same part of the training."""
    grow = RECIPE["data"]["init_args"]["progressive"]["start_epoch"]
    grow = round(grow * epochs / RECIPE["trainer"]["max_epochs"])
    words = [
        *(f"--config={CONFIG}", f"--data.root={root}"),
        *(f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}"),
        *(f"--data.progressive.start_epoch={grow}", f"--data.progressive.end_epoch={grow + 1}"),
        f"--trainer.check_val_every_n_epoch={epochs}",
    ]
    found = trained(words, cores())
    return found.accuracy, found.seconds


def rows(ways: dict[str, list[Ended]], value: float, difference: str) -> list[Row]:
    """Accuracy and time of two ways, ours first; `value` and `difference` are of the accuracies."""
    (accuracies, seconds) = (
        {name: [run[i] for run in runs] for name, runs in ways.items()} for i in range(2)
    )
    faster, text = ratio(*seconds.values())
    reached = {name: f"{statistics.mean(each):.3f}" for name, each in accuracies.items()}
    took = {name: f"{statistics.median(each):.0f} s" for name, each in seconds.items()}
    column = "difference, ratio"
    return [
        Row("val/acc", value, {**reached, column: difference}),
        Row("training", faster, {**took, column: text}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with train/CLASS and val/CLASS")
    parser.add_argument("--epochs", type=int, default=24, help="of the recipe")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    root = args.folder.resolve()
    peer, here = [], []
    for seed in range(args.seeds):
        peer.append(plain(root, seed))
        here.append(ours(root, seed, args.epochs))
    ahead = statistics.mean(a - b for (a, _), (b, _) in zip(here, peer, strict=True))
    hand_over(rows({"here": here, "plain loop": peer}, ahead, f"{ahead:+.3f}"))


if __name__ == "__main__":
    main()
