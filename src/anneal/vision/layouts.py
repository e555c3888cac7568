"""Layouts of folders of images, ImageNet's among them, read into one index.

    ROOT/train/CLASS/...  ROOT/val/CLASS/...  (ROOT/test/CLASS/...)     class folders
    ROOT/CLASS/...                            or no val, or no test     split by drawing
    ROOT/...              and `labels`        a table of paths          columns of labels
    ROOT/...              and `label_pattern` names of files            named groups of labels
    ROOT/train/CLASS/...  ROOT/val/*.JPEG     and one of                ImageNet's own archives
        LOC_val_solution.csv                        (Kaggle's: name, class and boxes)
        val.txt                                     (lines of name and class folder)
        ILSVRC2012_validation_ground_truth.txt      (with meta.mat of the development kit)
    ROOT/ILSVRC/Data/CLS-LOC/{train,val}      ROOT/LOC_val_solution.csv (Kaggle's archive)

Names of the classes come from ROOT/LOC_synset_mapping.txt if it is there.
"""

import csv
import os
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anneal.errors import UserError, did_you_mean, read_text, reading
from anneal.vision.files import entries, left_out, pack, sort_out, stamp, walk
from anneal.vision.splits import SPELLED, Listing, hold_out, split_of

KAGGLE = Path("ILSVRC/Data/CLS-LOC")
SOLUTION = "LOC_val_solution.csv"
NAMES = "LOC_synset_mapping.txt"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT = Path("ILSVRC2012_devkit_t12/data")
WANTED = "wanted: {root}/train/CLASS/picture.jpg and the same in val, or {root}/CLASS/picture.jpg"


@dataclass(eq=False)
class Layout:
    """How labels and splits are found, apart from folders.

    Args:
        labels: A CSV or Parquet file with a line for each image. Its paths may lack endings, and
            are relative to `root`, to the file, or to a folder below these.
        path_column: The column of paths. None: one with a usual name, such as image_id.
        label_column: The column of labels, or several. None: one with a usual name, such as label;
            else the only one left, or all that are left if they hold 0 and 1.
        split_column: The column that says train, val or test. None: `split`, if there is one.
        group_column: The column of groups, such as patients: the images of a group all go into the
            same split. None: `group`, if there is one.
        label_separator: What separates the labels of an image that has several.
        label_pattern: A regular expression for the names of files without endings, in place of
            `labels`. Its named groups are the columns, such as (?P<label>[a-z]+)_\\d+.
        task: What the labels are. None: numbers with a decimal point are regression, lists and
            several columns of 0 and 1 are multilabel, all else is classification.
        validation_split: Share of each class for validation, where the data has no such split.
        test_split: Share of each class for the test, where the data has no such split.
        split_seed: Seed by which these are drawn.
    """

    labels: str | None = None
    path_column: str | None = None
    label_column: list[str] | str | None = None
    split_column: str | None = None
    group_column: str | None = None
    label_separator: str = "|"
    label_pattern: str | None = None
    task: Literal["classification", "multilabel", "regression"] | None = None
    validation_split: float = 0.2
    test_split: float = 0.0
    split_seed: int = 0

    def __post_init__(self) -> None:
        parts = self.validation_split, self.test_split
        if min(parts) < 0 or sum(parts) >= 1 or not 0 <= self.split_seed < 2**32:
            raise UserError(
                f"data: validation_split={parts[0]} and test_split={parts[1]} are parts of 1, and "
                f"split_seed={self.split_seed} is a number from 0 on"
            )
        if not self.label_separator:
            raise UserError("data.label_separator: give at least one character")
        if self.labels and self.label_pattern:
            raise UserError("data.labels and data.label_pattern: give one of them")

    @classmethod
    def of(cls, options: Any) -> "Layout":
        """Return the layout of parsed options, or of a data module."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})


def base_of(root: Path) -> Path:
    """Return the folder that `train` and `val` lie in."""
    return root / KAGGLE if (root / KAGGLE / "train").is_dir() else root


def scan(root: Path, layout: Layout) -> dict[str, Any]:
    """Return the index of all splits and what it was made from; raise UserError if it can't be."""
    sources: dict[str, str] = {}
    others: dict[str, Counter[str]] = {}  # files that are no images, by split
    if layout.labels or layout.label_pattern:
        from anneal.vision.tables import listed  # pandas, which takes a while

        images = listed(root, layout, sources)
    else:
        images = _class_folders(root, sources, others)
    drawn = hold_out(images, layout)
    index: dict[str, Any] = {"sources": sources, "splits": {}, "task": images.task}
    base = os.path.relpath(images.base, root)
    base = os.path.abspath(images.base) if base.startswith("..") else base
    index |= {"classes": images.names, "base": base}
    for split in SPELLED:
        chosen = np.flatnonzero(images.splits == split)
        if len(chosen):
            notes = drawn.get(split, ""), left_out(others.get(split, {})).removeprefix(": ")
            index["splits"][split] = [note for note in notes if note]
            paths = (images.paths[i] for i in chosen)
            index[f"{split}_names"], index[f"{split}_ends"] = pack(paths)
            index[f"{split}_labels"] = images.targets[chosen]
        elif split != "test":
            raise UserError(f"{images.base}: there are no images for {split}")
    return index


