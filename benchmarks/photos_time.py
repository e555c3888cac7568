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

from training import ROOT, trained
from turns import Row, hand_over, ratio

from anneal.cores import cores

PLAIN = ROOT / "benchmarks/plain_photos.py"


def plain(root: Path, seed: int) -> tuple[float, float]:
    """Accuracy and seconds of the plain loop."""
    command = [sys.executable, str(PLAIN), str(root), f"--seed={seed}"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"in ([\d.]+) s of training, val/acc ([\d.]+)", shown)
    assert found, shown
    return float(found[2]), float(found[1])


def ours(root: Path, seed: int, epochs: int) -> tuple[float, float]:
    """The same of the recipe; its pictures grow over the same part of the training."""
    words = [
        *(f"--config={ROOT / 'configs/photos_resnet18.yaml'}", f"--data.root={root}"),
        *(f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}"),
        *(
            f"--data.progressive.start_epoch={epochs // 5}",
            f"--data.progressive.end_epoch={epochs}",
        ),
        f"--trainer.check_val_every_n_epoch={epochs}",
    ]
    found = trained(words, cores())
    return found.accuracy, found.seconds


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
    (theirs, waited), (reached, took) = zip(*peer, strict=True), zip(*here, strict=True)
    value, text = ratio(took, waited)
    ahead = statistics.mean(reached) - statistics.mean(theirs)
    hand_over(
        [
            Row(
                "val/acc",
                ahead,
                {
                    "here": f"{statistics.mean(reached):.3f}",
                    "plain loop": f"{statistics.mean(theirs):.3f}",
                    "difference, ratio": f"{ahead:+.3f}",
                },
            ),
            Row(
                "training",
                value,
                {
                    "here": f"{statistics.median(took):.0f} s",
                    "plain loop": f"{statistics.median(waited):.0f} s",
                    "difference, ratio": text,
                },
            ),
        ]
    )


if __name__ == "__main__":
    main()
