"""A polynomial that overfits, and what weight decay does about it: network, data and figures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from anneal import InMemoryBatches, UserError
from examples.optimizers.figure import COLOURS, GREY, LabModule, Steps, titled

LIMIT = 2.0


def runge(x: Tensor) -> Tensor:
    """Return y = 1 / (1 + 25 x²)."""
    return 1 / (1 + 25 * x**2)


def points(train: bool) -> tuple[Tensor, Tensor]:
    """Return x and y of the training points, (1, 41), or of those halfway between, (1, 40)."""
    x = torch.arange(-20, 21, dtype=torch.float64)[None] / 10
    x = x if train else x[:, :-1] + 0.05
    return x, runge(x)


class CurvePoints(Steps):
    """Points of Runge's curve y = 1 / (1 + 25 x²), without noise (Runge 1901).

    The training points are x = 0, ±0.1, ±0.2, ... ±2; those for validation and test lie halfway
    between, at ±0.05, ±0.15, ... ±1.95. A batch is all of them, x and y (1, points) each. There are
    41 training points, so that a polynomial of degree 38 can nearly pass through all of them and
    take almost any value in between.
    """

    def batch(self, train: bool) -> tuple[Tensor, Tensor]:
        return points(train)

    def test_dataloader(self) -> InMemoryBatches:
        return self.val_dataloader()


@dataclass
class CurveFit:
    """A polynomial after its training."""

    label: str  # degree, optimizer, settings, schedule
    x: Tensor  # rising, (points,)
    y: Tensor  # its values there
    weights: Tensor  # of the polynomials that it is a sum of, by degree

    def error(self, at: tuple[Tensor, Tensor]) -> float:
        """Return the mean squared error at points x, y, all of which are among those evaluated."""
        x, y = (t.flatten() for t in at)
        return float(np.square(np.interp(x, self.x, self.y) - y.numpy()).mean())


def draw(fits: list[CurveFit], title: str = "") -> Figure:
    """Draw each fit in a panel of its own."""
    title = title or "A polynomial, the points that it is fitted to, and points between"
    figure = titled(title, 2.7 * len(fits) + 1)
    panels = figure.subplots(len(fits), 1, squeeze=False, sharex=True, sharey=True).flat
    for axes, fit in zip(panels, fits, strict=True):
        axes.plot(fit.x, runge(fit.x), color="0.75", lw=5, label="the curve, 1 / (1 + 25 x²)")
        axes.plot(fit.x, fit.y, color=COLOURS[1], lw=1.4, label="the fit")
        for train, name, mark in (True, "train", "ko"), (False, "test", "C0x"):
            label = f"{name} points: mean squared error {fit.error(points(train)):.1e}"
            axes.plot(*(t.flatten() for t in points(train)), mark, ms=4, label=label)
        axes.set(xlim=(-LIMIT, LIMIT), ylabel="y", title=fit.label)
        axes.legend(loc="lower center")
    figure.axes[-1].set_xlabel("x")
    return figure


def draw_weights(fits: list[CurveFit], title: str) -> Figure:
    """Draw the weights of fits of one degree side by side, by degree."""
    figure = titled(title, 4)
    axes = figure.subplots()
    for i, fit in enumerate(fits):
        degrees = np.arange(len(fit.weights))
        at, colour = degrees + 0.4 * (i - 0.5), COLOURS[(1 - i) % 6]
        axes.bar(at, fit.weights.numpy(), 0.4, color=colour, label=fit.label)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(xlabel="degree of the Legendre polynomial", ylabel="its weight in the sum")
    axes.legend()
    return figure


class Curve(LabModule):
    """A polynomial through the points of `CurvePoints`, trained on their mean squared error.

    It is a sum of Legendre polynomials, f(x) = sum of w_k sqrt(2k + 1) P_k(x / 2), which are
    orthonormal over -2 to 2. In powers of x the same polynomial is all but untrainable: there the
    Hessian's eigenvalues differ by a factor of 1e32 at degree 38, and gradient descent does not get
    past the first dozen powers. Here most directions are learnt in a few hundred steps. The slow
    ones are the few that the points hardly determine, which let a fit swing between the points.
    Weight decay, the L2 penalty, keeps these small from the start.

    Args:
        degree: Degree of the polynomial, 0 to 100; it has degree + 1 weights.
    """

    def __init__(self, degree: int = 38, **settings: Any) -> None:
        super().__init__(**settings)
        if not 0 <= degree <= 100:
            raise UserError(f"model.degree={degree}: must lie between 0 and 100")
        self.degree = degree
        self.weights = nn.Parameter(torch.zeros(degree + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return y of the polynomial at x, both of the same shape, which may be any."""
        k = torch.arange(self.degree + 1, device=x.device)
        scaled = x[..., None].to(self.weights.dtype) / LIMIT
        features = torch.special.legendre_polynomial_p(scaled, k) * (2 * k + 1).sqrt()
        y: Tensor = features @ self.weights
        return y

    def error(self, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y.to(self.weights.dtype))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fit"] = vars(self.fit())

    @torch.no_grad()
    def fit(self) -> CurveFit:
        """Return the polynomial as it is now, to be drawn."""
        x = torch.linspace(-LIMIT, LIMIT, 801, dtype=torch.float64)
        y, weights = self(x.to(self.device)).double().cpu(), self.weights.detach().cpu()
        return CurveFit(f"degree {self.degree}, {self.label}", x, y, weights)

    def draw(self) -> Figure:
        """Draw the polynomial, the curve and its points."""
        return draw([self.fit()])
