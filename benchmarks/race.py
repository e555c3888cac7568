"""Optimizers against AdamW, each with a learning rate and a weight decay from an equal search.

    python benchmarks/race.py digits                # the digits that come with the installation
    python benchmarks/race.py fashion FASHION       # a part of Fashion-MNIST
    python benchmarks/race.py photos PHOTOS         # a small ResNet: the best five, Muon, AdamW
    python benchmarks/race.py draw                  # table and figures, from the stored results

`race.yaml` has the optimizers and the rules. Each training is a line of race-TASK.csv as soon as it
is done, so that a race that was stopped goes on where it was; for a new one delete the file.
FASHION has FashionMNIST/raw/, PHOTOS has train/CLASS/NAME.jpg and val/CLASS/NAME.jpg.
`--optimizers Muon Lion` trains these alone.
"""

import argparse
import csv
import logging
import math
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from race_results import best, draw
from race_rules import (
    COLUMNS,
    HERE,
    OPTIMIZERS,
    POINTS,
    REFERENCE,
    STEPS,
    UNTUNED,
    Line,
    finals,
    key_of,
    read,
    trials,
)
from torch import Tensor
from torchvision.transforms.v2.functional import resize
from training import yours

from anneal import InMemoryBatches, Schedule, decode, stratified_split
from anneal.optim.torch_schedulers import WSD

WARMUP, DECAY = 0.1, 0.3  # of the steps
TURNS = 3  # in which steps are timed, one optimizer after the other
PART = 6_400  # training images of Fashion-MNIST


