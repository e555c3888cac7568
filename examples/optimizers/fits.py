"""Figures of polynomial fits: the curve, its training and test points, and the fit."""

from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor

from examples.optimizers.points import LIMIT, runge, test_points, train_points


@dataclass
class CurveFit:
    """A fitted curve.

    Args:
        label: Degree, optimizer, settings, schedule.
        x: Where it was evaluated, rising, (points,).
        y: Its values there.
    """

    label: str
    x: Tensor
    y: Tensor

    def error(self, points: tuple[Tensor, Tensor]) -> float:
        """Return the mean squared error at points x, y, all of which are among those evaluated."""
        x, y = (t.flatten() for t in points)
        nearest = (self.x - x[:, None]).abs().argmin(1)
        return float((self.y[nearest] - y).square().mean())


def draw(fits: list[CurveFit]) -> Figure:
    """Draw each fit in a panel of its own."""
    figure = Figure(figsize=(9, 3.2 * len(fits) + 0.4), layout="constrained")
    panels = figure.subplots(len(fits), 1, squeeze=False, sharex=True).flat
    for axes, fit in zip(panels, fits, strict=True):
        axes.plot(fit.x, runge(fit.x), color="0.6", lw=4, alpha=0.6, label="1 / (1 + 25 x²)")
        axes.plot(fit.x, fit.y, color="C3", lw=1.2, label="the fit")
        for name, points, marker in (
            ("train", train_points(), "ko"),
            ("test", test_points(), "C0x"),
        ):
            label = f"{name} points: mean squared error {fit.error(points):.1e}"
            axes.plot(*(t.flatten() for t in points), marker, ms=4, label=label)
        axes.set(xlim=(-LIMIT, LIMIT), ylim=(-0.6, 1.4), ylabel="y")
        axes.set_title(fit.label, fontsize=10)
        axes.legend(fontsize=8, loc="upper left")
    figure.axes[-1].set_xlabel("x")
    return figure
