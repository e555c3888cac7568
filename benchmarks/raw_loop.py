"""Microseconds of a training step: `python train.py` beside loops written by hand.

Three ways to train the same network on the same 3,600 digits in batches of 64 with the same
optimizer and schedule, in turns, each in a process of its own with one thread:

    floor    all pixels in memory as normalized floats, a batch by its indices, nothing logged
    loader   what people write: a TensorDataset in a DataLoader, loss and accuracy summed
    anneal   the command line with all it does by default: bar, CSV, W&B offline, checkpoints, rates

The time is that of training alone; that of validation, checkpoints and the rest of the run comes
after the +.

    python benchmarks/raw_loop.py
    python benchmarks/raw_loop.py --net=MNISTConvNet --times=3
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from anneal.data.mnist import MNISTDataModule
from anneal.modules import mnist

TRAIN = Path(__file__).parents[1] / "train.py"
BATCH, LR = 64, 0.003
EPOCHS = {"MLP": 30, "MNISTConvNet": 4}
WAYS = ("floor", "loader", "anneal")


def prepared(net: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network as the module runs it, normalized training images and their labels."""
    torch.manual_seed(0)
    module = getattr(mnist, net)()
    data = MNISTDataModule()
    data.setup()
    images, labels = data.splits["train"]
    images = ((images - module.mean) / module.std).contiguous(memory_format=torch.channels_last)
    return module.net.to(memory_format=torch.channels_last), images, labels


def by_hand(net: str, way: str, epochs: int) -> float:
    """Microseconds of a step."""
    model, images, labels = prepared(net)
    if way == "loader":
        loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True)
    per_epoch = -(-len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    start = time.perf_counter()
    for _ in range(epochs):
        if way == "floor":
            order = torch.randperm(len(labels))
            batches = ((images[i], labels[i]) for i in order.split(BATCH))
        else:
            batches = iter(loader)
        total, hits = torch.zeros(()), torch.zeros(())
        for x, y in batches:
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if way == "loader":
                total += loss.detach()
                hits += (logits.argmax(1) == y).sum()
    return (time.perf_counter() - start) / (epochs * per_epoch) * 1e6


def by_command(net: str, epochs: int) -> tuple[float, float]:
    """Microseconds of a step, and seconds of the training outside of its steps."""
    words = {
        "model": net,
        "model.optimizer": "AdamW",
        "model.optimizer.lr": LR,
        "model.schedule.scheduler": "CosineAnnealingLR",
        "data": "MNISTDataModule",
        "data.batch_size": BATCH,
        "trainer.max_epochs": epochs,
        "trainer.accelerator": "cpu",
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "empty.yaml").write_text("{}\n")
        options = [f"--{key}={value}" for key, value in words.items()]
        command = [sys.executable, str(TRAIN), "--config=empty.yaml", *options]
        env = os.environ | {"WANDB_MODE": "offline"}
        shown = subprocess.run(
            command, cwd=folder, env=env, check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"time +([\d.]+) s, ([\d,]+) samples/s", shown)
    assert found, shown
    seconds, speed = float(found[1]), float(found[2].replace(",", ""))
    samples = MNISTDataModule().train_samples * epochs
    steps = -(-MNISTDataModule().train_samples // BATCH) * epochs
    return samples / speed / steps * 1e6, seconds - samples / speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=list(EPOCHS), action="append")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--way", choices=WAYS[:2], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.way:
        print(json.dumps(by_hand(args.net[0], args.way, EPOCHS[args.net[0]])))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    for net in args.net or EPOCHS:
        steps: dict[str, list[float]] = {way: [] for way in WAYS}
        rest = []
        for _ in range(args.times):
            for way in WAYS[:2]:
                own = [sys.executable, __file__, f"--net={net}", f"--way={way}"]
                shown = subprocess.run(own, check=True, capture_output=True, text=True).stdout
                steps[way].append(json.loads(shown))
            step, other = by_command(net, EPOCHS[net])
            steps["anneal"].append(step)
            rest.append(other)
        for way, found in steps.items():
            low, *_, high = ratios = sorted(
                a / b for a, b in zip(found, steps["floor"], strict=True)
            )
            print(
                f"{net:13} {way:7} {statistics.median(found):9,.0f} µs a step, "
                f"{statistics.median(ratios):.2f} of the floor ({low:.2f} to {high:.2f})"
                + (f" + {statistics.median(rest):.1f} s" if way == "anneal" else "")
            )


if __name__ == "__main__":
    main()
