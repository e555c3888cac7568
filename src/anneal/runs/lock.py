"""One process trains in a run's folder, and one run saves into a folder of checkpoints."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from anneal.errors import UserError, in_a_line
from anneal.runs.folder import OWNER, check_writable, owner_of
from anneal.system import is_first, lock

_held: dict[Path, TextIO] = {}


def hold(folder: Path) -> bool:
    """Keep other runs out of a folder, or raise UserError; return whether this process does it."""
    place = folder.resolve()
    if not is_first():
        return False
    with in_a_line(f"can't write into {folder}"):
        file = _held.get(place) or lock(place)
    if file is None:
        raise UserError(f"{folder} is in use by a training that still runs: wait for it or stop it")
    _held[place] = file
    return True


@contextmanager
def released() -> Iterator[None]:
    """Let others into the folders that are held, after a block or a function."""
    try:
        yield
    finally:
        while _held:
            _held.popitem()[1].close()


def claim(checkpoints: Path, run: Path, resumes: bool) -> None:
    """Hold a folder of checkpoints, and note there which run it belongs to, or raise UserError."""
    place, home = checkpoints.resolve(), run.resolve()
    if home in (place, *place.parents):
        return
    check_writable(checkpoints, "checkpoint.dirpath=")
    if not hold(checkpoints):
        return
    owner = owner_of(checkpoints)
    theirs = owner is not None and owner.resolve() != home
    if theirs or (not resumes and any(checkpoints.glob("*.ckpt"))):
        raise UserError(
            f"checkpoint.dirpath={checkpoints}: holds checkpoints of {owner or 'another run'}; "
            "choose another folder, or null for one in the run's own"
        )
    (checkpoints / OWNER).write_text(os.path.relpath(home, place))
