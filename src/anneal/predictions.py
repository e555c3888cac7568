"""Writes what a classifier predicted."""

import csv
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

TOP = 3


def write_predictions(
    path: Path, batches: Iterable[Tensor], class_names: list[str] | None = None
) -> None:
    """A CSV file with a line for every sample: its index and the most likely classes.

    Args:
        path: File to write.
        batches: Probabilities, (batch, classes) each, in the order of the samples.
        class_names: Names to write; None: the classes' numbers.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        index = 0
        for probabilities in batches:
            top = probabilities.float().topk(min(TOP, probabilities.shape[1]))
            for values, classes in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                if index == 0:
                    ranks = range(1, len(classes) + 1)
                    header = [name for r in ranks for name in (f"class_{r}", f"probability_{r}")]
                    writer.writerow(["index", *header])
                row = [
                    x
                    for c, p in zip(classes, values, strict=True)
                    for x in (class_names[c] if class_names else c, f"{p:.6f}")
                ]
                writer.writerow([index, *row])
                index += 1
