"""What ended a run, as the line that a person reads."""

import errno
import re

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from anneal import launch as processes
from anneal.cli.memory import explain, is_out_of_memory
from anneal.errors import UserError, first_line


def describe_failure(e: Exception) -> processes.Failure | None:
    """What a person reads of a mistake of theirs, and the exit status; None: it is a bug."""
    if found := _describe(e):
        return "; ".join([found[0], *getattr(e, "__notes__", [])]), found[1]
    return None


def _describe(e: Exception) -> processes.Failure | None:
    if isinstance(e, UserError):
        return f"error: {e}" if e.status else str(e), e.status
    if isinstance(e, MisconfigurationException):
        return f"error: {e}", 2
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"error: {e.filename or 'the run'}: {e.strerror}; free some space", 1
    ended = r"DataLoader worker .* (killed by signal: [\w ]+|exited unexpectedly)"
    if found := re.search(ended, f"{e} {e.__cause__}"):
        return (
            f"error: a process that reads the data: {found[1]}. Is the memory full, or /dev/shm? "
            "Lower data.num_workers or data.batch_size, or give a container more (docker run "
            "--shm-size=8g)",
            1,
        )
    if is_out_of_memory(e):
        return f"error: {explain(e)}", 1
    if processes.is_lost(e):
        what = "the connection to another process is lost: see why it ended"
        return f"error: {what} ({first_line(e)})", 1
    return None
