"""What the figures of functions share: contours, marks, and the legend of these."""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from examples.optimizers.figure import GREY
from examples.optimizers.functions import Function

HEIGHT = LinearSegmentedColormap.from_list("height", ["#f7fafc", "#a9bccf"])
# How a place is marked: by shape and by face.
MARKS: dict[str, dict[str, Any]] = {
    "start": {"marker": "o", "ms": 8, "mfc": "white", "mec": "black"},
    "end": {"marker": "X", "ms": 8, "mfc": "black", "mec": "white"},
    "global minimum": {"marker": "*", "ms": 18, "mfc": "#F0E442", "mec": "black"},
    "local minimum": {"marker": "D", "ms": 8, "mfc": "white", "mec": "black"},
}


def kinds(function: Function) -> list[str]:
    """Return of each minimum whether it is a global or a local one."""
    minima = torch.tensor(function.minima, dtype=torch.float64).view(-1, function.dims)
    losses = function(minima).tolist()
    return [f"{'global' if loss < losses[0] + 1e-6 else 'local'} minimum" for loss in losses]


def mark_minima(axes: Axes, function: Function) -> None:
    """Mark global and local minima."""
    for at, name in zip(function.minima, kinds(function), strict=True):
        y = at[1] if function.dims == 2 else float(function(torch.tensor(at, dtype=torch.float64)))
        axes.plot(at[0], y, ls="", zorder=4, **MARKS[name])


def legend(figure: Figure, function: Function, *names: str) -> None:
    """Explain below a figure the curve or the contours, and those of the marks that are there."""
    there = {*kinds(function), "start", "end"}
    handles = [Line2D([], [], color=GREY, label=f"loss = {function.formula}")]
    for name in names:
        mark = MARKS.get(name, MARKS["end" if "end" in name else "global minimum"])
        if name in there or name not in MARKS:
            handles.append(Line2D([], [], ls="", label=name, **{**mark, "ms": 8}))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))


def mesh(function: Function, view: Any, points: int = 201) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, y and the losses of a grid over a view, (points, points) each."""
    sides = (torch.linspace(low, high, points, dtype=torch.float64) for low, high in view)
    x, y = torch.meshgrid(*sides, indexing="xy")
    return x, y, function(torch.stack([x, y], -1))


def contours(
    axes: Axes, function: Function, view: Any, filled: bool = True, lines: bool = True
) -> None:
    """Draw lines of equal loss, between areas of similar size that get smaller near the minimum."""
    x, y, losses = mesh(function, view)
    levels = np.unique(np.quantile(losses, np.linspace(0, 1, 15 if filled else 8) ** 1.5))
    if filled:
        axes.contourf(x, y, losses, levels, colors=HEIGHT(np.linspace(0, 1, len(levels) - 1)))
    colour = "white" if filled else "#333333"
    if lines:
        axes.contour(x, y, losses, levels[1:-1], colors=colour, linewidths=0.7)
