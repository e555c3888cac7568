"""Layouts of folders of images, ImageNet's among them, read into one index.

    ROOT/train/CLASS/...  ROOT/val/CLASS/...  (ROOT/test/CLASS/...)     class folders
    ROOT/train/CLASS/...  ROOT/val/*.JPEG     and one of                ImageNet's own archives
        LOC_val_solution.csv                        (Kaggle's: name, class and boxes)
        val.txt                                     (lines of name and class folder)
        ILSVRC2012_validation_ground_truth.txt      (with meta.mat of the development kit)
    ROOT/ILSVRC/Data/CLS-LOC/{train,val}      ROOT/LOC_val_solution.csv (Kaggle's archive)

Names of the classes come from ROOT/LOC_synset_mapping.txt if it is there.
"""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from anneal.errors import UserError
from anneal.vision.files import is_picture, missing, pack

KAGGLE = Path("ILSVRC/Data/CLS-LOC")
SOLUTION = "LOC_val_solution.csv"
NAMES = "LOC_synset_mapping.txt"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT = Path("ILSVRC2012_devkit_t12/data")
WANTED = "wanted: {root}/train/CLASS/picture.jpg and {root}/val/CLASS/picture.jpg"


def base_of(root: Path) -> Path:
    """Return the folder that `train` and `val` lie in."""
    return root / KAGGLE if (root / KAGGLE / "train").is_dir() else root


def scan(root: Path) -> dict[str, Any]:
    """Return the index of all splits, and the folders and files it was made from.

    Raises:
        UserError: The folder is in none of the layouts, or its parts disagree.
    """
    base = base_of(root)
    for split in ("train", "val"):
        if not (base / split).is_dir():
            deeper = [p.parent for p in sorted(root.glob(f"*/{split}")) if p.is_dir()]
            hint = f"; it lies deeper: --data.root={deeper[0]}" if deeper else ""
            wanted = WANTED.format(root=root)
            raise UserError(f"data.root: there is no folder {base / split} ({wanted}){hint}")
    classes = sorted(d.name for d in _visible(base / "train") if d.is_dir())
    if not classes:
        wanted = WANTED.format(root=root)
        raise UserError(f"data.root: there are no class folders in {base / 'train'} ({wanted})")
    index: dict[str, Any] = {"classes": classes, "sources": {}, "splits": []}
    for split in ("train", "val", "test"):
        folder = base / split
        folders = {d.name for d in _visible(folder) if d.is_dir()} if folder.is_dir() else set()
        if folders:
            labels, paths = _by_class_folders(folder, folders, classes, index["sources"])
        elif split == "val":
            labels, paths = _flat(root, folder, classes, index["sources"])
        else:
            continue  # test pictures without classes: ImageNet keeps theirs secret
        if split == "train" and (empty := missing(labels, classes)):
            raise UserError(
                f"{folder}: no picture in the class folder {empty[0]}"
                f"{f' (and {len(empty) - 1} others)' if len(empty) > 1 else ''}: remove the "
                "folder or fill it"
            )
        index["splits"].append(split)
        index[f"{split}_names"], index[f"{split}_ends"] = pack(paths)
        index[f"{split}_labels"] = labels
    return index


def _by_class_folders(
    folder: Path, folders: set[str], classes: list[str], sources: dict[str, int]
) -> tuple[np.ndarray, list[str]]:
    if unknown := sorted(folders - set(classes)):
        raise UserError(
            f"{folder / unknown[0]}: no class of that name in {folder.parent / 'train'}"
            f"{f' (and {len(unknown) - 1} others)' if len(unknown) > 1 else ''}"
        )
    sources[str(folder)] = stamp(folder)
    paths: list[str] = []
    counts = []
    for name in classes:
        found = sorted(_walk(folder / name, name, sources)) if name in folders else []
        paths += found
        counts.append(len(found))
    return np.repeat(np.arange(len(classes)), counts), paths


