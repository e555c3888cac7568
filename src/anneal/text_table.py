"""A table in plain text."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], left: int | None = None) -> str:
    """Return rows as lines; `left` columns are flush left (None: all of them), the others right."""
    columns = []
    for i, cells in enumerate(zip(*rows, strict=True)):
        align = str.ljust if left is None or i < left else str.rjust
        columns.append([align(cell, max(map(len, cells))) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))
