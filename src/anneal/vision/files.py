"""Encoded images with their labels, and single files to predict."""

import glob
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from anneal.errors import UserError
from anneal.vision.decode import UnreadableImageError

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
MAX_BYTES = 1 << 30


class ImageSource:
    """One split: encoded images and their labels.

    Paths lie in two arrays, so that any number of processes share them.

    Args:
        prefix: The beginning of every path.
        names: What follows it, all of them one after the other, UTF-8.
        ends: Where each of them ends in `names`, (N,) int64.
        labels: (N,) int64.
        class_names: One for each label.
    """

    def __init__(
        self,
        prefix: str,
        names: np.ndarray,
        ends: np.ndarray,
        labels: np.ndarray,
        class_names: list[str],
    ) -> None:
        self.prefix = prefix
        self.names = names
        self.ends = ends
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return where an image lies, for people."""
        start = self.ends[index - 1] if index else 0
        return self.prefix + os.fsdecode(self.names[start : self.ends[index]].tobytes())

    def read(self, index: int) -> bytes:
        """Return an encoded image; raises UnreadableImageError if it can't be read."""
        return read_file(self.path(index))

    def order(self, generator: torch.Generator) -> Tensor:
        """Return a permutation of 0..N-1 to train in."""
        return torch.randperm(len(self), generator=generator)


class ImageFiles(ImageSource):
    """Images in files of their own, without classes: their labels are their numbers.

    Args:
        files: The files.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__("", *pack(map(str, files)), np.arange(len(files)), [])

    @classmethod
    def find(cls, where: str) -> "ImageFiles":
        """Return all images that a file, a folder (with its subfolders) or a glob pattern names.

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


def pack(paths: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return paths one after the other, and where each of them ends."""
    encoded = [os.fsencode(path) for path in paths]
    ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


def missing(labels: np.ndarray, class_names: list[str]) -> list[str]:
    """Return the classes that have no image."""
    counts = np.bincount(labels, minlength=len(class_names))
    return [name for name, n in zip(class_names, counts, strict=True) if not n]


def is_picture(name: str) -> bool:
    """Return whether a file is an image by the ending of its name, and not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in ENDINGS


def read_file(path: Path | str) -> bytes:
    """Return the content of a file; raises UnreadableImageError if it can't be read."""
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
