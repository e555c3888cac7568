"""Encoded pictures with their labels, wherever they lie, and single files to predict."""

import glob
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from anneal.errors import UserError
from anneal.vision.decode import UnreadableImageError

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
MAX_BYTES = 1 << 30


class ImageSource(Protocol):
    """What the data module needs of a split: a folder, a list of files, shards in a bucket.

    Attributes:
        class_names: One for each label.
        labels: (N,) int64.
    """

    class_names: list[str]
    labels: np.ndarray

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded picture; raises UnreadableImageError if it can't be read."""
        ...

    def path(self, index: int) -> str:
        """How a person finds it."""
        ...

    def order(self, generator: torch.Generator) -> Tensor:
        """A permutation of 0..N-1 to train in."""
        ...


class ImageFiles:
    """Pictures in files of their own, which have no labels: their labels are their numbers.

    Args:
        files: The files.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.class_names: list[str] = []
        self.labels = np.arange(len(self.files))

    @classmethod
    def find(cls, where: str) -> "ImageFiles":
        """All pictures that a file, a folder (with its subfolders) or a glob pattern means.

        Raises:
            UserError: There are none.
        """
        path = Path(where)
        if path.is_dir():
            found = [p for p in path.rglob("*") if not p.is_dir()]
        elif path.is_file():
            return cls([path])
        else:
            found = [p for p in map(Path, glob.glob(where, recursive=True)) if not p.is_dir()]
        found = sorted(p for p in found if not p.name.startswith("."))
        pictures = [p for p in found if is_picture(p.name)]
        if not pictures:
            raise UserError(f"{where}: there is no picture")
        if others := len(found) - len(pictures):
            rank_zero_info(f"{where}: {others} files are no pictures by their ending, skipped")
        return cls(pictures)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        return read_file(self.files[index])

    def path(self, index: int) -> str:
        return str(self.files[index])

    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self), generator=generator)


def missing(labels: np.ndarray, class_names: list[str]) -> list[str]:
    """The classes that have no picture."""
    counts = np.bincount(labels, minlength=len(class_names))
    return [name for name, n in zip(class_names, counts, strict=True) if not n]


def is_picture(name: str) -> bool:
    """Whether a file is one by the ending of its name, and not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in ENDINGS


def read_file(path: Path | str) -> bytes:
    """All of a file; raises UnreadableImageError if it can't be read."""
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # a pipe is read for ever
            raise UnreadableImageError("a folder, pipe or device, no file")
        if about.st_size > MAX_BYTES:
            raise UnreadableImageError(f"{about.st_size:,} bytes are more than {MAX_BYTES:,}")
        with open(path, "rb") as file:
            return file.read()
    except OSError as e:
        raise UnreadableImageError(e.strerror or str(e)) from e