class Photos(LightningDataModule):
    """Photos of 32 pixels, in memory: a fifth of `train` is held out, `val` is the test."""

    batch_size = 32

    def __init__(self, root: str) -> None:
        super().__init__()
        images, labels = read_photos(Path(root, "train"))
        train, val = stratified_split(labels, len(labels) // 5, torch.Generator().manual_seed(0))
        self.splits = {"train": (images[train], labels[train]), "val": (images[val], labels[val])}
        self.splits["test"] = read_photos(Path(root, "val"))

    def train_dataloader(self) -> InMemoryBatches:
        batches = self.splits["train"]
        return InMemoryBatches.in_run(self.trainer, *batches, self.batch_size, shuffle=True)


def read_photos(folder: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and labels (N,) of the folder of a split."""
    paths = sorted(folder.glob("*/*"))
    names = sorted({path.parent.name for path in paths})
    images = [resize(decode(path.read_bytes()), [32, 32]) for path in paths]
    return torch.stack(images), torch.tensor([names.index(path.parent.name) for path in paths])


@cache
def task_of(name: str, folder: str) -> tuple[Any, Any]:
    """Network, by optimizer and schedule, and data of a task."""
    if name == "photos":
        options = {"arch": "resnet18", "width": 16, "small_stem": True, "zero_init_residual": True}
        return partial(yours.ImageClassifier, num_classes=10, **options), Photos(folder)
    dataset = {"digits": "digits", "fashion": "FashionMNIST"}[name]
    data = yours.MNISTDataModule(dataset, folder, False, batch_size=32, val_size=1000)
    data.setup()
    images, labels = data.splits["train"]
    if len(labels) > PART:
        part = stratified_split(labels, PART, torch.Generator().manual_seed(0))[1]
        data.splits["train"] = images[part], labels[part]
    return partial(yours.MNISTConvNet, width=8, depth=1, stride=2), data


class Watch(Callback):
    """Validates so many times, evenly spread, times the steps, ends what has no finite loss."""

    def __init__(self, data: Any, points: int) -> None:
        self.data = data
        self.points = points
        self.seconds = 0.0
        self.curve: list[float] = []
        self.loss = math.inf

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        switch(trainer, pl_module, train=True)

    def on_train_batch_start(self, *args: Any) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.seconds += time.process_time() - self.start
        if not outputs["loss"].isfinite():
            raise ArithmeticError("the loss is not finite")
        if trainer.global_step * self.points >= (len(self.curve) + 1) * trainer.max_steps:
            switch(trainer, pl_module, train=False)
            accuracy, self.loss = measure(pl_module, *self.data.splits["val"])
            self.curve.append(accuracy)
            if len(self.curve) < self.points:
                switch(trainer, pl_module, train=True)


def switch(trainer: Trainer, module: Any, train: bool) -> None:
    """Switch the network's mode, and the weights of a schedule-free optimizer.

    Its average of the weights needs norms of its own, from some batches, as its authors say.
    """
    optimizer: Any = trainer.optimizers[0]
    if hasattr(optimizer, "eval"):
        (optimizer.train if train else optimizer.eval)()
        if not train:
            data = trainer.datamodule  # type: ignore[attr-defined]
            images = data.splits["train"][0]
            with torch.no_grad():
                for i in range(20):
                    module(images[i :: len(images) // data.batch_size])
    module.train(train)


@torch.no_grad()
def measure(module: Any, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and loss."""
    logits = torch.cat([module(part) for part in images.split(1000)])
    hits = (logits.argmax(1) == labels).float().mean()
    return float(hits), float(F.cross_entropy(logits, labels))


def train(task: str, folder: str, line: Line) -> Line:
    """Do a training and fill in its line."""
    (net, data), steps = task_of(task, folder), STEPS[task]
    rules = OPTIMIZERS[REFERENCE if line["optimizer"] == UNTUNED else line["optimizer"]]
    module, _, name = rules["class"].rpartition(".")
    settings = rules.get("with", {})
    if line["optimizer"] != UNTUNED:
        settings = settings | {key: float(line[key]) for key in ("lr", "weight_decay")}
    optimizer = partial(getattr(import_module(module), name), **settings)
    decay = None if rules.get("constant") else partial(WSD, total_steps=None, decay=DECAY)
    schedule = Schedule(decay, "step", warmup_steps=round(WARMUP * steps))
    seed_everything(line["seed"], verbose=False)
    model = net(optimizer=optimizer, schedule=schedule)
    watch = Watch(data, POINTS if line["kind"] == "final" else 1)
    options: Any = {"accelerator": "cpu", "barebones": True, "limit_val_batches": 0}
    trainer = Trainer(max_steps=steps, callbacks=[watch], **options)
    test = 0.0
    try:
        trainer.fit(model, datamodule=data)
        if line["kind"] == "final":
            test = measure(model, *data.splits["test"])[0]
    except (ArithmeticError, torch.linalg.LinAlgError):
        watch.curve += [0.0] * (watch.points - len(watch.curve))
    return line | {
        "val_loss": f"{watch.loss:.4f}",
        "test_acc": f"{test:.4f}" if line["kind"] == "final" else "",
        "ms_step": f"{1000 * watch.seconds / max(1, trainer.global_step):.2f}",
        "curve": " ".join(f"{accuracy:.4f}" for accuracy in watch.curve),
    }


def race(task: str, folder: str, names: list[str], workers: int) -> None:
    """Do the trainings that are not stored yet."""
    path = HERE / f"race-{task}.csv"
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, quiet) as pool, path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")

        def do(jobs: list[Line]) -> None:
            done = {key_of(line) for line in read(task)}
            jobs = [job for job in jobs if key_of(job) not in done]
            for future in as_completed(pool.submit(train, task, folder, job) for job in jobs):
                writer.writerow(future.result())
                file.flush()
                print(task, *future.result().values(), flush=True)

        for name in names:
            do(trials(name))
            do(finals(name, read(task)))
            if name == REFERENCE:
                do(finals(UNTUNED, []))
        for turn in range(TURNS):
            do([finals(name, read(task))[turn] | {"kind": "time"} for name in names])


def quiet() -> None:
    """Leave out what Lightning and optimizers say of each training."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_optimizer"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=[*STEPS, "draw"])
    parser.add_argument("folder", nargs="?", default="", help="of the data, for fashion and photos")
    parser.add_argument(
        "--optimizers", nargs="+", choices=OPTIMIZERS, metavar="NAME", help="these alone"
    )
    parser.add_argument("--workers", type=int, default=2, help="trainings at once, a thread each")
    args = parser.parse_args()
    if args.task == "draw":
        draw()
        return
    chosen = [REFERENCE, *best(), "Muon"] if args.task == "photos" else OPTIMIZERS
    race(args.task, args.folder, args.optimizers or list(dict.fromkeys(chosen)), args.workers)


if __name__ == "__main__":
    main()
