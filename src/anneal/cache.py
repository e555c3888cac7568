"""The folder for what is kept to save time, and can be made again."""

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """`anneal` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anneal"


def key_of(path: Path) -> str:
    """A name for what is kept about a folder."""
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
