"""Imports what every command needs, in little more than half the time: importing this is all.

Of a plain import a fifth goes into scipy, and a quarter into the search for garbage among hundreds
of thousands of objects that are there to stay. That search would come again in every run: what is
imported here is left out of it.
"""

import gc
import sys
from types import ModuleType
from typing import Any


def _import_torchmetrics() -> None:
    """Imports torchmetrics, and torch with it, without scipy.signal.

    Torchmetrics imports scipy.signal only to put a name back, for another package, that newer ones
    lack. Here it finds that name in a stand-in.
    """
    if "scipy.signal" not in sys.modules:
        stand_in: Any = ModuleType("scipy.signal")
        stand_in.hamming = None
        sys.modules["scipy.signal"] = stand_in
        try:
            import torchmetrics  # noqa: F401
        finally:
            del sys.modules["scipy.signal"]


gc.disable()
_import_torchmetrics()
from anneal.cli import main as cli  # noqa: E402

__all__ = ["cli"]

gc.freeze()
gc.enable()
