"""Seconds and memory that the list of ImageNet's 1.28 million files takes (Linux).

Makes a folder of that many names in class folders (hard links, so that no disk fills), builds and
loads its index, and lets workers read all pictures once in random order. The memory that each
worker has for itself should not grow in that time; that of a list of Python tuples, as
torchvision's ImageFolder keeps it, does, since counting references writes to its pages. To read one
of so many pictures should take as long as to read one of a thousand.

    python benchmarks/index_size.py
    python benchmarks/index_size.py --pictures=100000 --folder=/fast/disk
"""

import argparse
import re
import statistics
import time
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info
from turns import Row, hand_over, in_turns

from anneal.vision.index import ImageFolder

FEW = 1000
Listed = ImageFolder | list[tuple[str, int]]


def make_tree(root: Path, pictures: int, classes: int) -> None:
    """ROOT/train/CLASS/*.JPEG, named as ImageNet names them, and a validation picture a class."""
    tiny = BytesIO()
    Image.new("RGB", (8, 8)).save(tiny, "JPEG")
    for c in range(classes):
        name = f"n{c:08}"
        train, val = root / "train" / name, root / "val" / name
        train.mkdir(parents=True)
        val.mkdir(parents=True)
        first = val / f"ILSVRC2012_val_{c:08}.JPEG"
        first.write_bytes(tiny.getvalue())
        for i in range(c, pictures, classes):
            (train / f"{name}_{i // classes}.JPEG").hardlink_to(first)


def own_megabytes() -> float:
    """Memory of this process that it shares with no other (USS)."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(n) for n in re.findall(r"Private_(?:Clean|Dirty): +(\d+) kB", text)) / 1024


def read(pictures: Listed, indices: list[int]) -> None:
    """The bytes and the labels of some pictures."""
    for i in indices:
        if isinstance(pictures, ImageFolder):
            pictures.read(i)
            int(pictures.labels[i])
        else:
            path, _ = pictures[i]
            Path(path).read_bytes()


class Reading(Dataset):
    """Reads pictures by batches of indices; gives the worker's number and its memory."""

    def __init__(self, pictures: Listed) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: list[int]) -> tuple[int, float]:
        read(self.pictures, indices)
        info = get_worker_info()
        return (info.id if info else 0), own_megabytes()


def read_all(pictures: Listed, workers: int) -> tuple[float, float]:
    """Megabytes of a worker at a tenth and at the end of an epoch in random order, their mean."""
    batches = DataLoader(
        Reading(pictures), 1024, shuffle=True, num_workers=workers, collate_fn=lambda pair: pair
    )
    memory = defaultdict(list)
    for worker, megabytes in batches:
        memory[worker].append(megabytes)
    tenth, end = (
        statistics.mean(m[int(part * (len(m) - 1))] for m in memory.values()) for part in (0.1, 1)
    )
    return tenth, end


def microseconds(pictures: ImageFolder, times: int = 20_000) -> float:
    """Time to read a picture's bytes and its label, picked at random."""
    indices = torch.randint(len(pictures), (times,)).tolist()
    start = time.perf_counter()
    read(pictures, indices)
    return (time.perf_counter() - start) / times * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where the names are made; the temporary folder if unset")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory(dir=args.folder) as folder:
        root, cache = Path(folder) / "imagenet", Path(folder) / "cache"
        start = time.perf_counter()
        make_tree(root, args.pictures, args.classes)
        print(f"{args.pictures:,} names made in {time.perf_counter() - start:.1f} s")
        rows = []
        for what in ("built", "loaded"):
            start = time.perf_counter()
            splits = ImageFolder.splits(root, cache)
            spent = time.perf_counter() - start
            rows.append(Row(f"index {what}", spent, {"time": f"{spent:.2f} s"}))
        size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) / 2**20
        rows.append(Row("index on disk", size, {"MB": f"{size:.0f}"}))
        train = splits["train"]
        tenth, end = read_all(train, args.workers)
        as_list = [(train.path(i), int(train.labels[i])) for i in range(len(train))]
        _, listed = read_all(as_list, args.workers)
        cells = {"MB": f"{tenth:.0f}, {end:.0f} at the end", "list of tuples": f"{listed:.0f} MB"}
        text = f"{end / listed:.2f}"
        rows.append(Row("a worker's own memory", end / listed, cells | {"ratio": text}))
        make_tree(Path(folder) / "few", FEW, args.classes)
        few = ImageFolder.splits(Path(folder) / "few", cache)["train"]
        ways = {"many": lambda: microseconds(train), "few": lambda: microseconds(few)}
        many, thousand = (statistics.median(found) for found in in_turns(ways, 5).values())
        more = many - thousand
        cells = {"time": f"{many:.0f} µs", f"of {FEW:,}": f"{thousand:.0f} µs, {more:+.1f} µs"}
        rows.append(Row("a picture read", more, cells))
    hand_over(rows)


if __name__ == "__main__":
    main()
