"""Images per second of a ResNet-18 in training on a CPU, against a plain loop in float32.

The loop written by hand has torch's defaults: float32, channels first, pictures of 224 px. Ours is
`ImageClassifier` in Lightning's loop with bf16-mixed and channels last, at each size that
progressive resizing from 128 to 224 px goes through; its mean is over the epochs of
configs/photos_resnet18.yaml with the larger pictures that it names. Batches are made beforehand, so
no decoder counts. A CPU without AVX512-BF16 or AMX computes bf16 more slowly than float32.

    python benchmarks/resnet18_cpu.py
"""

import argparse
import logging
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from gpu_loop import images_per_second
from photos_time import RECIPE
from torch.utils.data import DataLoader
from torchvision.models import resnet18
from training import yours
from turns import Row, hand_over, in_turns, ratio

from anneal.vision.transforms import ProgressiveResizing

SIZE, CLASSES = 224, 1000
EPOCHS = RECIPE["trainer"]["max_epochs"]
GROWING = ProgressiveResizing(**RECIPE["data"]["init_args"]["progressive"] | {"start_size": 128})


class Clock(pl.Callback):
    """Times of the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: object) -> None:
        self.ends.append(time.perf_counter())


def plain(batch: int, steps: int) -> Callable[[], float]:
    """Training in float32 and channels first, by hand."""
    net = resnet18()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(batch, 3, SIZE, SIZE)
    labels = torch.randint(CLASSES, (batch,))

    def step() -> None:
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return lambda: images_per_second(step, batch, steps)


def ours(size: int, batch: int, steps: int) -> float:
    """`ImageClassifier` by Lightning, without the first step."""
    model = yours.ImageClassifier("resnet18", num_classes=CLASSES)
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    batches = [(images, torch.randint(CLASSES, (batch,)))] * (steps + 1)
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_epochs=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(batches, batch_size=None))
    return batch * steps / (clock.ends[-1] - clock.ends[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--threads", type=int, help="all cores if unset")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    epochs = Counter(GROWING.size(SIZE, epoch) for epoch in range(EPOCHS))
    ways: dict[str, Callable[[], float]] = {"plain": plain(args.batch_size, args.steps)}
    for size in epochs:
        ways[str(size)] = lambda size=size: ours(size, args.batch_size, args.steps)
    found = in_turns(ways, args.times)
    growing = [
        EPOCHS / sum(n / speed for n, speed in zip(epochs.values(), turn, strict=True))
        for turn in zip(*(found[str(size)] for size in epochs), strict=True)
    ]
    threads = torch.get_num_threads()
    peer = f"{statistics.median(found['plain']):.1f} images/s"
    rows = []
    for name, speeds in {
        "bf16-mixed, channels last": found[str(SIZE)],
        "the same, from 128 to 224 px": growing,
    }.items():
        value, text = ratio(speeds, found["plain"])
        here = f"{statistics.median(speeds):.1f} images/s"
        cells = {"here": here, "plain float32": peer, "ratio": text, "threads": str(threads)}
        rows.append(Row(name, value, cells))
    hand_over(rows)


if __name__ == "__main__":
    main()
