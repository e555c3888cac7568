"""One process trains in a run's folder, and one run saves into a folder of checkpoints."""

import os
from pathlib import Path
from typing import TextIO

from anneal.errors import UserError
from anneal.runs.folder import OWNER, check_writable, owner_of
from anneal.system import lock

# By which launchers number the processes of a run: Lightning, torchrun, SLURM, LSF, Open MPI.
NUMBERS = (
    "RANK LOCAL_RANK GROUP_RANK NODE_RANK SLURM_PROCID JSM_NAMESPACE_RANK OMPI_COMM_WORLD_RANK"
)
_held: dict[Path, TextIO] = {}


def is_first_process() -> bool:
    """Return whether this is the first process of a run, the one that writes and holds folders."""
    return all(os.environ.get(name, "0") == "0" for name in NUMBERS.split())


def hold(folder: Path) -> None:
    """Keep other runs out of a folder until `release` or the end of this process, however it ends.

    Raises:
        UserError: Another process holds it, or it can't be written.
    """
    place = folder.resolve()
    if place in _held:
        return
    try:
        file = lock(place)
    except OSError as e:
        raise UserError(f"can't write into {folder}: {e.strerror}") from e
    if file is None:
        raise UserError(
            f"{folder} is in use by a training that still runs: wait for its end, or stop it"
        )
    _held[place] = file


def claim(checkpoints: Path, run: Path, resumes: bool) -> None:
    """Hold a folder of checkpoints outside of the run's, and note there which run it belongs to.

    Raises:
        UserError: It can't be written, or it holds checkpoints of another run.
    """
    if run in (checkpoints, *checkpoints.parents):
        return
    if ":/" in str(checkpoints):
        raise UserError(f"checkpoint.dirpath={checkpoints}: a folder of this machine, no address")
    check_writable(checkpoints, "checkpoint.dirpath=")
    if not is_first_process():
        return
    hold(checkpoints)
    owner = owner_of(checkpoints)
    theirs = owner is not None and owner.resolve() != run.resolve()
    if theirs or (not resumes and any(checkpoints.glob("*.ckpt"))):
        raise UserError(
            f"checkpoint.dirpath={checkpoints}: holds checkpoints of {owner or 'another run'}; "
            "choose another folder, or null for one in the run's own"
        )
    relative = os.path.relpath(run.resolve(), checkpoints.resolve())
    (checkpoints / OWNER).write_text(relative)


def release() -> None:
    """Let others into the folders that this process holds."""
    while _held:
        _held.popitem()[1].close()
