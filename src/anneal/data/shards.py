"""Pictures past one machine's disk: LitData's shards, in a folder or in an S3 bucket.

python -m anneal.data.shards FOLDER OUT [--short_side=256] [--quality=90] [--num_workers=N]

makes OUT/train and OUT/val of a folder of pictures: LitData's index.json and chunks, and
pictures.npz with what is to be known of all pictures without reading them. They are trained on with
--data.root=OUT or, after `aws s3 sync OUT s3://BUCKET/PREFIX`, --data.root=s3://BUCKET/PREFIX.
"""

import argparse
import hashlib
import json
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm  # type: ignore[import-untyped]

from anneal.data.batches import generator_of
from anneal.data.bucket import Bucket, BucketError, Cached
from anneal.data.decode import BrokenPicture, decode
from anneal.data.folder import FolderPictures
from anneal.errors import UserError

SPLITS = ("train", "val", "test")
CHUNK = 64 << 20  # bytes, LitData's own default
WINDOW = 16  # chunks among which an epoch is shuffled
AHEAD = 4  # chunks that are fetched before they are needed
HELD = WINDOW + 2  # chunks that a process keeps open
INDEX, TABLE = "index.json", "pictures.npz"

# LitData asks a package index for its newest version.
os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")


class ShardPictures:
    """One split of shards.

    From a bucket, chunks come whole into a cache on disk, which the processes of a machine share.
    LitData's own cache serves reading in order: by index it fetches every picture on its own, or
    reads a whole chunk for each, and a killed process leaves chunks in it that nothing removes.

    Args:
        url: Where the split lies, for people.
        folder: Where index.json and, in the end, the chunks lie on disk.
        index: Content of index.json.
        table: Content of pictures.npz.
        cache: Puts chunks into `folder`; None: they are there.
    """

    def __init__(
        self, url: str, folder: Path, index: bytes, table: bytes, cache: Cached | None = None
    ) -> None:
        self.url = url
        self.folder = folder
        self.cache = cache
        try:
            chunks = json.loads(index)["chunks"]
            with np.load(BytesIO(table)) as arrays:
                self.class_names: list[str] = arrays["class_names"].tolist()
                self.labels: np.ndarray = arrays["labels"]
                self.names: np.ndarray = arrays["names"]
                self.ends: np.ndarray = arrays["ends"]
        except (ValueError, KeyError, BadZipFile) as e:
            raise UserError(f"{url}: its {INDEX} or {TABLE} is damaged: convert again") from e
        self.files = [(str(c["filename"]), int(c["chunk_bytes"])) for c in chunks]
        self.starts = np.cumsum([0] + [c["chunk_size"] for c in chunks])
        if self.starts[-1] != len(self.labels):
            raise UserError(f"{url}: {INDEX} and {TABLE} are of different conversions")
        # Tells the workers, in memory that they share, which chunks come next.
        self.sequence = torch.arange(len(self.files)).share_memory_()
        self._reader: _Reader | None = None

    @classmethod
    def splits(
        cls,
        root: str,
        cache_dir: Path | None = None,
        max_cache_gb: float = 100.0,
        storage_options: dict[str, Any] | None = None,
    ) -> dict[str, "ShardPictures"]:
        """`train`, `val` and, if there is one, `test`.

        Args:
            root: What was made by this module: a folder or s3://bucket/prefix.
            cache_dir: Where chunks of a bucket are kept; None: ~/.cache/anneal.
            max_cache_gb: How many GB (10^9 bytes) of them, of all data sets together. A disk that
                holds less holds less of them.
            storage_options: Arguments of boto3's client, such as endpoint_url, apart from what the
                environment says (AWS_ENDPOINT_URL, AWS_PROFILE, ...).

        Raises:
            UserError: There are none, or they can't be read.
        """
        _need_litdata()
        opened = {}
        bucket = Bucket(root, storage_options) if root.startswith("s3://") else None
        for split in SPLITS:
            try:
                if bucket:
                    opened[split] = cls._remote(bucket, split, cache_dir, max_cache_gb)
                else:
                    folder = Path(root) / split
                    index, table = ((folder / name).read_bytes() for name in (INDEX, TABLE))
                    opened[split] = cls(str(folder), folder, index, table)
            except (OSError, BucketError) as e:
                code = e.code if isinstance(e, BucketError) else type(e).__name__
                missing = code in ("NoSuchKey", "FileNotFoundError", "NotADirectoryError")
                # Who may not list a bucket is not told either what is not in it.
                if split == "test" and (missing or code == "AccessDenied"):
                    continue
                if missing:
                    raise UserError(
                        f"{root}: {split}/{INDEX} or {split}/{TABLE} is not there: no shards, or "
                        "not all of them. python -m anneal.data.shards FOLDER OUT makes some"
                    ) from e
                if isinstance(e, OSError):
                    raise UserError(f"{Path(root) / split}: {e.strerror}") from e
                raise
        return opened

    @classmethod
    def _remote(
        cls, bucket: Bucket, split: str, cache_dir: Path | None, max_cache_gb: float
    ) -> "ShardPictures":
        index, table = (bucket.get(f"{split}/{name}") for name in (INDEX, TABLE))
        url = f"{bucket.url}/{split}"
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anneal"
        home = (cache_dir or default) / "shards"
        # A folder of its own for each version of the data: no chunk in it can be of another.
        key = hashlib.sha256(b"\n".join((url.encode(), index, table))).hexdigest()
        folder = home / key[:16]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = folder / f"{INDEX}.{os.getpid()}"
            written.write_bytes(index)
            written.replace(folder / INDEX)
        except OSError as e:
            raise UserError(f"{folder}: no cache for {url} there: {e.strerror}") from e
        cache = Cached(
            Bucket(url, bucket.options, attempts=10), folder, home, int(max_cache_gb * 1e9)
        )
        pictures = cls(url, folder, index, table, cache)
        # For training and validation, or all of a small data set.
        sizes = [size for _, size in pictures.files]
        if cache.max_bytes < (needed := 2 * min(HELD * max(sizes), sum(sizes))):
            raise UserError(
                f"max_cache_gb={max_cache_gb:g}: the {WINDOW} chunks of {url} that are shuffled at "
                f"a time need {needed / 1e9:.3g}"
            )
        return pictures

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def path(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return f"{self.url}#{os.fsdecode(self.names[start : self.ends[index]].tobytes())}"

    def read(self, index: int) -> bytes:
        if self._reader is None or self._reader.pid != os.getpid():
            self._reader = _Reader(self)
        return self._reader.read(int(index))

    def order(self, generator: torch.Generator) -> Tensor:
        """Chunks in random order, pictures shuffled in a window that glides over WINDOW of them."""
        place = torch.randperm(len(self.files), generator=generator)
        self.sequence.copy_(place.argsort())
        counts = torch.from_numpy(np.diff(self.starts))
        spread = torch.rand(len(self), generator=generator, dtype=torch.float64) * WINDOW
        return (place.repeat_interleave(counts) + spread).argsort()


class _Reader:
    """What one process has open of a split."""

    def __init__(self, pictures: ShardPictures) -> None:
        from litdata import StreamingDataset  # type: ignore[import-untyped]

        self.pid = os.getpid()
        self.pictures = pictures
        self.held: OrderedDict[int, BinaryIO | None] = OrderedDict()
        self.lock = threading.Lock()
        # batch_decode=0: no other pictures are unpacked with the one that is asked for.
        self.dataset = StreamingDataset(str(pictures.folder), max_pre_download=HELD, batch_decode=0)

    def read(self, index: int) -> bytes:
        chunk = int(np.searchsorted(self.pictures.starts, index, "right")) - 1
        with self.lock:
            if chunk not in self.held:
                self._hold(chunk)
            self.held.move_to_end(chunk)
            return bytes(self.dataset[index])

    def _hold(self, chunk: int) -> None:
        pictures = self.pictures
        name, size = pictures.files[chunk]
        if pictures.cache:
            self.held[chunk] = pictures.cache.hold(name, size)
            place = int((pictures.sequence == chunk).nonzero()[0])
            following = pictures.sequence[place + 1 : place + 1 + AHEAD].tolist()
            pictures.cache.fetch_ahead([pictures.files[c] for c in following])
        else:
            path = pictures.folder / name
            if not path.is_file() or path.stat().st_size != size:
                raise UserError(f"{path}: missing or not of {size} bytes: copy it again", status=1)
            self.held[chunk] = None
        if len(self.held) > HELD:
            _, file = self.held.popitem(last=False)
            if file:
                file.close()


# ---- making them


class Encoded(Dataset):
    """Pictures as they are to be stored.

    Args:
        pictures: Where they come from.
        short_side: Larger ones are scaled down to this, in pixels; None: none is.
        quality: Of the JPEG that is then made; with neither, a file stays as it is.
    """

    def __init__(
        self, pictures: FolderPictures, short_side: int | None, quality: int | None
    ) -> None:
        self.pictures = pictures
        self.short_side = short_side
        self.quality = quality

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[int, bytes | None, str]:
        """The index, the bytes and an empty string, or None and what is wrong."""
        try:
            data = self.pictures.read(index)
            pixels = decode(data)
        except BrokenPicture as e:
            return index, None, str(e)
        if self.short_side is None and self.quality is None:
            return index, data, ""
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        if self.short_side and (short := min(image.size)) > self.short_side:
            width, height = (max(1, round(s * self.short_side / short)) for s in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=self.quality or 90)
        return index, buffer.getvalue(), ""


def convert(
    encoded: Encoded, out: Path, order: list[int], num_workers: int
) -> Iterator[tuple[str, str]]:
    """Writes the shards of one split, and yields path and reason of each broken picture."""
    from litdata.streaming import Cache  # type: ignore[import-untyped]

    pictures = encoded.pictures
    out.mkdir()
    writer = Cache(str(out), chunk_bytes=CHUNK)
    stored: list[int] = []
    loader = DataLoader(encoded, None, sampler=order, num_workers=num_workers, collate_fn=_as_is)
    for index, data, reason in tqdm(loader, out.name, len(order), unit=" pictures", disable=None):
        if data is None:
            yield pictures.path(index), reason
            continue
        writer[len(stored)] = data
        stored.append(index)
    if not stored:
        raise UserError(f"{pictures.folder}: no picture can be read")
    writer.done()
    writer.merge()
    names = [os.fsencode(os.path.relpath(pictures.path(i), pictures.folder)) for i in stored]
    np.savez_compressed(
        out / TABLE,
        class_names=np.array(pictures.class_names),
        labels=pictures.labels[stored],
        names=np.frombuffer(b"".join(names), np.uint8),
        ends=np.cumsum([len(name) for name in names], dtype=np.int64),
    )


def _as_is(sample: Any) -> Any:
    return sample


def _need_litdata() -> None:
    try:
        import litdata  # noqa: F401
    except ModuleNotFoundError as e:
        raise UserError("shards are read and made by LitData: pip install 'anneal[stream]'") from e


def run(args: argparse.Namespace) -> int:
    """Converts all splits; the number of broken pictures."""
    _need_litdata()
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
    splits = FolderPictures.splits(Path(args.folder))
    broken = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
        whole = Path(made) / "whole"
        whole.mkdir()
        for split, pictures in splits.items():
            # Neighbours in a chunk stay near each other, so they must not be of one class.
            order = list(range(len(pictures)))
            if split == "train":
                order = pictures.order(generator_of(0)).tolist()
            encoded = Encoded(pictures, args.short_side, args.quality)
            for path, reason in convert(encoded, whole / split, order, args.num_workers):
                tqdm.write(f"broken  {path}: {reason}", file=sys.stderr)
                broken += 1
        whole.replace(out)
    count = sum(len(p) for p in splits.values()) - broken
    print(f"{count} pictures in {out}, {broken} broken ones left out")
    return broken


def main(args: list[str] | None = None) -> int:
    """The status is 1 if a picture was broken; all others are in OUT then."""
    parser = argparse.ArgumentParser(
        prog="python -m anneal.data.shards",
        description="Makes LitData shards of a folder of pictures.",
    )
    parser.add_argument("folder", help="with train/CLASS/... and val/CLASS/..., or ImageNet's own")
    parser.add_argument("out", help="a new folder")
    parser.add_argument("--short_side", type=int, help="scale larger pictures down to this")
    parser.add_argument("--quality", type=int, help="of JPEGs made anew (90); else files stay")
    parser.add_argument("--num_workers", type=int, default=len(os.sched_getaffinity(0)))
    try:
        return 1 if run(parser.parse_args(args)) else 0
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.status
    except KeyboardInterrupt:
        return 130
    except OSError as e:
        print(f"error: {e.filename or ''}: {e.strerror or e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
