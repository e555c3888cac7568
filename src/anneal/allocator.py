"""Keeps the memory that a training step on a CPU frees, for the next step."""

import ctypes
from contextlib import suppress

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


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
