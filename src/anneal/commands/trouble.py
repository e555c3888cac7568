"""What a step fails by, and which samples of its batch are the reason."""

import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from torch.utils.data import Subset

from anneal.callbacks.seed_every_epoch import restore
from anneal.errors import first_line
from anneal.vision.loader import UnreadableImage

Rows = Sequence[int]
SHOWN = 3  # samples


class Trouble(NamedTuple):
    """What is no number, or raises, and the batch (empty rows: it doesn't tell which of them)."""

    layer: str
    tensor: str
    about: str
    rows: Rows = ()
    batch: int = 0


def halved(rows: Rows, fails: Callable[[Rows], bool]) -> Rows:
    """Return which of some samples fail on their own; all of them, if they fail together only."""
    half = len(rows) // 2
    parts = [part for part in (rows[:half], rows[half:]) if half and fails(part)]
    return [row for part in parts for row in halved(part, fails)] or rows


def unread(
    trainer: Trainer, loader: Any, keys: list[Any], random: Any, e: BaseException
) -> Trouble:
    """Return which sample of a batch can't be read, collated or brought to its device."""
    loader = getattr(loader, "loader", loader)
    samples, everything = [], range(len(keys))
    if not keys or not hasattr(loader, "dataset"):
        return Trouble(type(loader).__name__, "input", about(e), everything)
    restore(random)
    for row, key in enumerate(keys):
        try:
            samples.append(loader.dataset[key])
        except Exception as own:
            e, samples = own, [*samples, UnreadableImage("", "")]
        if isinstance(samples[-1], UnreadableImage):
            return Trouble(type(loader.dataset).__name__, "input", about(e), [row])

    def fails(rows: Rows, transfer: bool = True) -> bool:
        try:
            batch = loader.collate_fn([samples[row] for row in rows])
            if transfer:
                trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        except Exception:
            return True
        return False

    if not fails(everything, transfer=False):
        return Trouble("batch", "input", about(e), halved(everything, fails))
    odd = [row for row in everything if not fails([r for r in everything if r != row], False)]
    return Trouble("collate_fn", "input", about(e), odd or everything)


def about(e: BaseException) -> str:
    """Return what an exception says, and where in the project it was raised."""
    frames = traceback.extract_tb(e.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    return f"{type(e).__name__}: {first_line(e)} ({own[-1].filename}:{own[-1].lineno})"


def in_words(loader: Any, keys: list[Any], rows: Rows) -> str:
    """Name samples of a batch: by index in the data, and by path."""
    if not rows:
        return "none of its own: the batch as a whole"
    dataset = getattr(getattr(loader, "loader", loader), "dataset", None)
    names = [name(dataset, keys[row]) if row < len(keys) else "?" for row in rows[:SHOWN]]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    whole = ": all of the batch" if len(rows) == len(keys) > 1 else ""
    return f"{', '.join(names)}{more} (row {', '.join(map(str, rows[:SHOWN]))}){whole}"


def name(dataset: Any, key: Any) -> str:
    """Return a sample's index in a data set, and the path of its file if it has one."""
    while isinstance(dataset, Subset):
        dataset, key = dataset.dataset, dataset.indices[key]
    index = key[-1] if isinstance(key, tuple) else key
    with suppress(Exception):  # of the many kinds of data sets
        has = hasattr(dataset, "pictures")
        return f"{index} ({dataset.pictures.path(index) if has else dataset.samples[index][0]})"
    return str(index)
