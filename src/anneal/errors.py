"""The one exception that is shown to a person as a line, and not as a traceback."""


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
