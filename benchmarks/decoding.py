"""Pictures decoded and cropped per second and core, against torchvision's reference pipeline.

The reference is that of torchvision's reference training: Pillow, RandomResizedCrop, flip, tensor,
normalization. `anneal` is all that a worker of `ImageFolderDataModule` does; it stops at uint8, as
the model normalizes on the device. So do LitData and WebDataset here, with torchvision's decoder
and its transforms of uint8 tensors, which are faster than the reference. All ways run in turn, on
one thread, and are timed in seconds of the processor, so that other programs on the machine disturb
the ratios little. WebDataset is left out unless it is installed (pip install webdataset).

    python benchmarks/decoding.py data/imagenet/val
    python benchmarks/decoding.py data/imagenet/val --size=128
"""

import argparse
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from io import BytesIO
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from turns import Row, hand_over, ratio

from anneal.system import keep_freed_memory
from anneal.vision import shards
from anneal.vision.files import ImageFiles
from anneal.vision.loader import CPU, DecodedDataset
from anneal.vision.raw import CroppedDataset, RawImages, draw
from anneal.vision.streaming import ImageShards
from anneal.vision.transforms import TrainTransform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCK = 50  # pictures that one way makes before the next has its turn, and a batch
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


def raw_copy(pictures: RawImages, size: int) -> Iterator[Tensor]:
    """This project's workers on a raw copy, batch by batch, without their DataLoader."""
    cropped = CroppedDataset(pictures, TrainTransform(), lambda epoch: size, seed=0, device=CPU)
    for start in count(0, BLOCK):
        keys = [(0, place, place % len(pictures)) for place in range(start, start + BLOCK)]
        yield from cropped.__getitems__(keys)[0]


def limit(pictures: RawImages, size: int) -> Iterator[Tensor]:
    """Resizing alone, of crops that are there, one piece each."""
    everyone = np.arange(len(pictures))
    (top, left, height, width), _ = draw(TrainTransform(), (0, 0), everyone, pictures.shapes)
    crops = [
        pictures.pixels(i)[y : y + h, x : x + w].contiguous()[None].permute(0, 3, 1, 2)
        for i, y, x, h, w in zip(everyone, top, left, height, width, strict=True)
    ]
    for i in count():
        yield interpolate(crops[i % len(crops)], (size, size), mode="bilinear", antialias=True)


def litdata(folder: Path, size: int) -> Iterator[object]:
    """LitData's StreamingDataset, read in its order."""
    from litdata import StreamingDataset

    way, dataset = torchvision_uint8(size), StreamingDataset(str(folder))
    while True:
        yield from map(way, dataset)


def webdataset(pictures: list[bytes], folder: Path, size: int) -> Iterator[object]:
    """WebDataset over a tar file, read in its order."""
    from webdataset import WebDataset

    with tarfile.open(folder / "pictures.tar", "w") as tar:
        for i, data in enumerate(pictures):
            member = tarfile.TarInfo(f"{i:06}.jpg")
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    way = torchvision_uint8(size)
    dataset = WebDataset(str(folder / "pictures.tar"), shardshuffle=False)
    while True:
        yield from dataset.map(lambda sample: way(sample["jpg"]))


def streams(originals: list[bytes], folder: Path, size: int) -> tuple[list[bytes], dict[str, Way]]:
    """The prepared pictures, and what reads them and the raw ones from the disk, by name."""
    for i, data in enumerate(originals):
        for split in ("train", "val")[: 2 if i == 0 else 1]:
            path = folder / "photos" / split / "all" / f"{i:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    options = ["--short_side=256", "--num_workers=0"]
    for out, kind in (("raw", "--raw"), ("jpeg", "--quality=90")):
        shards.main([str(folder / "photos"), str(folder / out), *options, kind])
    pictures = ImageShards.splits(str(folder / "jpeg"))["train"]
    prepared = [pictures.read(i) for i in range(len(pictures))]
    raw = RawImages.splits(folder / "raw")["train"]
    found = {"LitData, prepared copy": litdata(folder / "jpeg/train", size)}
    with suppress(ModuleNotFoundError):
        version("webdataset")
        found["WebDataset, prepared copy"] = webdataset(prepared, folder, size)
    found |= {"anneal, raw copy": raw_copy(raw, size), "resize alone, raw copy": limit(raw, size)}
    return prepared, {name: partial(lambda s, data: next(s), s) for name, s in found.items()}


def seconds(way: Way, pictures: list[bytes], seed: int) -> float:
    """Seconds of the processor for all pictures, of threads that read ahead too."""
    torch.manual_seed(seed)
    start = time.process_time()
    for data in pictures:
        way(data)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a folder of JPEG files, with its subfolders")
    parser.add_argument("--size", type=int, default=224, help="of the crop, in pixels")
    parser.add_argument("--pictures", type=int, default=100, help="how many, at most")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a training on a CPU does
    found = ImageFiles.find(args.folder)
    step = max(1, len(found) // args.pictures)
    files = [found.read(i) for i in range(0, len(found), step)]
    originals = [data for data in files if data.startswith(b"\xff\xd8")][: args.pictures]
    with tempfile.TemporaryDirectory() as folder:
        compare(originals, Path(folder), args.size, args.rounds)


def compare(originals: list[bytes], folder: Path, size: int, rounds: int) -> None:
    """Have all ways take turns, and print how fast they are."""
    prepared, others = streams(originals, folder, size)
    ways = {
        "reference": reference,
        "torchvision, uint8": torchvision_uint8,
        "anneal": anneal,
    }
    runs = [
        (f"{name}, {kind}", way(size), pictures)
        for kind, pictures in (("originals", originals), ("prepared copy", prepared))
        for name, way in ways.items()
    ]
    runs += [(name, way, prepared) for name, way in others.items()]
    raw = (folder / "raw/train/pictures.raw").stat().st_size / len(originals)
    sizes = {name: raw if "raw" in name else np.mean(list(map(len, of))) for name, _, of in runs}
    blocks = range(0, len(originals), BLOCK)
    taken = {name: np.zeros((rounds + 1, len(blocks))) for name, _, _ in runs}
    for r in range(rounds + 1):  # the first one warms up
        for b, start in enumerate(blocks):
            for name, way, pictures in runs if (r + b) % 2 else runs[::-1]:
                taken[name][r, b] = seconds(way, pictures[start : start + BLOCK], seed=r)
    print(
        f"{len(originals)} pictures, {size} px, pillow {version('pillow')}, "
        f"simplejpeg {version('simplejpeg')}"
    )
    spent = {name: each[1:].sum(axis=1) for name, each in taken.items()}
    rows = []
    for name, times in spent.items():
        value, text = ratio(spent["reference, originals"], times)
        speed = f"{len(originals) / np.median(times):,.0f}"
        stored = f"{sizes[name] / 1000:,.0f}"
        rows.append(Row(name, value, {"images/s/core": speed, "ratio": text, "kB/image": stored}))
    hand_over(rows)


if __name__ == "__main__":
    main()