def split_folders(base: Path) -> dict[str, Path]:
    """Return the folders of splits, by any spelling; raise UserError if two are the same split."""
    found: dict[str, Path] = {}
    for name, is_folder in entries(base):
        split, path = split_of(name), base / name
        if split and path.is_symlink() and not is_folder:
            raise UserError(f"data.root: {path} is a link that leads nowhere")
        if split and is_folder and found.setdefault(split, path) != path:
            both = f"{found[split]} and {path}"
            raise UserError(f"data.root: {both} are both {split}: rename or move one of them")
    return found


def _folders(folder: Path) -> list[str]:
    return [name for name, is_folder in entries(folder) if is_folder] if folder.is_dir() else []


def _class_folders(root: Path, sources: dict[str, str], others: dict[str, Counter[str]]) -> Listing:
    base = base_of(root)
    wanted = f"({WANTED.format(root=root)})"
    if not base.is_dir():
        raise UserError(f"data.root: there is no folder {base} {wanted}")
    # A new folder beside them may be a split, or a file the list of classes.
    sources[str(base)] = stamp(base)
    folders = split_folders(base) or {"train": base}
    train = folders.get("train", base / "train")
    classes = _folders(train)
    for name in classes if train == base else ():
        inner = _folders(base / name)
        if inner and (len(classes) == 1 or "train" in map(split_of, inner)):
            raise UserError(f"data.root: it lies deeper: --data.root={base / name}")
    if not classes:
        where = "; labels stand in {} or in names? --data.labels=FILE or --data.label_pattern"
        hint = where.format(next(base.glob("*.csv"), "a table"))
        raise UserError(f"data.root: there are no class folders in {train} {wanted}{hint}")
    number = {name: i for i, name in enumerate(classes)}
    paths, labels, splits = list[str](), list[int](), list[str]()
    for split, folder in folders.items():
        found, others[split] = sort_out(folder, walk(folder, sources))
        if inner := _folders(folder):
            of = {path: path.partition("/")[0] for path in sorted(found) if "/" in path}
            others[split] += Counter({"in no class folder": len(found) - len(of)})
        elif split == "val":
            of = _listed(root, folder, sorted(found), {*classes}, sources)
        else:
            continue  # test pictures without classes: ImageNet keeps theirs secret
        if unknown := sorted({*inner} - {*classes}):
            raise UserError(
                f"{folder / unknown[0]}: no class of that name in {train}{_more(unknown)}"
                f"{did_you_mean(unknown[0], classes)}"
            )
        if split == "train" and (empty := sorted({*classes} - {*of.values()})):
            raise UserError(
                f"{folder}: no picture in the class folder {empty[0]}{_more(empty)}: remove the "
                f"folder or fill it{left_out(others[split])}"
            )
        paths += [path if folder == base else f"{folder.name}/{path}" for path in of]
        labels += [number[name] for name in of.values()]
        splits += [split] * len(of)
    return Listing(base, paths, np.array(labels), np.array(splits), classes)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} others)" if len(names) > 1 else ""


def _listed(
    root: Path, folder: Path, paths: list[str], classes: set[str], sources: dict[str, str]
) -> dict[str, str]:
    """Return the class of each image of a folder, as a file lists them."""
    file, truth = _ground_truth(root, folder, paths)
    sources[str(file)] = stamp(file)
    of = {path: truth.get(Path(path).stem, "") for path in paths}
    for path in [path for path, name in of.items() if name not in classes][:1]:
        says = f"{of[path]} for its class, which is not in train" if of[path] else "no class for it"
        raise UserError(f"{folder / path}: {file} has {says}{did_you_mean(of[path], classes)}")
    return of


def _ground_truth(root: Path, folder: Path, paths: list[str]) -> tuple[Path, dict[str, str]]:
    """Return the file that lists the classes, and the class folder by name without ending."""
    for place in (root, folder, folder.parent, root / DEVKIT):
        if (file := place / SOLUTION).is_file():
            with reading(file):
                rows = list(csv.reader(read_text(file).splitlines()))[1:]
                return file, {Path(r[0]).stem: r[1].split()[0] for r in rows if len(r) > 1 and r[1]}
        if (file := place / "val.txt").is_file():
            with reading(file):
                lines = [line.split() for line in read_text(file).splitlines()]
                return file, {Path(words[0]).stem: words[1] for words in lines if len(words) == 2}
        if (file := place / GROUND_TRUTH).is_file():
            # The kit's own numbers, which are not those of the sorted classes.
            wnids = _devkit_numbers(place / "meta.mat")
            with reading(file):
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


def class_names(root: Path, classes: list[str]) -> list[str]:
    """Return names such as `n01440764 tench` where a file has the words, else the folders'."""
    if not (root / NAMES).is_file():
        return classes
    with reading(root / NAMES):
        lines = [line.split(maxsplit=1) for line in read_text(root / NAMES).splitlines()]
    words = {w[0]: w[1].split(",")[0] for w in lines if len(w) == 2}
    return [f"{c} {words[c]}" if c in words else c for c in classes]
