"""Splits by name, and those that are drawn from the images for training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anneal.errors import UserError

SPELLED = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass
class Listing:
    """The images of a data set with their targets."""

    base: Path
    paths: list[str]  # below it
    targets: np.ndarray
    splits: np.ndarray  # the name of each one's
    names: list[str]  # of classes, labels or numbers
    task: str = "classification"
    groups: np.ndarray | None = None  # whose images stay together


def split_of(name: str) -> str | None:
    """Return the split that a folder or a value is called by, in any spelling of it."""
    return next((split for split, names in SPELLED.items() if name.lower() in names), None)


def strata(targets: np.ndarray, task: str) -> np.ndarray:
    """Return the class of each sample, (N,): of several labels the rarest, of numbers the same."""
    if task == "regression":
        return np.zeros(len(targets), np.int64)
    if targets.ndim == 1:
        return targets
    counts = np.where(targets > 0, targets.sum(0), np.inf)
    rarest: np.ndarray = np.where(targets.any(1), counts.argmin(1), targets.shape[1])
    return rarest  # one more of images without any


def hold_out(images: Listing, layout: Any) -> dict[str, str]:
    """Take the splits that are not there out of `train`; return a note for each.

    Of images in groups, whole groups are taken, each by its rarest class.

    Raises:
        UserError: A class would be missing from one.
    """
    notes, left = {}, 1.0
    for split, option in (("test", "test_split"), ("val", "validation_split")):
        part = getattr(layout, option)
        if split in images.splits or not part:
            continue
        train = np.flatnonzero(images.splits == "train")
        by = strata(images.targets[train], images.task)
        groups = train if images.groups is None else images.groups[train]
        units, unit = np.unique(groups, return_inverse=True)
        frequent = np.bincount(by)[by].argsort(kind="stable")[::-1]
        of_unit = np.empty(len(units), np.int64)
        of_unit[unit[frequent]] = by[frequent]
        taken = draw(of_unit, part / left, layout.split_seed)[unit]
        for i in np.unique(by) if images.task == "classification" else ():
            if len({*taken[mine := by == i]}) < 2:
                of = "" if images.groups is None else f" in {len({*unit[mine]})} groups"
                raise UserError(
                    f"{images.base}: class {images.names[i]} has {mine.sum()} images{of}, too few "
                    f"for train and {split} (data.{option}): add some, or leave the class out"
                )
        images.splits[train[taken]] = split
        left -= part
        how = f"data.{option}={part:g}, data.split_seed={layout.split_seed}"
        notes[split] = f"{taken.sum():,} of {len(train):,} images, taken out of train ({how})"
    return notes


def draw(by: np.ndarray, part: float, seed: int) -> np.ndarray:
    """Return a mask of the same part of each class, at least one, and not all."""
    order = np.random.RandomState(seed).permutation(len(by))  # the same in every release of NumPy
    order = order[by[order].argsort(kind="stable")]
    counts = np.bincount(by)
    number = np.minimum(np.rint(counts * part).clip(1), counts - 1)
    taken = np.zeros(len(by), bool)
    place = np.arange(len(by)) - np.repeat(counts.cumsum() - counts, counts)
    taken[order[place < np.repeat(number, counts)]] = True
    return taken
