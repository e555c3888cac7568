"""Images as plain pixels in a file that is mapped into memory: `python train.py shards --raw`.

Random crops of a batch of them are made at once, on a CPU or a GPU.
"""

from dataclasses import dataclass
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
from anneal.lightning_internals import resize_into
from anneal.vision.files import ImageSource
from anneal.vision.loader import Collated, DecodedDataset, UnreadableImage
from anneal.vision.splits import SPELLED
from anneal.vision.transforms import TrainTransform

TABLE, PIXELS = "pictures.npz", "pictures.raw"
TRIES = 10  # boxes that are drawn until one lies in the image, as in torchvision
NUMBERS = 2 * TRIES + 3  # that are drawn for an image
RATIO = 4 / 3  # of the sides of a box, at most


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


@dataclass(eq=False)
class CroppedDataset(DecodedDataset):
    """Training images of a raw copy as batches: cropped, resized and flipped on `device`.

    The random numbers of an image follow from seed, epoch and place here, too; they are others than
    those of `DecodedDataset`.
    """

    pictures: RawImages
    transform: TrainTransform
    device: torch.device

    @cached_property
    def pixels(self) -> Tensor:
        """Those of all images on the device, (P, 3)."""
        if self.device.type != "cpu":
            self.pictures.check(np.arange(len(self.pictures)))
        return self.pictures.flat.to(self.device)

    def __getitems__(self, keys: list[tuple[int, int, int]]) -> Collated:
        """Return what `collate` makes of single images."""
        pictures, epoch = self.pictures, keys[0][0]
        places, indices = np.array(keys).T[1:]
        shapes = pictures.shapes[indices]
        try:
            pictures.check(indices)
            (top, left, *sides), flips = draw(self.transform, (self.seed, epoch), places, shapes)
            first = pictures.stops[indices] - shapes.prod(1) + top * shapes[:, 1] + left
            boxes = torch.from_numpy(np.stack([first, shapes[:, 1], *sides, flips]))
            make = crop_one_by_one if self.device.type == "cpu" else crop_batch
            images = make(self.transform, self.pixels, boxes, self.size(epoch))
        except UserError as e:
            return torch.empty(0), torch.empty(0), [UnreadableImage("", str(e))]
        return images.permute(0, 3, 1, 2), torch.from_numpy(pictures.labels[indices]), []


def draw(
    transform: TrainTransform, key: tuple[int, int], places: np.ndarray, shapes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return of each image the box, (4, N): top, left, height, width; and whether it is flipped.

    They are distributed as those of torchvision's RandomResizedCrop. The numbers of a place are
    always the same ones of the generator's sequence.
    """
    start = int(places.min())
    generator = np.random.Generator(np.random.PCG64(key).advance(NUMBERS * start))
    u = generator.random((places.max() + 1 - start, NUMBERS))[places - start]
    height, width = shapes.astype(np.float64).T
    low, high = transform.scale
    area = (height * width)[:, None] * (low + (high - low) * u[:, :TRIES])
    ratio = RATIO ** (2 * u[:, TRIES : 2 * TRIES] - 1)
    tall, wide = np.sqrt(area / ratio).round(), np.sqrt(area * ratio).round()
    fits = (tall > 0) & (tall <= height[:, None]) & (wide > 0) & (wide <= width[:, None])
    rows, first = np.arange(len(u)), fits.argmax(1)
    found = fits[rows, first]
    # The greatest box in the middle, where none fits.
    h = np.where(found, tall[rows, first], np.minimum(height, (width * RATIO).round()))
    w = np.where(found, wide[rows, first], np.minimum(width, (height * RATIO).round()))
    top = np.floor(np.where(found, u[:, -3], 0.5) * (height - h + found))
    left = np.floor(np.where(found, u[:, -2], 0.5) * (width - w + found))
    return np.stack([top, left, h, w]).astype(np.int64), u[:, -1] < transform.flip


def crop_one_by_one(t: TrainTransform, pixels: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return boxes of images resized and flipped, (N, size, size, 3) uint8.

    Of `pixels` (P, 3), `boxes` (5, N) have the first one, its image's width, height, width, flip.
    """
    images = torch.empty(boxes.shape[1], size, size, 3, dtype=torch.uint8)
    # With its first dimension before the channels are moved, torch knows the layout for what it is.
    outs = images[:, None].permute(0, 1, 4, 2, 3)
    for out, (first, row, height, width, flip) in zip(outs, boxes.T.tolist(), strict=True):
        strides = 3 * row * height, 3 * row, 3, 1
        part = pixels.as_strided((1, height, width, 3), strides, 3 * first)
        part = part.flip(2) if flip else part.contiguous()
        resize_into(out, part.permute(0, 3, 1, 2), t.interpolation, t.antialias)
    return images


def crop_batch(t: TrainTransform, pixels: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return what `crop_one_by_one` does but for rounding, as products of matrices for a GPU."""
    first, row, height, width, flip = boxes.to(pixels.device)[:, :, None, None]
    y = torch.arange(int(boxes[2].max()), device=pixels.device)[:, None]
    x = torch.arange(int(boxes[3].max()), device=pixels.device)
    found = pixels[first + y.minimum(height - 1) * row + x.minimum(width - 1)].float()

    def weights(length: Tensor, most: int) -> Tensor:
        """Return triangles around the centres of the new pixels, (N, size, most)."""
        step = length / size
        centre = (torch.arange(size, device=pixels.device)[:, None] + 0.5) * step
        place = torch.arange(most, device=pixels.device)
        reach = step.clamp(min=1) if t.antialias else 1
        sides = (1 - (place + 0.5 - centre).abs() / reach).clamp(min=0) * (place < length)
        return sides / sides.sum(-1, keepdim=True)

    across = weights(width, len(x))
    across = torch.where(flip > 0, across.flip(1), across)
    found = torch.einsum("nyh,nhwc,nxw->nyxc", weights(height, len(y)), found, across)
    return found.round().clamp(0, 255).to(torch.uint8)
