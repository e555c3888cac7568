"""A table in plain text."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], left: int | None = None) -> str:
    """Return rows as lines, their columns two spaces apart.

    Args:
        rows: Cells, as many in each row.
        left: How many columns are flush left, the others right; None: all of them.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cut = len(widths) if left is None else left
    aligned = (
        [
            cell.ljust(width) if i < cut else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)
