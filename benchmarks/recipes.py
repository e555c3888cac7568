"""What recipes reach on their complete data, and how long they take.

Trains each from seeds 0, 1, ... with all threads. Accuracies are those of the test, or of the
validation if there is none, after the last epoch. Seconds are of the training with its validation,
and of the whole command from the prompt to the end of the test. On a GPU, given its peak, also says
how much of it the network's forward and backward passes took, by the photos of the training alone.

    python benchmarks/recipes.py MNIST_ROOT mnist_fast=20 mnist_995=5
    python benchmarks/recipes.py IMAGENETTE imagenette_fast=5
    python benchmarks/recipes.py IMAGENETTE imagenette_fast=2 --accelerator=gpu --peak=989
"""

import argparse
import statistics
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from training import ROOT, trained
from turns import Row, hand_over

from anneal.system import cores
from anneal.vision.transforms import ProgressiveResizing
from project.models.resnet import ImageClassifier


def recipe(word: str) -> tuple[str, int]:
    """Name and number of seeds in NAME=SEEDS."""
    name, _, seeds = word.partition("=")
    if not (ROOT / f"configs/{name}.yaml").is_file() or not seeds.isdecimal() or int(seeds) < 2:
        raise argparse.ArgumentTypeError(f"{word}: wanted is NAME=SEEDS, two seeds at least")
    return name, int(seeds)


def flops(name: str) -> float:
    """Floating-point operations of a training step per photo, on average over sizes that grow."""
    config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
    data, epochs = config["data"]["init_args"], config["trainer"]["max_epochs"]
    options = ("arch", "width", "small_stem", "blurpool")
    chosen = {k: v for k, v in config["model"]["init_args"].items() if k in options}
    model, grows = ImageClassifier(num_classes=10, **chosen), data.get("progressive")
    each = []
    for epoch in range(epochs):
        size = data["train_size"]
        size = ProgressiveResizing(**grows).size(size, epoch) if grows else size
        with FlopCounterMode(display=False) as counter:
            model.net(torch.zeros(1, 3, size, size))
        each.append(3 * counter.get_total_flops())  # the backward pass costs two forward ones
    return statistics.mean(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of the data")
    parser.add_argument("recipes", type=recipe, nargs="+", metavar="NAME=SEEDS")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--peak", type=float, help="of the device in bf16, in TFLOP/s; photos only")
    args = parser.parse_args()
    rows = []
    for name, seeds in args.recipes:
        words = [f"--config={ROOT / f'configs/{name}.yaml'}", f"--data.root={args.root.resolve()}"]
        runs = [
            trained([*words, f"--seed_everything={i}"], cores(), args.accelerator)
            for i in range(seeds)
        ]
        accuracies = [run.accuracy for run in runs]
        mean = statistics.mean(accuracies)
        spread = f"sd {statistics.stdev(accuracies):.4f}, lowest {min(accuracies):.4f}"
        text = f"{mean:.4f} ({spread}, {seeds} seeds)"
        rows.append(Row(f"{name}: accuracy", mean, {"here": text}))
        times = {"training": [r.seconds for r in runs], "command": [r.command for r in runs]}
        for what, found in times.items():
            middle = statistics.median(found)
            text = f"{middle:.1f} s ({min(found):.1f} to {max(found):.1f})"
            rows.append(Row(f"{name}: {what}", middle, {"here": text}))
        speed = statistics.median(run.samples_per_second for run in runs)
        text = f"{speed:,.0f} samples/s"
        if args.peak:
            text += f", {speed * flops(name) / args.peak / 1e12:.0%} of the peak"
        rows.append(Row(f"{name}: speed", speed, {"here": text}))
    hand_over(rows)


if __name__ == "__main__":
    main()
