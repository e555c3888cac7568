"""Splits by name, and those that are drawn from the images for training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anneal.errors import UserError

SPELLED = {"train": "train training", "val": "val valid validation dev", "test": "test testing"}


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
    return next((split for split, of in SPELLED.items() if name.lower() in of.split()), None)


def strata(targets: np.ndarray, task: str) -> np.ndarray:
    """Return the class of each sample, (N,): of several labels the rarest, of numbers the same."""
    if task == "regression":
        return np.zeros(len(targets), np.int64)
    if targets.ndim == 1:
        return targets
    counts = np.where(targets > 0, targets.sum(0), np.inf)
    rarest: np.ndarray = np.where(targets.any(1), counts.argmin(1), targets.shape[1])
    return rarest  # without any: one more class


def hold_out(images: Listing, layout: Any) -> dict[str, str]:
    """Take the splits that are not there out of `train`; return how that was done, for each.

    Groups are taken as a whole, by their rarest class. A class that one would lack is a UserError.
    """
    notes, left, there = {}, 1.0, np.count_nonzero(images.splits == "train")
    for split, option in (("test", "test_split"), ("val", "validation_split")):
        part = getattr(layout, option)
        if split in images.splits or not part:
            continue
        train = np.flatnonzero(images.splits == "train")
        by = strata(images.targets[train], images.task)
        groups = train if images.groups is None else images.groups[train]
        unit = np.unique(groups, return_inverse=True)[1]
        frequent = np.bincount(by)[by].argsort(kind="stable")[::-1]
        of_unit = np.zeros(unit.max(initial=-1) + 1, np.int64)
        of_unit[unit[frequent]] = by[frequent]
        taken = draw(of_unit, part / left, layout.split_seed)[unit]
        for i in np.unique(by) if images.task == "classification" else ():
            if len({*taken[mine := by == i]}) < 2:
                name, grouped = images.names[i], f"images in {len({*unit[mine]})} groups"
                hint = "; for numbers, data.task=regression" if name.isdecimal() else ""
                raise UserError(
                    f"{layout.labels or images.base}: class {name} is too small for train and "
                    f"{split} (data.{option}), {mine.sum()} "
                    f"{'images' if images.groups is None else grouped}: leave it out{hint}"
                )
        images.splits[train[taken]] = split
        left -= part
        how = f"data.{option}={part:g}, data.split_seed={layout.split_seed}"
        notes[split] = f"{taken.sum():,} of {there:,} images, taken out of train ({how})"
    return notes


def draw(by: np.ndarray, part: float, seed: int) -> np.ndarray:
    """Return a mask of the same part of each class, at least one, and not all."""
    by = np.where(np.bincount(by)[by] == 1, by.max(initial=0) + 1, by)  # those of one together
    order = np.random.RandomState(seed).permutation(len(by))  # the same in every release of NumPy
    order = order[by[order].argsort(kind="stable")]
    counts = np.bincount(by)
    number = np.minimum(np.rint(counts * part).clip(1), counts - 1)
    place = np.arange(len(by)) - np.repeat(counts.cumsum() - counts, counts)
    taken = np.empty(len(by), bool)
    taken[order] = place < np.repeat(number, counts)
    return taken
