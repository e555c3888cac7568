"""Surfaces: losses of one or two numbers that an optimizer minimizes and a figure shows.

Each is a plain function of x, or of x and y, tensors of the same shape.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name

import torch
from torch import Tensor

from anneal import UserError

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Function:
    """A loss, and what a figure of it shows.

    Args:
        loss: Takes x, or x and y, tensors of one shape, and returns the losses in that shape.
        view: Lowest and highest value shown, of x (and of y). Empty: what a trajectory covers.
        minima: All minima, the lowest first. Empty: not known.
    """

    loss: Loss
    view: tuple[tuple[float, float], ...] = ()
    minima: tuple[tuple[float, ...], ...] = ()

    @property
    def name(self) -> str:
        return self.loss.__name__

    @property
    def formula(self) -> str:
        """The first line of the loss's docstring as far as its colon, or its name."""
        return (self.loss.__doc__ or self.name).splitlines()[0].partition(": ")[0]

    @property
    def dims(self) -> int:
        """The number of arguments of the loss, 1 or 2."""
        return len(inspect.signature(self.loss).parameters)

    def __call__(self, points: Tensor) -> Tensor:
        """Return the losses (...) at points (..., dims)."""
        return self.loss(*points.unbind(-1))


BUILT_IN: dict[str, Function] = {}


def surface(
    *view: tuple[float, float], minima: tuple[tuple[float, ...], ...] = ()
) -> Callable[[Loss], Function]:
    """Decorate a loss, a built-in one or your own, with what a figure of it shows.

    Args:
        *view: Lowest and highest value shown, of x (and of y).
        minima: All minima, the lowest first.
    """
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
        raise UserError(
            f"model.function={name}: neither an import path nor one of {', '.join(BUILT_IN)}"
        )
    function = found if isinstance(found, Function) else Function(found)
    if function.dims not in (1, 2):
        raise UserError(f"model.function={name}: takes {function.dims} arguments, not x or x and y")
    return function


# ---- of one number


@surface((-5, 5), minima=((0,),))
def well(x: Tensor) -> Tensor:
    """x²/2: the gradient is x, so plain descent multiplies x by 1 - lr at each step."""
    return x**2 / 2


@surface((-3, 6), minima=((0,), (2.92245,)))
def two_wells(x: Tensor) -> Tensor:
    """sqrt(1 + x²) - 0.8 exp(-8 (x - 3)²): a wide deep well at 0, a narrow shallow one near 3.

    The curvature is 1 in the deep well and 11 in the shallow one, and far out the slope is 1, so
    that too large a rate bounces instead of growing without bound.
    """
    return (1 + x**2).sqrt() - 0.8 * torch.exp(-8 * (x - 3) ** 2)


# ---- of two numbers


@surface((-5, 5), (-3, 3), minima=((0, 0),))
def quadratic(x: Tensor, y: Tensor) -> Tensor:
    """x²/2 + 10 y²/2: ill-conditioned, ten times as steep in y as in x."""
    return (x**2 + 10 * y**2) / 2


@surface((-10, 2), (-2, 2), minima=((0, 0),))
def valley(x: Tensor, y: Tensor) -> Tensor:
    """x²/20 + sqrt(1 + 25 y²) - 1: a long valley between steep walls.

    The floor is curved 250 times as much in y as in x; up on the walls the slope is 5.
    """
    return x**2 / 20 + (1 + 25 * y**2).sqrt() - 1


@surface((-1.5, 1.5), (-1.5, 1.5), minima=((0, 0),))
def scales(x: Tensor, y: Tensor) -> Tensor:
    """50 x² + 0.005 y²: gradients of very different scale, 100 x and 0.01 y."""
    return 50 * x**2 + 0.005 * y**2


@surface((-2, 2), (-3, 3), minima=((0, -2), (0, 2)))
def saddle(x: Tensor, y: Tensor) -> Tensor:
    """x²/2 - y²/2 + y⁴/16: a saddle at 0, where the gradient is 0, between two minima."""
    return x**2 / 2 - y**2 / 2 + y**4 / 16


@surface((-2, 2), (-1, 3), minima=((1, 1),))
def rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    """(1 - x)² + 100 (y - x²)²: a bent valley (Rosenbrock 1960, Computer Journal 3)."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@surface((-4.5, 4.5), (-4.5, 4.5), minima=((3, 0.5),))
def beale(x: Tensor, y: Tensor) -> Tensor:
    """Sum of (c - x + x yⁱ)² for c = 1.5, 2.25, 2.625 and i = 1, 2, 3: flat, with steep corners.

    (Beale 1958, On an iterative method for finding a local minimum)
    """
    terms = zip((1.5, 2.25, 2.625), (1, 2, 3), strict=True)
    return torch.stack([(c - x + x * y**i) ** 2 for c, i in terms]).sum(0)


@surface((-3.5, 3.5), (-3.5, 3.5), minima=((0, 0),))
def rastrigin(x: Tensor, y: Tensor) -> Tensor:
    """20 + x² + y² - 10 cos 2πx - 10 cos 2πy: a minimum near every pair of whole numbers.

    (Rastrigin 1974, Systems of extremal control)
    """
    return 20 + x**2 + y**2 - 10 * torch.cos(2 * torch.pi * x) - 10 * torch.cos(2 * torch.pi * y)


@surface(
    (-5, 5),
    (-5, 5),
    minima=((3, 2), (-2.805118, 3.131313), (-3.77931, -3.283186), (3.584428, -1.848127)),
)
def himmelblau(x: Tensor, y: Tensor) -> Tensor:
    """(x² + y - 11)² + (x + y² - 7)²: four minima, all 0.

    (Himmelblau 1972, Applied nonlinear programming)
    """
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


BUILT_IN |= {f.name: f for f in list(globals().values()) if isinstance(f, Function)}
