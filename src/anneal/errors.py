"""The one exception that is shown to a person as a line, and not as a traceback."""

import csv
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from unicodedata import normalize


class UserError(Exception):
    """A mistake in what was typed, configured or put on disk.

    The command line prints its message after ``error:`` and ends with `status`. Whatever looks at
    such things may raise it, which its docstring need not say.

    Args:
        message: What was wrong, where (file, key, path), and what to do.
        status: Exit status: 2 for a wrong command line or configuration, 1 for a training that
            can't go on.
    """

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


SHOWN: list[str] = []  # the mistakes that were shown, as `--json` says them


def show(text: str) -> None:
    """Print a line, or several, to stderr, after all that was printed before."""
    *_, raised = text.split("Traceback (most recent call last):")
    shown = r"^error: (.*)" if raised == text else r"^\S.*"  # what is not indented
    SHOWN.extend(re.findall(shown, raised, re.MULTILINE))
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def command(main: Callable[..., int]) -> Callable[..., int]:
    """For a `main`: prints a UserError after ``error:`` and returns its status, 130 of Ctrl-C."""

    @wraps(main)
    def wrapped(*args: list[str] | None) -> int:
        try:
            return main(*args)
        except UserError as e:
            show(f"error: {e}")
            return e.status
        except PermissionError as e:
            show(f"error: {e.filename or ''}: {e.strerror}")
            return 2
        except KeyboardInterrupt:
            return 130

    return wrapped


def nearest(word: str, names: Collection[str]) -> str:
    """The name most like `word`, or "": as a whole, or else by the last part of a dotted key, or
    else with a mistake in the part before that."""
    for cutoff, part in ((0.8, str.lower), (0.7, lambda name: name.rpartition(".")[2].lower())):
        views = {part(name): name for name in sorted(names, key=len, reverse=True)}
        if found := get_close_matches(part(word), views, n=1, cutoff=cutoff):
            return views[found[0]]
    above, _, last = word.rpartition(".")
    found = get_close_matches(above, names, n=1, cutoff=0.8) if above not in ("", *names) else []
    return f"{found[0]}.{last}" if found else ""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message that offers the nearest name, or nothing."""
    names = list(names)
    near = nearest(word, names)
    return other_unicode(word, names) or (f"; did you mean {near}?" if near else "")


def other_unicode(word: str, names: Iterable[str]) -> str:
    """The end of a message if a name looks the same as `word`: a Mac takes accents apart."""
    alike = [n for n in {*names} - {word} if normalize("NFC", n) == normalize("NFC", word)]
    return f"; in Unicode {word!a} is not {alike[0]!a}: rename one" if alike else ""


def read_text(path: Path) -> str:
    """Return a file's text, UTF-8 with or without a byte order mark; else raise UserError."""
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4]:
        raise UserError(f"{path} can't be read: UTF-16, as PowerShell's > writes; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        reason = f"{e.reason} at byte {e.start}"
        raise UserError(f"{path} can't be read: {reason}; save it as UTF-8") from e


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Name a list or table that can't be understood."""
    try:
        yield
    except (OSError, ValueError, LookupError, csv.Error) as e:
        raise UserError(f"{file} can't be read: {type(e).__name__}: {first_line(e)}") from e


@contextmanager
def in_a_line(what: object, status: int = 2) -> Iterator[None]:
    """Say in a line what the system refuses: a path, or what can't be done to it."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{what}: {e.strerror or first_line(e)}", status) from e


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
