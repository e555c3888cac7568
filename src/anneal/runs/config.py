"""A run's configuration, read back: parsed, with today's class paths, by the keys one types."""

from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import yaml

from anneal.errors import UserError

FORMAT = 1  # of config.yaml and of checkpoints, which both name it under `format`
# Names of classes that older runs have stored.
RENAMED = {"Picture": "TrainingFigure", "Progressive": "ProgressiveResizing"}


def parse(text: str, where: object) -> dict[str, Any]:
    """Return a configuration with today's class paths; raise UserError if it can't be read here."""
    try:
        # C's parser takes a tenth of the time where it was built, but no path that is no UTF-8.
        fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        tree = yaml.load(text, Loader=yaml.SafeLoader if "\\uDC" in text else fast)
    except yaml.YAMLError as e:
        raise UserError(f"{where}: no YAML: {' '.join(str(e).split())}") from e
    if not isinstance(tree, dict):
        raise UserError(f"{where}: no configuration")
    check_format(tree.pop("format", FORMAT), where)
    current: dict[str, Any] = with_current_names(tree)
    return current


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
