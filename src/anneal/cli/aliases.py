"""How many values a YAML text stands for: a few nested aliases can make billions of some lines."""

import math

import yaml

MOST = 100_000  # values; the longest recipe has a hundred


def values(text: str) -> float:
    """The number of values when each alias is replaced by what it stands for.

    Infinite if one contains itself. 0 if the text is no YAML: to say so is the parser's part.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return 0
    return _count(root, {}) if root else 0


def _count(node: yaml.Node, counted: dict[int, float]) -> float:
    if id(node) not in counted:
        counted[id(node)] = math.inf  # if it is met again before its own count is done
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [n for part in parts for n in (part if isinstance(part, tuple) else [part])]
        counted[id(node)] = 1 + sum(_count(n, counted) for n in inner)
    return counted[id(node)]
