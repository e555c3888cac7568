"""Read configuration files: what is wrong with one is said in a line."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from anneal.errors import UserError, read_text
from anneal.runs.config import read_yaml

Tree = dict[str, Any]


def read_file(path: Path) -> Tree:
    """Return the tree in a YAML file; raise UserError if there is none."""
    try:
        return read_yaml(read_text(path), str(path))
    except (FileNotFoundError, IsADirectoryError) as e:
        raise UserError(f"--config: {no_file(path)}") from e
    except OSError as e:
        raise UserError(f"--config: {from_here(path)}: {e.strerror}") from e


def no_file(file: Path) -> str:
    """Say what is wrong with a path that should lead to a configuration file."""
    folders = (Path("configs"), file.parent)
    known = {path.name: from_here(path) for f in folders for path in f.glob("[!.]*.yaml")}
    near = get_close_matches(file.with_suffix(".yaml").name, known, n=1, cutoff=0.8)
    hint = f"; did you mean {known[near[0]]}?" if near else ""
    what = "a directory, no file" if file.is_dir() else "no such file"
    return f"{what}: {from_here(file)}{hint}"


def from_here(path: Path) -> str:
    """Return a path as seen from the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def typed_key(key: str) -> str:
    """Return a key as a person types it: that of model.init_args.lr is model.lr."""
    parts = key.lstrip("-").partition("=")[0].rstrip("+").split(".")
    return ".".join(p for p in parts if p not in ("class_path", "init_args", "dict_kwargs"))
