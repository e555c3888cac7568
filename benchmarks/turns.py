"""Ways that take turns, the ratios of their times, and the table that a benchmark hands over."""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats


@dataclass
class Row:
    """A line of a benchmark's table.

    Attributes:
        name: What is measured; its goal in claims.yaml has the same name.
        value: The number that a goal is set for.
        cells: What the table shows, by column.
    """

    name: str
    value: float
    cells: dict[str, str] = field(default_factory=dict)


def in_turns(ways: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """What each way returns: A B C A B C ..., so that a busy machine disturbs all of them."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(times):
        for name, way in ways.items():
            found[name].append(way())
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, str]:
    """Ratio of the medians, and as a text with the extremes over the turns."""
    middle = statistics.median(ours) / statistics.median(theirs)
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return middle, f"{middle:.2f} ({min(each):.2f} to {max(each):.2f})"


def lead(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences of pairs, and half of its 95 % confidence interval (Student's t)."""
    each = np.subtract(ours, theirs)
    return float(each.mean()), float(stats.sem(each) * stats.t.ppf(0.975, len(each) - 1))


def seconds(command: Sequence[str], folder: str | Path, check: bool = True) -> float:
    """Time of a command from start to end, in `folder`."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True, check=check)
    return time.perf_counter() - start


def hand_over(rows: Sequence[Row]) -> None:
    """Prints the table; `python benchmarks` reads it from the file that FIGURES names."""
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    table = [["", *columns], *([r.name, *(r.cells.get(c, "") for c in columns)] for r in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    if path := os.environ.get("FIGURES"):
        Path(path).write_text(json.dumps([asdict(row) for row in rows]))
