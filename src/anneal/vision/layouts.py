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
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from anneal.errors import UserError, did_you_mean, read_text
from anneal.vision.files import entries, left_out, missing, pack, sort_out, stamp, walk

KAGGLE = Path("ILSVRC/Data/CLS-LOC")
SOLUTION = "LOC_val_solution.csv"
NAMES = "LOC_synset_mapping.txt"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT = Path("ILSVRC2012_devkit_t12/data")
ALIKE = {"train": ["train", "training"], "val": ["val", "valid", "validation", "dev", "eval"]}
WANTED = "wanted: {root}/train/CLASS/picture.jpg and {root}/val/CLASS/picture.jpg"
Labelled = tuple[np.ndarray, list[str], Counter[str]]  # labels, paths, numbers of other files


def base_of(root: Path) -> Path:
    """Return the folder that `train` and `val` lie in."""
    return root / KAGGLE if (root / KAGGLE / "train").is_dir() else root


def scan(root: Path) -> dict[str, Any]:
    """Return the index of all splits and what it was made from; raise UserError if it can't be."""
    base = base_of(root)
    train = base / "train"
    classes = [d for d, is_folder in entries(train) if is_folder] if train.is_dir() else []
    wanted = f"({WANTED.format(root=root)})"
    if train.is_dir() and not classes:
        hint = "; photos in a CSV file: docs/your-own.md" if [*base.glob("*.csv")] else ""
        raise UserError(f"data.root: there are no class folders in {train} {wanted}{hint}")
    for split in ("train", "val"):
        if not (base / split).is_dir():
            hint = _hint(root, base, split)
            raise UserError(f"data.root: there is no folder {base / split} {wanted}{hint}")
    # A new folder beside them may be a split, or a file the list of classes.
    sources = {str(base): stamp(base)}
    index: dict[str, Any] = {"classes": classes, "sources": sources, "splits": {}}
    for split in ("train", "val", "test"):
        folder = base / split
        folders = {d for d, is_folder in entries(folder) if is_folder} if folder.is_dir() else set()
        if folders:
            labels, paths, others = _by_class_folders(folder, folders, classes, sources)
        elif split == "val":
            labels, paths, others = _flat(root, folder, classes, sources)
        else:
            continue  # test pictures without classes: ImageNet keeps theirs secret
        if split == "train" and (empty := missing(labels, classes)):
            raise UserError(
                f"{folder}: no picture in the class folder {empty[0]}"
                f"{f' (and {len(empty) - 1} others)' if len(empty) > 1 else ''}: remove the "
                f"folder or fill it{left_out(others)}"
            )
        index["splits"][split] = others
        index[f"{split}_names"], index[f"{split}_ends"] = pack(paths)
        index[f"{split}_labels"] = labels
    return index


def _hint(root: Path, base: Path, split: str) -> str:
    """Return what helps if there is no folder of a split, for the end of a line."""
    if (base / split).is_symlink():
        return "; it is a link that leads nowhere"
    if deeper := [p.parent for p in sorted(root.glob(f"*/{split}")) if p.is_dir()]:
        return f"; it lies deeper: --data.root={deeper[0]}"
    folders = [name for name, is_folder in entries(base) if is_folder] if base.is_dir() else []
    if alike := [name for name in folders if name.lower() in ALIKE[split]]:
        return f"; rename the folder {base / alike[0]} to {split}"
    if split == "val":
        return f"; move some pictures of each class of {base / 'train'} there"
    if classes := [d for d in folders if sort_out(base / d, (n for n, _ in entries(base / d)))[0]]:
        shown = ", ".join(classes[:3]) + ", ..." * (len(classes) > 3)
        return f"; move the classes {shown} into train, and some pictures of each into val/CLASS"
    return ""


def _by_class_folders(
    folder: Path, folders: set[str], classes: list[str], sources: dict[str, str]
) -> Labelled:
    if unknown := sorted(folders - set(classes)):
        raise UserError(
            f"{folder / unknown[0]}: no class of that name in {folder.parent / 'train'}"
            f"{f' (and {len(unknown) - 1} others)' if len(unknown) > 1 else ''}"
            f"{did_you_mean(unknown[0], classes)}"
        )
    sources[str(folder)] = stamp(folder)
    loose, _ = sort_out(folder, (name for name, is_folder in entries(folder) if not is_folder))
    others = Counter({"in no class folder": len(loose)} if loose else {})
    paths: list[str] = []
    counts = []
    for name in classes:
        files = walk(folder / name, sources) if name in folders else []
        found, rest = sort_out(folder, (f"{name}/{path}" for path in files))
        paths += sorted(found)
        counts.append(len(found))
        others += rest
    return np.repeat(np.arange(len(classes)), counts), paths, others


def _flat(root: Path, folder: Path, classes: list[str], sources: dict[str, str]) -> Labelled:
    """Read a folder of images whose classes are listed in a file."""
    sources[str(folder)] = stamp(folder)
    paths, others = sort_out(folder, (name for name, _ in entries(folder)))
    file, truth = _ground_truth(root, folder, paths)
    sources[str(file)] = stamp(file)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.empty(len(paths), np.int64)
    for i, path in enumerate(paths):
        wnid = truth.get(Path(path).stem)
        if wnid is None:
            raise UserError(f"{folder / path}: {file} does not say its class")
        if wnid not in number:
            hint = did_you_mean(wnid, classes)
            raise UserError(f"{file}: {path} is of class {wnid}, which is not in train{hint}")
        labels[i] = number[wnid]
    return labels, paths, others


def _ground_truth(root: Path, folder: Path, paths: list[str]) -> tuple[Path, dict[str, str]]:
    """Return the file that lists the classes, and the class folder by name without ending."""
    for place in (root, folder, folder.parent, root / DEVKIT):
        if (file := place / SOLUTION).is_file():
            with _reading(file):
                rows = list(csv.reader(read_text(file).splitlines()))[1:]
                return file, {Path(r[0]).stem: r[1].split()[0] for r in rows if len(r) > 1 and r[1]}
        if (file := place / "val.txt").is_file():
            with _reading(file):
                lines = [line.split() for line in read_text(file).splitlines()]
                return file, {Path(words[0]).stem: words[1] for words in lines if len(words) == 2}
        if (file := place / GROUND_TRUTH).is_file():
            # The kit's own numbers, which are not those of the sorted classes.
            wnids = _devkit_numbers(place / "meta.mat")
            with _reading(file):
                numbers = [int(line) for line in read_text(file).split()]
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


def class_names(root: Path, classes: list[str]) -> list[str]:
    """Return names such as `n01440764 tench` where a file has the words, else the folders'."""
    if not (root / NAMES).is_file():
        return classes
    with _reading(root / NAMES):
        lines = [line.split(maxsplit=1) for line in read_text(root / NAMES).splitlines()]
    words = {w[0]: w[1].split(",")[0] for w in lines if len(w) == 2}
    return [f"{c} {words[c]}" if c in words else c for c in classes]
