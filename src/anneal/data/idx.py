"""MNIST's files; of a damaged one an error says which it is and what to do."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anneal.errors import UserError

MAX_BYTES = 200_000_000  # four times the largest of them; a .gz can unpack to any size


def read_idx_pair(raw: Path, part: str) -> tuple[Tensor, Tensor]:
    """Return checked images (N, 1, 28, 28) and labels (N,) of `train` or `t10k`."""
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
    """Read an IDX file of bytes, or its .gz where there is no other; return which, and the data.

    The format: 0, 0, 8 for unsigned bytes, the number of dimensions; each length as a big-endian
    32-bit integer; the bytes.
    """
    path = path if path.exists() else gz_of(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _damaged(path, f"more than {MAX_BYTES:,} bytes")
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
        promised = start + math.prod(shape)
        raise _damaged(path, f"{len(content)} bytes, its header promises {promised}")
    # A copy: torch warns about memory that can't be written.
    data = np.frombuffer(content, np.uint8, offset=start).copy()
    return path, torch.from_numpy(data).reshape(shape)


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged or cut ({reason}): delete it, and it is read from its .gz or "
        "downloaded again, or put a good copy in its place"
    )


def gz_of(path: Path) -> Path:
    """Return the path of a file that is compressed."""
    return path.with_name(f"{path.name}.gz")
