"""What depends on this machine: CPU cores, the cache folder, the memory allocator."""

import ctypes
import hashlib
import os
from contextlib import suppress
from pathlib import Path

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Return `anneal` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anneal"


def key_of(path: Path) -> str:
    """Return a file name for what is cached about a folder."""
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]


def keep_freed_memory() -> None:
    """Has glibc (Linux) keep up to 1 GiB that is freed; elsewhere nothing.

    It gives what is free at the end back to the system, which clears every page before it hands it
    out again: a tenth of a step of a convolutional net, whose next step takes what this one freed.
    Blocks of more than 32 MiB, the most that glibc lets be set, go back to the system as before.
    """
    with suppress(AttributeError, OSError, TypeError):  # no glibc, or no C library to ask
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, size in (
            (TRIM_THRESHOLD, 2**30),
            (TOP_PAD, 64 * 2**20),
            (MMAP_THRESHOLD, 32 * 2**20),
        ):
            mallopt(parameter, size)
