"""A run's configuration, read back: parsed, with today's class paths, by the keys one types."""

import math
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import yaml

from anneal.errors import UserError

FORMAT = 1  # of config.yaml and of checkpoints, which both name it under `format`
MOST = 100_000  # values; the longest recipe has a hundred
# Names of classes that older runs have stored.
RENAMED = {"Picture": "TrainingFigure", "Progressive": "ProgressiveResizing"}


def read_yaml(text: str, label: object) -> dict[str, Any]:
    """Return the tree in a YAML text; the label names it in messages."""
    # C's parser takes a tenth of the time where it was built, but no path that is no UTF-8.
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = yaml.SafeLoader if "\\uDC" in text else fast
    try:
        parser = loader(text)
        root = parser.get_single_node()
        # A few nested aliases can make billions of values of some lines.
        if root and _count(root, {}) > MOST:
            raise UserError(f"{label}: its aliases make more than {MOST:,} values of it")
        tree: Any = parser.construct_document(root) if root else None
    # The others are of values that look like a date or a number, and are none.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as e:
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
        if isinstance(node, yaml.MappingNode):
            _refuse_second(inner[::2])
        counted[id(node)] = 1 + sum(_count(n, counted) for n in inner)
    return counted[id(node)]


def _refuse_second(keys: list[yaml.Node]) -> None:
    """Raise YAMLError if a mapping has a key twice, of which YAML's loader takes the last."""
    known: set[str] = set()
    for key in keys:
        if isinstance(key, yaml.ScalarNode):
            if key.value in known:
                problem = f"a second '{key.value}' beside that above it"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            known.add(key.value)


def parse(text: str, where: object) -> dict[str, Any]:
    """Return a configuration with today's class paths; raise UserError if it can't be read here."""
    tree = read_yaml(text, where)
    check_format(tree.pop("format", FORMAT), where)
    return dict(with_current_names(tree))


def check_format(found: Any, where: object) -> None:
    """Raise UserError if the format of a configuration or a checkpoint is a newer one."""
    if not isinstance(found, int) or found > FORMAT:
        raise UserError(
            f"{where}: format {found} is newer than {FORMAT}, the newest known here: it was "
            "written by a later release, so upgrade to read it"
        )


def with_current_names(tree: Any) -> Any:
    """Return a configuration's tree with every class_path as it is today."""
    if isinstance(tree, list):
        return [with_current_names(node) for node in tree]
    if not isinstance(tree, dict):
        return tree
    args = tree.get("init_args")
    if isinstance(args, dict) and str(tree.get("class_path")).endswith("ImageFolderDataModule"):
        # Until 2.3.0 it had an option more, which stands as null in configurations of that time.
        kept = {k: v for k, v in args.items() if k != "cache_dir" or v is not None}
        tree = tree | {"init_args": kept}
    return {
        key: current_name(value)
        if key == "class_path" and isinstance(value, str)
        else with_current_names(value)
        for key, value in tree.items()
    }


def current_name(path: str) -> str:
    """Return today's name of a class: one that the engine has elsewhere now goes by its short name.

    So do those of the project and of the examples, which the engine once had.
    """
    module, _, name = path.rpartition(".")
    with suppress(ModuleNotFoundError):
        if not module.startswith("anneal.") or find_spec(module):
            return path
    return RENAMED.get(name, name)


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested keys, each under its key as one types it: without `init_args`."""
    for key, value in tree.items():
        path = prefix.removesuffix(".") if key == "init_args" else f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{path}.")
        else:
            yield path, value
