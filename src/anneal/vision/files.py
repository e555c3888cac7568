"""Encoded images with their labels, and single files to predict."""

import glob
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor

from anneal.errors import UserError, in_a_line
from anneal.vision.decode import UnreadableImageError, decode, formats

MAX_BYTES = 1 << 30
# How a file of a common format begins.
HEAD = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM....\0\0\0\0|RIFF....WEBP|II\*\0|MM\0\*"
    rb"|....ftypavi[fs]|\0\0\0\x0cjP|P[1-6]\s",
    re.DOTALL,
)
# What NAS boxes and operating systems put beside files.
SYSTEM = re.compile(
    r"@(eadir|__thumb|recycle)|#(recycle|snapshot)|\$recycle\.bin|__macosx|lost\+found"
    r"|system volume information|thumbs\.db|desktop\.ini",
    re.IGNORECASE,
)


@dataclass(eq=False)
class ImageSource:
    """One split: encoded images and their targets.

    Paths lie in two arrays, so that any number of processes share them.
    """

    prefix: str  # the beginning of every path
    names: np.ndarray  # what follows it, all of them one after the other, UTF-8
    ends: np.ndarray  # where each of them ends in `names`, (N,) int64
    labels: np.ndarray  # (N,) int64, or (N, outputs) float32 unless they are classes
    class_names: list[str]  # of the classes, labels or numbers
    task: str = "classification"

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return where an image lies, for people."""
        start = self.ends[index - 1] if index else 0
        return self.prefix + os.fsdecode(self.names[start : self.ends[index]].tobytes())

    def read(self, index: int) -> bytes:
        """Return an encoded image; raises UnreadableImageError if it can't be read."""
        return read_file(self.path(index))

    def image(self, index: int) -> Tensor:
        """Return an image decoded, (3, H, W) uint8; raises UnreadableImageError likewise."""
        return decode(self.read(index))

    def order(self, generator: torch.Generator) -> Tensor:
        """Return a permutation of 0..N-1 to train in."""
        return torch.randperm(len(self), generator=generator)


class ImageFiles(ImageSource):
    """Images in files of their own, without classes: their labels are their numbers."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__("", *pack(map(str, files)), np.arange(len(files)), [])

    @classmethod
    def find(cls, where: str) -> "ImageFiles":
        """Return all images that a file, folder or pattern names; raise UserError without any."""
        path = Path(where)
        if path.is_file():
            return cls([path])
        found = walk(path, {}) if path.is_dir() else _matching(where)
        path = path if path.is_dir() else Path()
        pictures, others = sort_out(path, found)
        if not pictures:
            raise UserError(f"{where}: there is no picture{left_out(others)}")
        if others:
            rank_zero_info(f"{where}{left_out(others)}")
        return cls(sorted(path / picture for picture in pictures))


def _matching(pattern: str) -> Iterator[str]:
    """Yield the files that a glob pattern names, without what `is_hidden` but for names in it."""
    pattern = os.path.normpath(pattern)
    base, *deep = re.split(r"(?<![^/])\*\*(?![^/])", pattern, maxsplit=1)
    for found in glob.glob(base or ".") if deep else glob.glob(pattern):
        hidden = any(is_hidden(x) for x in set(Path(found).parts) - set(Path(pattern).parts))
        if deep and os.path.isdir(found):  # where glob would go round a circle of links
            paths = (os.path.normpath(f"{found}/{path}") for path in walk(Path(found), {}))
            yield from (p for p in paths if fnmatchcase(p, pattern.replace("**/", "*")))
        elif not deep and not hidden and not os.path.isdir(found):
            yield found


def entries(folder: Path) -> list[tuple[str, bool]]:
    """Return name and whether it is a folder of all in a folder that is not hidden, in order."""
    with in_a_line(folder), os.scandir(folder) as found:
        # os.path.isdir also knows what to say of a link to itself.
        kinds = [(e.name, os.path.isdir(e) if e.is_symlink() else e.is_dir()) for e in found]
    return sorted((name, is_folder) for name, is_folder in kinds if not is_hidden(name))


def walk(folder: Path, stamps: dict[str, str], above: Sequence[str] = ()) -> Iterator[str]:
    """Yield the files in a folder and its subfolders, as paths below it.

    Links are followed, but one to a folder that it lies in, one of those `above`, is yielded as it
    is. The `stamp` of each folder is put into `stamps`.
    """
    real = os.path.realpath(folder)
    above = [*(above or map(os.path.realpath, folder.absolute().parents)), real]
    stamps[str(folder)] = stamp(folder)
    for name, is_folder in entries(folder):
        target = is_folder and os.path.realpath(folder / name)
        if target and not any(Path(path).is_relative_to(target) for path in above):
            yield from (f"{name}/{path}" for path in walk(folder / name, stamps, above))
        else:
            yield name


def stamp(path: Path) -> str:
    """Return a digest of the names in a folder, or of a file's content.

    Times say nothing in a bucket that is mounted or an archive that was unpacked.
    """
    with in_a_line(path):
        names = os.fsencode("\0".join(sorted(os.listdir(path)))) if path.is_dir() else None
        return hashlib.sha256(path.read_bytes() if names is None else names).hexdigest()


def pack(paths: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return paths one after the other, and where each of them ends."""
    encoded = [os.fsencode(path) for path in paths]
    ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


def missing(labels: np.ndarray, class_names: list[str]) -> list[str]:
    """Return the classes or labels that have no image."""
    there = labels if labels.ndim == 1 else np.flatnonzero(labels.any(0))
    return [class_names[i] for i in np.setdiff1d(np.arange(len(class_names)), there)]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is no part of the data, by its name."""
    return name.startswith(".") or bool(SYSTEM.fullmatch(name))


@cache
def endings() -> set[str]:
    """Return the endings of names of pictures, in lower case."""
    known = formats()  # before Pillow is asked for endings
    return {ending for ending, name in Image.registered_extensions().items() if name in known}


def is_picture(path: str) -> bool:
    """Return whether a file is an image by the ending of its name, or without one by its head."""
    if ending := os.path.splitext(path)[1].lower():
        return ending in endings()
    with suppress(OSError):
        if os.path.isfile(path):  # a pipe is read for ever
            with open(path, "rb") as file:
                return bool(HEAD.match(file.read(32)))
    return False


def sort_out(folder: Path, paths: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """Return the images among some paths below a folder, and the numbers of the others by kind."""
    pictures: list[str] = []
    others: Counter[str] = Counter()
    for path in paths:
        if is_picture(whole := os.path.join(folder, path)):
            pictures.append(path)
        else:
            ending = os.path.splitext(path)[1].lower() or "without an ending"
            others["links in a circle" if os.path.isdir(whole) else ending] += 1
    return pictures, others


def left_out(others: dict[str, int]) -> str:
    """Return how many files are left out, for the end of a line."""
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(others.items()))
    heic = " (pip install pillow-heif reads them)" if ".heic" in others else ""
    return f": left out as no pictures: {kinds}{heic}" if kinds else ""


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
