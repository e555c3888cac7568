"""Conversion of a folder of images into LitData shards, or into a file of plain pixels."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from anneal.data.sampler import make_generator
from anneal.errors import UserError, command
from anneal.system import cores
from anneal.vision.decode import UnreadableImageError, decode
from anneal.vision.files import pack
from anneal.vision.index import ImageFolder
from anneal.vision.layouts import Layout
from anneal.vision.raw import PIXELS, TABLE
from anneal.vision.streaming import need_litdata

CHUNK = 64 << 20  # bytes, LitData's own default


@dataclass(eq=False)
class Encoded(Dataset[tuple[int, Any, str]]):
    """Images in the form that is stored, as they are without a `short_side` and a `quality`.

    Of `raw` ones these are the pixels, (H, W, 3) uint8.
    """

    pictures: ImageFolder
    short_side: int | None
    quality: int | None
    raw: bool

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[int, Any, str]:
        """Return the index, what is stored and an empty string, or None and the reason."""
        try:
            data = self.pictures.read(index)
            pixels = decode(data)
        except UnreadableImageError as e:
            return index, None, str(e)
        if self.short_side is None and self.quality is None and not self.raw:
            return index, data, ""
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        if self.short_side and (short := min(image.size)) > self.short_side:
            width, height = (max(1, round(s * self.short_side / short)) for s in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        if self.raw:
            return index, np.array(image), ""
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=self.quality or 90)
        return index, buffer.getvalue(), ""


def convert(
    encoded: Encoded, out: Path, order: list[int], num_workers: int
) -> Iterator[tuple[str, str]]:
    """Write what is stored of one split, and yield path and reason of each broken image."""
    pictures = encoded.pictures
    out.mkdir()
    stored: list[int] = []
    shapes, sums = [], []
    loader = DataLoader(encoded, None, sampler=order, num_workers=num_workers)
    opened: Any = (out / PIXELS).open("wb") if encoded.raw else _shards(out)
    with opened as file:
        bar = tqdm(loader, out.name, len(order), unit=" pictures", disable=None)
        for index, data, reason in bar:
            if data is None:
                yield pictures.path(index), reason
                continue
            if encoded.raw:
                file.write(pixels := data.numpy())
                shapes.append(pixels.shape[:2])
                sums.append(crc32(pixels))
            else:
                file[len(stored)] = data
            stored.append(index)
        if not stored:
            raise UserError(f"{pictures.prefix}, {out.name}: no picture can be read")
    names, ends = pack(pictures.path(i).removeprefix(pictures.prefix) for i in stored)
    arrays: Any = {"names": names, "ends": ends, "labels": pictures.labels[stored]}
    arrays |= {"shapes": shapes, "sums": sums} if encoded.raw else {}
    np.savez_compressed(out / TABLE, class_names=pictures.class_names, task=pictures.task, **arrays)


@contextmanager
def _shards(out: Path) -> Iterator[Any]:
    """Yield LitData's writer, and end its files."""
    from litdata.streaming import Cache

    yield (writer := Cache(str(out), chunk_bytes=CHUNK))
    writer.done()
    writer.merge()


def run(args: Namespace) -> int:
    """Convert all splits, and return the number of broken images."""
    if not args.raw:
        need_litdata()
    elif args.quality is not None:
        raise UserError("--quality is of JPEGs, and --raw makes pixels: leave one of them out")
    if str(args.out).startswith("s3:"):
        raise UserError(f"OUT={args.out}: a folder; aws s3 sync FOLDER {args.out} brings it there")
    for name, value, least, most in (
        ("short_side", args.short_side, 1, 1 << 16),
        ("quality", args.quality, 1, 100),
        ("num_workers", args.num_workers, 0, 1024),
    ):
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name}={value}: must be {least} to {most}")
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder: name another, or remove it")
    splits = ImageFolder.splits(Path(args.folder), layout=Layout.of(args))
    broken = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
        whole = Path(made) / "whole"
        whole.mkdir()
        for split, pictures in splits.items():
            for note in pictures.notes:
                tqdm.write(f"{args.folder}, {split}: {note}", file=sys.stderr)
            # Neighbours in a chunk stay near each other, so they must not be of one class.
            order = list(range(len(pictures)))
            if split == "train":
                order = pictures.order(make_generator(0)).tolist()
            encoded = Encoded(pictures, args.short_side, args.quality, args.raw)
            for path, reason in convert(encoded, whole / split, order, args.num_workers):
                tqdm.write(f"broken  {path}: {reason}", file=sys.stderr)
                broken += 1
        whole.replace(out)
    count = sum(len(p) for p in splits.values()) - broken
    print(f"{count} pictures in {out}, {broken} broken ones left out")
    return broken


@command
def main(args: list[str] | None = None) -> int:
    """Run the command; the status is 1 if an image was broken, and all others are in OUT then."""
    about = "Make LitData shards, or a file of pixels, of a folder of images."
    parser = ArgumentParser(prog="python train.py shards", description=about)
    parser.add_argument("folder", help="with train/CLASS/... and val/CLASS/..., or ImageNet's own")
    parser.add_argument("out", help="a new folder")
    parser.add_argument("--short_side", type=int, help="scale larger pictures down to this")
    parser.add_argument("--quality", type=int, help="of JPEGs made anew (90); else files stay")
    parser.add_argument("--raw", action="store_true", help="pixels, which need no decoding")
    parser.add_argument("--num_workers", type=int, default=cores())
    parser.add_class_arguments(Layout)
    options = parser.parse_args(args)
    try:
        return 1 if run(options) else 0
    except OSError as e:
        raise UserError(f"{e.filename or options.out}: {e.strerror or e}", status=1) from e
