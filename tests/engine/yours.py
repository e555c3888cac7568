"""The classes of the project under test: `from yours import MLP`.

The engine's tests are the same in every clone, so they never say what its package is called:
they look in the packages that train.py names.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import train

PACKAGE = train.PACKAGES[0].partition(".")[0]


def __getattr__(name: str) -> Any:
    for package in train.PACKAGES if name[0] != "_" else ():
        for module in iter_modules(import_module(package).__path__, f"{package}."):
            found = getattr(import_module(module.name), name, None)
            if getattr(found, "__module__", None) == module.name:
                return found
    raise AttributeError(f"no class {name} in {', '.join(train.PACKAGES)}")