def _flat(
    root: Path, folder: Path, classes: list[str], sources: dict[str, int]
) -> tuple[np.ndarray, list[str]]:
    """Read a folder of images whose classes are listed in a file."""
    sources[str(folder)] = stamp(folder)
    paths = sorted(e.name for e in _visible(folder) if is_picture(e.name))
    file, truth = _ground_truth(root, folder, paths)
    sources[str(file)] = stamp(file)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.empty(len(paths), np.int64)
    for i, path in enumerate(paths):
        wnid = truth.get(Path(path).stem)
        if wnid is None:
            raise UserError(f"{folder / path}: {file} does not say its class")
        if wnid not in number:
            raise UserError(f"{file}: {path} is of class {wnid}, which is not in train")
        labels[i] = number[wnid]
    return labels, paths


def _ground_truth(root: Path, folder: Path, paths: list[str]) -> tuple[Path, dict[str, str]]:
    """Return the file that lists the classes, and the class folder by name without ending."""
    for place in (root, folder, folder.parent, root / DEVKIT):
        if (file := place / SOLUTION).is_file():
            with _reading(file), file.open(newline="") as f:
                rows = list(csv.reader(f))[1:]
                return file, {Path(r[0]).stem: r[1].split()[0] for r in rows if len(r) > 1 and r[1]}
        if (file := place / "val.txt").is_file():
            with _reading(file):
                lines = [line.split() for line in file.read_text().splitlines()]
                return file, {Path(words[0]).stem: words[1] for words in lines if len(words) == 2}
        if (file := place / GROUND_TRUTH).is_file():
            # The kit's own numbers, which are not those of the sorted classes.
            wnids = _devkit_numbers(place / "meta.mat")
            with _reading(file):
                numbers = [int(line) for line in file.read_text().split()]
                if len(numbers) != len(paths):
                    raise ValueError(f"{len(numbers)} lines for {len(paths)} pictures in {folder}")
                return file, {Path(p).stem: wnids[n] for p, n in zip(paths, numbers, strict=True)}
    raise UserError(
        f"{folder} has no class folders ({WANTED.format(root=root)}). If its pictures are "
        f"ImageNet's, put {SOLUTION} (or val.txt with a line NAME CLASS for each) into {root}"
    )


def _devkit_numbers(meta: Path) -> dict[int, str]:
    """Return class folders by ILSVRC2012_ID."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in np.atleast_1d(synsets)}
    except Exception as e:  # a damaged file ends in one of a dozen types
        raise UserError(f"{meta}: needed to read {GROUND_TRUTH} beside it: {e}") from e


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Name the list that can't be understood."""
    try:
        yield
    except (OSError, ValueError, LookupError, csv.Error) as e:
        raise UserError(f"{file} can't be read: {type(e).__name__}: {e}") from e


def _walk(folder: Path, prefix: str, sources: dict[str, int]) -> Iterator[str]:
    """Yield the images of a class folder and its subfolders, as paths below the split's folder."""
    sources[str(folder)] = stamp(folder)
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{prefix}/{entry.name}", sources)
        elif is_picture(entry.name):
            yield f"{prefix}/{entry.name}"


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".")]
    except OSError as e:
        raise UserError(f"{folder}: {e.strerror}") from e


def class_names(root: Path, classes: list[str]) -> list[str]:
    """Return names such as `n01440764 tench` where a file has the words, else the folders'."""
    if not (root / NAMES).is_file():
        return classes
    with _reading(root / NAMES):
        lines = [line.split(maxsplit=1) for line in (root / NAMES).read_text().splitlines()]
    words = {w[0]: w[1].split(",")[0] for w in lines if len(w) == 2}
    return [f"{c} {words[c]}" if c in words else c for c in classes]


def stamp(path: Path) -> int:
    """Return what changes when a file is written, or an entry of a folder comes, goes or moves."""
    return path.stat().st_mtime_ns
