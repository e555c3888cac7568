"""Pictures decoded and cropped per second and core, against torchvision's reference pipeline.

The reference is that of torchvision's reference training: Pillow, RandomResizedCrop, flip, tensor,
normalization. `anneal` is all that a worker of `ImageFolderDataModule` does; it stops at uint8, as
the model normalizes on the device. All ways run in turn, on one thread, and are timed in seconds of
the processor, so that other programs on the machine disturb the ratios little.

    python benchmarks/decoding.py data/imagenet/val
    python benchmarks/decoding.py data/imagenet/val --size=128
"""

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from io import BytesIO
from itertools import count

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from turns import Row, hand_over, ratio

from anneal.vision.files import ImageFiles
from anneal.vision.loader import DecodedDataset
from anneal.vision.transforms import TrainTransform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCK = 10  # pictures that one way decodes before the next has its turn
Way = Callable[[bytes], object]


def reference(size: int) -> Way:
    """torchvision/references/classification/presets.py, its default backend."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return lambda data: transform(Image.open(BytesIO(data)).convert("RGB"))


def torchvision_uint8(size: int) -> Way:
    """torchvision's own decoder and its transforms of uint8 tensors."""
    transform = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])

    def way(data: bytes) -> Tensor:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return transform(decode_jpeg(encoded, ImageReadMode.RGB))

    return way


def anneal(size: int) -> Way:
    """This project's workers, without their DataLoader."""
    memory = InMemory()
    decoded = DecodedDataset(memory, TrainTransform(), lambda epoch: size, seed=0)
    places = count()

    def way(data: bytes) -> object:
        memory.data = data
        return decoded[0, next(places), 0]

    return way


class InMemory(ImageFiles):
    """One picture at a time, whose bytes are there already."""

    def __init__(self) -> None:
        self.data = b""
        self.labels = np.zeros(1, np.int64)

    def read(self, index: int) -> bytes:
        return self.data


def prepare(data: bytes, side: int = 256) -> bytes:
    """The same picture with a short side of at most 256 pixels, as JPEG of quality 90."""
    image = Image.open(BytesIO(data)).convert("RGB")
    part = min(1, side / min(image.size))
    width, height = (round(n * part) for n in image.size)
    file = BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def seconds(way: Way, pictures: list[bytes], seed: int) -> float:
    """Seconds of the processor for all pictures."""
    torch.manual_seed(seed)
    start = time.thread_time()
    for data in pictures:
        way(data)
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a folder of JPEG files, with its subfolders")
    parser.add_argument("--size", type=int, default=224, help="of the crop, in pixels")
    parser.add_argument("--pictures", type=int, default=100, help="how many, at most")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = ImageFiles.find(args.folder)
    step = max(1, len(found) // args.pictures)
    files = [found.read(i) for i in range(0, len(found), step)]
    originals = [data for data in files if data.startswith(b"\xff\xd8")][: args.pictures]
    prepared = [prepare(data) for data in originals]
    ways = {
        "reference": reference,
        "torchvision, uint8": torchvision_uint8,
        "anneal": anneal,
    }
    runs = [
        (f"{name}, {kind}", way(args.size), pictures)
        for kind, pictures in (("originals", originals), ("prepared copy", prepared))
        for name, way in ways.items()
    ]
    blocks = range(0, len(originals), BLOCK)
    taken = {name: np.zeros((args.rounds + 1, len(blocks))) for name, _, _ in runs}
    for r in range(args.rounds + 1):  # the first one warms up
        for b, start in enumerate(blocks):
            for name, way, pictures in runs if (r + b) % 2 else runs[::-1]:
                taken[name][r, b] = seconds(way, pictures[start : start + BLOCK], seed=r)
    print(
        f"{len(originals)} pictures, {args.size} px, pillow {version('pillow')}, "
        f"simplejpeg {version('simplejpeg')}"
    )
    spent = {name: times[1:].sum(axis=1) for name, times in taken.items()}
    rows = []
    for name, rounds in spent.items():
        value, text = ratio(spent["reference, originals"], rounds)
        speed = f"{len(originals) / np.median(rounds):,.0f}"
        rows.append(Row(name, value, {"images/s/core": speed, "ratio": text}))
    hand_over(rows)


if __name__ == "__main__":
    main()
