"""Images as plain pixels in a file that is mapped into memory: `python train.py shards --raw`."""

from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import crc32, error

import numpy as np
import torch
from torch import Tensor

from anneal.errors import UserError
from anneal.vision.files import ImageSource
from anneal.vision.splits import SPELLED

TABLE, PIXELS = "pictures.npz", "pictures.raw"


def read_table(where: str, table: bytes) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Return the arguments of an `ImageSource`, and all arrays of a table that `shards` wrote.

    Raises:
        ValueError: The table is damaged.
    """
    try:
        with np.load(BytesIO(table)) as file:
            arrays = dict(file)
        names, ends, labels = (arrays[name] for name in ("names", "ends", "labels"))
        task = str(arrays.get("task", "classification"))
        return [f"{where}#", names, ends, labels, arrays["class_names"].tolist(), task], arrays
    except (KeyError, EOFError, BadZipFile, error) as e:
        raise ValueError from e


class RawImages(ImageSource):
    """One split in one file of pixels, (H, W, 3) uint8 each, whose memory all processes share.

    An image is compared with its checksum when a run reads it first. `shapes` has the height and
    width of each, (N, 2).
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / PIXELS
        try:
            about, arrays = read_table(str(folder), (folder / TABLE).read_bytes())
            self.shapes, self.sums = arrays["shapes"], arrays["sums"]
            size = self.file.stat().st_size
        except OSError as e:
            raise UserError(f"{e.filename}: {e.strerror}") from e
        except (ValueError, KeyError) as e:
            raise UserError(f"{folder / TABLE}: damaged, convert again") from e
        super().__init__(*about)
        self.stops = self.shapes.prod(1, dtype=np.int64).cumsum()
        if size != (expected := 3 * int(self.stops[-1])):
            raise UserError(f"{self.file}: {size:,} bytes, not {expected:,}: copy it again")
        self.checked = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    @classmethod
    def splits(cls, root: Path) -> dict[str, "RawImages"]:
        """Return `train`, `val` and, if there is one, `test` of what `shards --raw` made."""
        return {s: cls(root / s) for s in SPELLED if s != "test" or (root / s).is_dir()}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "flat"}

    @cached_property
    def flat(self) -> Tensor:
        """All pixels, (P, 3); torch wants them writable, and what is written stays in here."""
        return torch.from_numpy(np.memmap(self.file, np.uint8, "c")).view(-1, 3)

    def pixels(self, index: int) -> Tensor:
        """Return an image as it lies in memory, (H, W, 3): it must not be changed."""
        height, width = self.shapes[index]
        stop = self.stops[index]
        return self.flat[stop - height * width : stop].view(height, width, 3)

    def check(self, indices: np.ndarray) -> None:
        """Compare images that were not read yet with their checksums."""
        for index in indices[~self.checked.numpy()[indices]]:
            data: Any = self.pixels(index).numpy()
            if crc32(data) != self.sums[index]:
                raise UserError(f"{self.file}: damaged at {self.path(index)}: copy it again")
            self.checked[index] = True

    def image(self, index: int) -> Tensor:
        self.check(np.array([index]))
        return self.pixels(index).permute(2, 0, 1).clone()
