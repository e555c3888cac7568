"""What a step fails by, and which samples of its batch are the reason."""

import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from torch.utils.data import Subset

from anneal.callbacks.seed_every_epoch import restore
from anneal.errors import first_line
from anneal.vision.loader import UnreadableImage

Rows = Sequence[int]


class Trouble(NamedTuple):
    """What is no number or raises, and by which samples of its batch, if that is known."""

    layer: str
    tensor: str
    about: str
    rows: Rows


def halved(rows: Rows, fails: Callable[[Rows], bool]) -> Rows:
    """Return which of some samples fail on their own; all of them, if they fail together only."""
    half = len(rows) // 2
    parts = [part for part in (rows[:half], rows[half:]) if half and fails(part)]
    return [row for part in parts for row in halved(part, fails)] or rows


def unread(loader: Any, keys: list[Any], random: Any, e: BaseException) -> Trouble:
    """Return which sample of a batch can't be read, or collated with the others."""
    loader = getattr(loader, "loader", loader)
    samples, every = [], range(len(keys))
    if not keys or not hasattr(loader, "dataset"):
        return Trouble("batch", "input", about(e), every)
    restore(random)
    for row, key in enumerate(keys):
        try:
            samples.append(loader.dataset[key])
        except Exception as own:
            return Trouble(type(loader.dataset).__name__, "input", about(own), [row])
        if isinstance(samples[-1], UnreadableImage):
            return Trouble(type(loader.dataset).__name__, "input", about(e), [row])

    def fails(rows: Rows) -> bool:
        try:
            loader.collate_fn([samples[row] for row in rows])
        except Exception:
            return True
        return False

    if not fails(every):  # it is moved to a device, or changed there
        return Trouble("batch", "input", about(e), ())
    odd = [row for row in every if not fails([r for r in every if r != row])]
    return Trouble("collate_fn", "input", about(e), odd)


def about(e: BaseException) -> str:
    """Return what an exception says, and where in the project it was raised."""
    frames = traceback.extract_tb(e.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    return f"{type(e).__name__}: {first_line(e)} ({own[-1].filename}:{own[-1].lineno})"


def in_words(loader: Any, keys: list[Any], rows: Rows) -> str:
    """Name samples of a batch: by index in the data, by path, by row."""
    dataset = getattr(getattr(loader, "loader", loader), "dataset", None)
    names = []
    for row in rows[:3]:
        source: Any = dataset
        key = keys[row] if row < len(keys) else "?"
        while isinstance(source, Subset):
            source, key = source.dataset, source.indices[key]
        key, path = key[-1] if isinstance(key, tuple) else key, ""
        with suppress(Exception):  # of the many kinds of data sets
            found = (
                source.samples[key][0] if hasattr(source, "samples") else source.pictures.path(key)
            )
            path = f" ({found})"
        names.append(f"{key}{path}")
    if not rows:
        return "none of its own: the batch as a whole"
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    whole = ": all of the batch" if len(rows) == len(keys) > 1 else ""
    return f"{', '.join(names)}{more} (row {', '.join(map(str, rows[:3]))}){whole}"
