"""Read configuration files: what is wrong with one is said in a line."""

import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from anneal.errors import UserError, read_text

Tree = dict[str, Any]
MOST = 100_000  # values; the longest recipe has a hundred


def read_file(path: Path) -> Tree:
    """Return the tree in a YAML file; raise UserError if there is none."""
    try:
        return parse(read_text(path), str(path))
    except (FileNotFoundError, IsADirectoryError) as e:
        raise UserError(f"--config: {no_file(path)}") from e
    except OSError as e:
        raise UserError(f"--config: {from_here(path)}: {e.strerror}") from e


def parse(text: str, label: str) -> Tree:
    """Return the tree in a YAML text; the label names it in messages."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        # A few nested aliases can make billions of values of some lines.
        if root and _count(root, {}) > MOST:
            raise UserError(f"{label}: its aliases make more than {MOST:,} values of it")
        tree = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}, " if mark else ""
        problem = getattr(e, "problem", None) or " ".join(str(e).split())
        raise UserError(f"{label} is no YAML: {place}{problem}") from e
    if not isinstance(tree, dict):
        what = "is empty" if tree is None else "has no settings, such as 'seed_everything: 0'"
        raise UserError(f"{label} {what}")
    return tree


def _count(node: yaml.Node, counted: dict[int, float]) -> float:
    """Return the number of values when each alias is replaced by what it stands for."""
    if id(node) not in counted:
        counted[id(node)] = math.inf  # if it is met again before its own count is done
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [n for part in parts for n in (part if isinstance(part, tuple) else [part])]
        counted[id(node)] = 1 + sum(_count(n, counted) for n in inner)
    return counted[id(node)]


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
