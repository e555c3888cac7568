"""This machine: CPU cores, files, tables, the cache folder, the allocator, the code's version."""

import csv
import ctypes
import errno
import hashlib
import json
import os
import re
import subprocess
import sysconfig
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

# By which launchers number the processes of a run: Lightning, torchrun, SLURM, LSF, Open MPI.
RANKS = "RANK LOCAL_RANK GROUP_RANK NODE_RANK SLURM_PROCID JSM_NAMESPACE_RANK OMPI_COMM_WORLD_RANK"
SITE_PACKAGES = sysconfig.get_path("purelib")  # where the code of libraries is
MALLOC = {-1: 1024, -2: 64, -3: 32}  # MiB of M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD
NUMBER = r"-(inf|\d+(\.\d+)?(e[+-]\d+)?)$"  # as a float is written
RISKY = re.compile(rf"(?!{NUMBER})[\s=+\-@'\uff1d\uff0b\uff0d\uff20]")  # also their wide forms


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_first() -> bool:
    """Return whether this process is the first of its run, as the environment has it."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS.split())


def cache_folder() -> Path:
    """Return `anneal` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anneal"


@contextmanager
def atomic_write(path: Path, sync: bool = False, shared: bool = False) -> Iterator[Path]:
    """Give the path of a new file beside `path`, which replaces that one at the end.

    So `path` is whole at every moment, or not there. An exception removes the new file. With `sync`
    it is on the disk first, to outlast a power failure; with `shared` several processes may write
    it at the same time.
    """
    # One name, however often a process is killed, unless two could take it.
    part = path.with_name(f".{path.name}.{os.getpid()}.part" if shared else f".{path.name}.part")
    try:
        yield part
        if sync:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def lock(folder: Path) -> TextIO | None:
    """Lock a folder until the file that is returned is closed, or this process ends, however.

    None: it is locked already.
    """
    file = (folder / "lock").open("a")
    held = weakref.WeakSet([file])  # or it would stay open for ever

    def close() -> None:
        for copy in held:
            copy.close()

    try:
        import fcntl  # not on Windows

        os.register_at_fork(after_in_child=close)  # a worker may outlive this process
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ImportError) as e:
        if getattr(e, "errno", None) in (errno.EAGAIN, errno.EACCES):
            return None
        warnings.warn(f"{folder} can't be locked ({e}): use it in one process only", stacklevel=2)
    return file


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file in UTF-8 in which no spreadsheet finds a formula, whole or not at all.

    Text that may begin one gets a ' in front, and so does text that begins with a ', but no number.
    Without the first ' of each cell all is as it was. Bytes of no UTF-8 in a name are escaped.
    """
    safe = ([f"'{c}" if RISKY.match(str(c)) else c for c in row] for row in rows)
    with atomic_write(path) as part, part.open("w", -1, "utf-8", "backslashreplace", "") as file:
        csv.writer(file).writerows(safe)


def text_table(rows: Sequence[Sequence[str]], left: int | None = None) -> str:
    """Return rows as lines; `left` columns are flush left (None: all of them), the others right."""
    columns = []
    for i, cells in enumerate(zip(*rows, strict=True)):
        align = str.ljust if left is None or i < left else str.rjust
        columns.append([align(cell, max(map(len, cells))) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def key_of(path: Path, *more: Any) -> str:
    """Return a file name for what is cached about a folder, and whatever else it follows from."""
    return hashlib.sha256(os.fsencode(path.resolve()) + repr(more).encode()).hexdigest()[:16]


def keep_freed_memory() -> None:
    """Have glibc (Linux) keep up to 1 GiB that is freed; elsewhere do nothing.

    It gives what is free at the end back to the system, which clears every page before it hands it
    out again: a tenth of a step of a convolutional net, whose next step takes what this one freed.
    Blocks of more than 32 MiB, the most that glibc lets be set, go back to the system as before.
    """
    with suppress(AttributeError, OSError, TypeError):  # no glibc, or no C library to ask
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, mebibytes in MALLOC.items():
            mallopt(parameter, mebibytes * 2**20)


def code_version() -> dict[str, Any]:
    """Return the git commit of the code and whether the tree is dirty; None if git can't tell."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        words = ["git", "-C", str(here), *args]
        return subprocess.check_output(words, stderr=subprocess.PIPE, text=True, timeout=10).strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit yet
        return {"commit": None, "dirty": None}


def is_plain(value: Any) -> bool:
    """Whether a value is one that JSON, and so a configuration, can hold."""
    with suppress(TypeError, ValueError):
        return bool(json.dumps(value))
    return False
