"""Figures of polynomial fits: the curve, its training and test points, and the fit."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from examples.optimizers.figure import COLOURS, GREY, styled, titled
from examples.optimizers.points import LIMIT, runge, test_points, train_points


@dataclass
class CurveFit:
    """A fitted curve.

    Args:
        label: Degree, optimizer, settings, schedule.
        x: Where it was evaluated, rising, (points,).
        y: Its values there.
        weights: Those of the polynomials that it is a sum of, by degree.
    """

    label: str
    x: Tensor
    y: Tensor
    weights: Tensor

    def error(self, points: tuple[Tensor, Tensor]) -> float:
        """Return the mean squared error at points x, y, all of which are among those evaluated."""
        x, y = (t.flatten() for t in points)
        nearest = (self.x - x[:, None]).abs().argmin(1)
        return float((self.y[nearest] - y).square().mean())


@styled
def draw(fits: list[CurveFit], title: str = "") -> Figure:
    """Draw each fit in a panel of its own."""
    title = title or "A polynomial, the points that it is fitted to, and points between"
    figure = titled(title, 2.7 * len(fits) + 1)
    panels = figure.subplots(len(fits), 1, squeeze=False, sharex=True, sharey=True).flat
    for axes, fit in zip(panels, fits, strict=True):
        axes.plot(fit.x, runge(fit.x), color="0.75", lw=5, label="the curve, 1 / (1 + 25 x²)")
        axes.plot(fit.x, fit.y, color=COLOURS[1], lw=1.4, label="the fit")
        for name, points, style in (
            ("train", train_points(), {"marker": "o", "color": "black"}),
            ("test", test_points(), {"marker": "x", "color": COLOURS[0]}),
        ):
            label = f"{name} points: mean squared error {fit.error(points):.1e}"
            axes.plot(*(t.flatten() for t in points), ls="", ms=4, label=label, **style)
        axes.set(xlim=(-LIMIT, LIMIT), ylabel="y", title=fit.label)
        axes.legend(loc="upper left")
    figure.axes[-1].set_xlabel("x")
    return figure


@styled
def draw_weights(fits: list[CurveFit], title: str) -> Figure:
    """Draw the weights of fits of one degree side by side, by degree."""
    figure = titled(title, 4)
    axes = figure.subplots()
    for i, fit in enumerate(fits):
        degrees = np.arange(len(fit.weights))
        style: Any = {"color": COLOURS[(1 - i) % 6], "label": fit.label}
        axes.bar(degrees + 0.4 * i, fit.weights.numpy(), 0.4, **style)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(xlabel="degree of the Legendre polynomial", ylabel="its weight in the sum")
    axes.legend()
    return figure
