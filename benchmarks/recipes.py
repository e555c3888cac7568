"""What recipes for the complete MNIST reach, and how long they take.

Trains each from seeds 0, 1, ... with all threads. Accuracies are of the official test, after the
last epoch. Seconds are of the training with its validation, and of the whole command from the
prompt to the end of the test.

    python benchmarks/recipes.py MNIST_ROOT mnist_fast=20 mnist_995=5
"""

import argparse
import statistics
from pathlib import Path

from training import ROOT, trained
from turns import Row, hand_over

from anneal.system import cores


def recipe(word: str) -> tuple[str, int]:
    """Name and number of seeds in NAME=SEEDS."""
    name, _, seeds = word.partition("=")
    if not (ROOT / f"configs/{name}.yaml").is_file() or not seeds.isdecimal() or int(seeds) < 2:
        raise argparse.ArgumentTypeError(f"{word}: wanted is NAME=SEEDS, two seeds at least")
    return name, int(seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of the complete MNIST")
    parser.add_argument("recipes", type=recipe, nargs="+", metavar="NAME=SEEDS")
    args = parser.parse_args()
    rows = []
    for name, seeds in args.recipes:
        words = [f"--config={ROOT / f'configs/{name}.yaml'}", f"--data.root={args.root.resolve()}"]
        runs = [trained([*words, f"--seed_everything={i}"], cores()) for i in range(seeds)]
        accuracies = [run.accuracy for run in runs]
        mean = statistics.mean(accuracies)
        spread = f"sd {statistics.stdev(accuracies):.4f}, lowest {min(accuracies):.4f}"
        text = f"{mean:.4f} ({spread}, {seeds} seeds)"
        rows.append(Row(f"{name}: test/acc", mean, {"here": text}))
        times = {"training": [r.seconds for r in runs], "command": [r.command for r in runs]}
        for what, found in times.items():
            middle = statistics.median(found)
            text = f"{middle:.1f} s ({min(found):.1f} to {max(found):.1f})"
            rows.append(Row(f"{name}: {what}", middle, {"here": text}))
    hand_over(rows)


if __name__ == "__main__":
    main()
