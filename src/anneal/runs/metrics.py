"""The reader of metrics.csv: whole lines only, whatever a kill or a power failure has left."""

import csv
from pathlib import Path
from typing import NamedTuple


class Table(NamedTuple):
    """What a CSV file holds: its lines as text by column."""

    columns: list[str]
    rows: list[dict[str, str]]

    def values(self, column: str) -> list[float]:
        """Return the values of a column in their order, empty cells left out."""
        return [float(row[column]) for row in self.rows if row.get(column)]


def whole_lines(path: Path, complete: bool = False) -> list[str]:
    """Return the lines that are whole: the last one may be in the middle of being written.

    It needs no end in a file that is `complete`. A power failure can leave zeros in place of lines.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    *lines, last = text.split("\n")
    return [f"{line}\n" for line in lines + [last] * complete if "\0" not in line]


def read(path: Path, complete: bool = False) -> Table:
    """Return what the whole lines hold, but for one of more or fewer values than columns."""
    columns, *rows = list(csv.reader(whole_lines(path, complete))) or [[]]
    whole = (row for row in rows if len(row) == len(columns))
    return Table(columns, [dict(zip(columns, row, strict=True)) for row in whole])
