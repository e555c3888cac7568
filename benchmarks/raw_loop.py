"""Microseconds of a training step: `python train.py` beside loops written by hand.

Four ways to train the same network on the same 3,600 digits in batches of 64 with the same
optimizer and schedule, in turns, each in a process of its own with one thread:

    floor    all pixels in memory as normalized floats, a batch by its indices, nothing logged
    kept     the same, and the C library keeps what is freed, as it does in the command line
    loader   what people write: a TensorDataset in a DataLoader, loss and accuracy summed
    anneal   the command line with all it does by default: bar, CSV, W&B offline, checkpoints, rates

The time is that of training alone, without validation, checkpoints and the start of a run.

    python benchmarks/raw_loop.py
    python benchmarks/raw_loop.py --net=MNISTConvNet --times=3
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training import trained, yours
from turns import Row, hand_over, in_turns, ratio

from anneal.system import keep_freed_memory

BATCH, LR = 64, 0.003
EPOCHS = {"MLP": 30, "MNISTConvNet": 4}
WAYS = ("floor", "kept", "loader", "anneal")


def prepared(net: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network as the module runs it, normalized training images and their labels."""
    torch.manual_seed(0)
    module = getattr(yours, net)()
    data = yours.MNISTDataModule()
    data.setup()
    images, labels = data.splits["train"]
    images = ((images - module.mean) / module.std).contiguous(memory_format=torch.channels_last)
    return module.net.to(memory_format=torch.channels_last), images, labels


def by_hand(net: str, way: str, epochs: int) -> float:
    """Microseconds of a step."""
    model, images, labels = prepared(net)
    if way == "kept":
        keep_freed_memory()
    if way == "loader":
        loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True)
    per_epoch = -(-len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    start = time.perf_counter()
    for _ in range(epochs):
        if way == "loader":
            batches = iter(loader)
        else:
            order = torch.randperm(len(labels))
            batches = ((images[i], labels[i]) for i in order.split(BATCH))
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


def by_command(net: str, epochs: int) -> float:
    """Microseconds of a step of the command line."""
    words = {
        "model": net,
        "model.optimizer": "AdamW",
        "model.optimizer.lr": LR,
        "model.schedule.scheduler": "CosineAnnealingLR",
        "data": "MNISTDataModule",
        "data.batch_size": BATCH,
        "trainer.max_epochs": epochs,
    }
    options = [f"--{key}={value}" for key, value in words.items()]
    samples = yours.MNISTDataModule().train_samples
    per_epoch = samples / -(-samples // BATCH)
    return 1e6 * per_epoch / trained(["--config=empty.yaml", *options]).samples_per_second


def in_process(net: str, way: str) -> float:
    """Microseconds of a step of a loop by hand, in a process of its own."""
    own = [sys.executable, __file__, f"--net={net}", f"--way={way}"]
    shown = subprocess.run(own, check=True, capture_output=True, text=True).stdout
    return float(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=list(EPOCHS), action="append")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--way", choices=WAYS[:-1], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.way:
        print(by_hand(args.net[0], args.way, EPOCHS[args.net[0]]))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    for net in args.net or EPOCHS:
        ways = {
            **{way: partial(in_process, net, way) for way in WAYS[:-1]},
            "anneal": partial(by_command, net, EPOCHS[net]),
        }
        found = in_turns(ways, args.times)
        floor = f"{statistics.median(found['floor']):,.0f} µs"
        for way in WAYS[1:]:
            value, text = ratio(found[way], found["floor"])
            here = f"{statistics.median(found[way]):,.0f} µs"
            rows.append(
                Row(f"{net}, {way}", value, {"a step": here, "floor": floor, "ratio": text})
            )
    hand_over(rows)


if __name__ == "__main__":
    main()
