"""The one exception that is shown to a person as a line, and not as a traceback."""

import sys
from collections.abc import Callable
from functools import wraps


class UserError(Exception):
    """A mistake in what was typed, configured or put on disk.

    The command line prints its message after ``error:`` and ends with `status`.

    Args:
        message: What was wrong, where (file, key, path), and what to do.
        status: Exit status: 2 for a wrong command line or configuration, 1 for a training that
            can't go on.
    """

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def command(main: Callable[..., int]) -> Callable[..., int]:
    """For a module's `main`: prints a UserError after ``error:``, and returns its status.

    After Ctrl-C that is 130.
    """

    @wraps(main)
    def wrapped(*args: list[str] | None) -> int:
        try:
            return main(*args)
        except UserError as e:
            print(f"error: {e}", file=sys.stderr)
            return e.status
        except KeyboardInterrupt:
            return 130

    return wrapped
