"""What each feature for speed costs in accuracy, and what it saves.

Trains a short form of configs/mnist.yaml with a feature and without it, from the same seeds. The
other features are in force both times, and it runs on one thread. The difference in test accuracy
comes with its 95 % confidence interval (Student's t over the pairs); time is that of training.

    python benchmarks/price.py
    python benchmarks/price.py --seeds=10 --epochs=20
"""

import argparse

import torch
from torch import Tensor
from training import ROOT, Trained, trained, yours
from turns import Row, hand_over, lead, ratio

from anneal.system import cores

BASE = (f"--config={ROOT / 'configs/mnist.yaml'}", "--trainer.precision=bf16-mixed")
WITHOUT = {
    "bf16-mixed": ["--trainer.precision=32-true"],
    "channels last": ["--model=price.ChannelsFirst"],
    "fused optimizer": ["--model.optimizer.fused=false"],
    "uint8 batches": ["--data=price.FloatDigits"],
}


class ChannelsFirst(yours.MNISTConvNet):
    """The same network in torch's default layout."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images.to(self.mean.dtype) - self.mean) / self.std)

    def configure_model(self) -> None:
        super().configure_model()
        self.net.to(memory_format=torch.contiguous_format)


class FloatDigits(yours.MNISTDataModule):
    """The same digits, kept as float32 from the start."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.splits = {name: (x.float(), y) for name, (x, y) in self.splits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    threads = cores()
    ways = {
        "all": (BASE, 1),
        **{name: ((*BASE, *words), 1) for name, words in WITHOUT.items()},
        "threads": (BASE, threads),
    }
    runs: dict[str, list[Trained]] = {name: [] for name in ways}
    for seed in range(args.seeds):
        more = (f"--seed_everything={seed}", f"--trainer.max_epochs={args.epochs}")
        for name, (words, number) in ways.items():
            runs[name].append(trained((*words, *more), number))
    rows = []
    for name in list(ways)[1:]:
        pair = ("threads", "all") if name == "threads" else ("all", name)
        given, bare = (runs[way] for way in pair)
        gain, half = lead(*([100 * run.accuracy for run in way] for way in (given, bare)))
        value, time = ratio(
            [1 / run.samples_per_second for run in given],
            [1 / run.samples_per_second for run in bare],
        )
        label = f"{threads} threads" if name == "threads" else name
        cells = {"test/acc, points": f"{gain:+.2f} ± {half:.2f}", "time, ratio": time}
        rows.append(Row(label, value, cells))
    hand_over(rows)


if __name__ == "__main__":
    main()
