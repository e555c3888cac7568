"""Surfaces: losses of one or two numbers that an optimizer minimizes and a figure shows.

Each is a function of x, or of x and y, tensors of the same shape. `functions.yaml` has the built-in
ones.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import yaml
from torch import Tensor

from anneal import UserError

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Function:
    """A loss, and what a figure of it shows."""

    loss: Loss  # takes x, or x and y, tensors of one shape, and returns the losses in that shape
    view: tuple[tuple[float, float], ...] = ()  # lowest and highest x (and y) shown, if not all
    minima: tuple[tuple[float, ...], ...] = ()  # the lowest first; empty: not known

    @property
    def formula(self) -> str:
        """The first line of the loss's docstring as far as its colon, or its name."""
        return (self.loss.__doc__ or self.loss.__name__).splitlines()[0].partition(": ")[0]

    @property
    def dims(self) -> int:
        """The number of arguments of the loss, 1 or 2."""
        return len(inspect.signature(self.loss).parameters)

    def __call__(self, points: Tensor) -> Tensor:
        """Return the losses (...) at points (..., dims)."""
        return self.loss(*points.unbind(-1))


BUILT_IN: dict[str, Function] = {}


def surface(*view: tuple[float, float], minima: Any = ()) -> Callable[[Loss], Function]:
    """Decorate a loss of your own with the view and the minima of its `Function`."""
    return lambda loss: Function(loss, view, minima)


def find(name: str) -> Function:
    """Return the built-in function of that name, or the one at an import path.

    Raises:
        UserError: There is none, or it doesn't take one or two numbers.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    try:
        found = resolve_name(name) if "." in name or ":" in name else None
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(f"model.function={name}: {e}") from e
    if not callable(found):
        known = ", ".join(BUILT_IN)
        raise UserError(f"model.function={name}: neither an import path nor one of {known}")
    function = found if isinstance(found, Function) else Function(found)
    if function.dims not in (1, 2):
        raise UserError(f"model.function={name}: takes {function.dims} arguments, not x or x and y")
    return function


def _built_in(name: str, about: str, loss: str, view: Any, minima: Any) -> Function:
    function = eval(f"lambda {', '.join('xy'[: len(view)])}: {loss}", {**vars(torch)})
    function.__name__, function.__doc__ = name, about
    return Function(function, tuple(map(tuple, view)), tuple(map(tuple, minima)))


with Path(__file__).with_suffix(".yaml").open(encoding="utf-8") as file:
    BUILT_IN |= {name: _built_in(name, **known) for name, known in yaml.safe_load(file).items()}
