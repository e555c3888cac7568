"""Images in LitData's shards, in a folder or, past one machine's disk, in an S3 bucket."""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from anneal.errors import UserError, in_a_line
from anneal.system import atomic_write, cache_folder
from anneal.vision.bucket import Bucket, BucketError, Cached
from anneal.vision.files import ImageSource
from anneal.vision.raw import TABLE, read_table
from anneal.vision.splits import SPELLED

WINDOW = 16  # chunks among which an epoch is shuffled
AHEAD = 4  # chunks that are fetched before they are needed
HELD = WINDOW + 2  # chunks that a process keeps open
MAX_CACHE = 10**11  # bytes of chunks, of all data sets together; fewer where the disk has fewer
INDEX = "index.json"

# LitData asks a package index for its newest version.
os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")


class ImageShards(ImageSource):
    """One split of shards.

    From a bucket, chunks come whole into a cache on disk, which the processes of a machine share.
    LitData's own cache serves reading in order: by index it fetches every image on its own, or
    reads a whole chunk for each, and a killed process leaves chunks in it that nothing removes.

    `folder` is where index.json and, in the end, the chunks lie on disk, and `url` where they come
    from. Without a cache they are there.
    """

    def __init__(
        self, url: str, folder: Path, index: bytes, table: bytes, cache: Cached | None = None
    ) -> None:
        self.url = url
        self.folder = folder
        self.cache = cache
        try:
            chunks = json.loads(index)["chunks"]
            super().__init__(*read_table(url, table)[0])
        except (ValueError, KeyError) as e:
            raise UserError(f"{url}: its {INDEX} or {TABLE} is damaged: convert again") from e
        self.files = [(str(c["filename"]), int(c["chunk_bytes"])) for c in chunks]
        self.starts = np.cumsum([0] + [c["chunk_size"] for c in chunks])
        if self.starts[-1] != len(self.labels):
            raise UserError(f"{url}: {INDEX} and {TABLE} are of different conversions")
        # Tells the workers, in memory that they share, which chunks come next.
        self.sequence = torch.arange(len(self.files)).share_memory_()
        self._reader: _Reader | None = None

    @classmethod
    def splits(cls, root: str) -> dict[str, "ImageShards"]:
        """Return `train`, `val` and, if there is one, `test` of what `train.py shards` made.

        That lies in a folder or in s3://bucket/prefix, whose chunks are kept in `cache_folder`.
        """
        need_litdata()
        opened = {}
        bucket = Bucket(root) if root.startswith("s3://") else None
        for split in SPELLED:
            try:
                if bucket:
                    opened[split] = cls._remote(bucket, split)
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
                        "not all of them. python train.py shards FOLDER OUT makes some"
                    ) from e
                if isinstance(e, OSError):
                    raise UserError(f"{Path(root) / split}: {e.strerror}") from e
                raise
        return opened

    @classmethod
    def _remote(cls, bucket: Bucket, split: str) -> "ImageShards":
        index, table = (bucket.get(f"{split}/{name}") for name in (INDEX, TABLE))
        url = f"{bucket.url}/{split}"
        home = cache_folder() / "shards"
        # A folder of its own for each version of the data: no chunk in it can be of another.
        key = hashlib.sha256(b"\n".join((url.encode(), index, table))).hexdigest()
        folder = home / key[:16]
        with in_a_line(f"{folder}: no cache for {url} there"):
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / INDEX, shared=True) as part:
                part.write_bytes(index)
        cache = Cached(Bucket(url, attempts=10), folder, home, MAX_CACHE)
        return cls(url, folder, index, table, cache)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def read(self, index: int) -> bytes:
        if self._reader is None or self._reader.pid != os.getpid():
            self._reader = _Reader(self)
        return self._reader.read(int(index))

    def order(self, generator: torch.Generator) -> Tensor:
        """Shuffle the chunks, and their images in a window that glides over WINDOW of them."""
        place = torch.randperm(len(self.files), generator=generator)
        self.sequence.copy_(place.argsort())
        counts = torch.from_numpy(np.diff(self.starts))
        spread = torch.rand(len(self), generator=generator, dtype=torch.float64) * WINDOW
        return (place.repeat_interleave(counts) + spread).argsort()


class _Reader:
    """The files of a split that one process has open."""

    def __init__(self, pictures: ImageShards) -> None:
        from litdata import StreamingDataset

        self.pid = os.getpid()
        self.pictures = pictures
        self.held: OrderedDict[int, BinaryIO | None] = OrderedDict()
        self.lock = threading.Lock()
        # batch_decode=0: no other images are unpacked with the one that is asked for.
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


def need_litdata() -> None:
    """Raise UserError with what to install if LitData is missing."""
    try:
        import litdata  # noqa: F401
    except ModuleNotFoundError as e:
        raise UserError("shards are read and made by LitData: pip install -e '.[stream]'") from e
