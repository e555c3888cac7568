"""Figures of trajectories over a function: one or several, basins of many starts, animations."""

from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from examples.optimizers.figure import COLOURS, GREY, MARKS, contours, legend, mark_minima, titled
from examples.optimizers.functions import Function, find

CHECKPOINT_KEY = "walk"  # under which checkpoints have held a trajectory from the start
BY_STEP = LinearSegmentedColormap.from_list("steps", colormaps["plasma"](np.linspace(0, 0.85, 64)))
BASINS = ("#8FD0F5", "#F2C14E", "#7FC8A9", "#E3B5CF")  # pale, one for each minimum
FRAMES = 60  # the most in an animation
MOST_STEPS_MARKED = 200  # with more, dots would hide the line
GROWS = "grows"  # in an animation, the id of a line that follows a path
NEAR = 0.02  # of the view: an end so close to a minimum has reached it


@dataclass
class Trajectory:
    """The points that one optimizer has gone through, from one start or from many."""

    function: str  # its name or import path
    label: str  # optimizer, settings, schedule
    path: Tensor  # before the first step and after every one, (steps + 1, starts, dims)
    lrs: list[float] = field(default_factory=list)  # of every step
    # Of the first start, (steps, dims): gradients with their noise, and what the optimizer
    # multiplied these, or their mean, by.
    gradients: Tensor = field(default_factory=lambda: torch.empty(0))
    rates: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def losses(self) -> Tensor:
        """Loss at each position, (steps + 1, starts)."""
        return find(self.function)(self.path)


def draw(trajectories: list[Trajectory], title: str = "") -> Figure:
    """Draw trajectories over their function, from one start each, or all of them from a grid.

    Over a function of x each has a row of its own. Over one of x and y those from one start are
    overlaid, and of many starts each shows the minimum in which it ends.
    """
    function = find(trajectories[0].function)
    many = trajectories[0].path.shape[1] > 1
    if many and function.dims == 2:
        return draw_basins(trajectories, title)
    rows = len(trajectories) if function.dims == 1 else 1
    title = title or f"{trajectories[0].function}: {trajectories[0].label}"
    figure = titled(title, 1.2 + (2.5 * rows if rows > 1 else 3.7))
    (_draw_map if function.dims == 2 else _draw_rows)(figure, trajectories)
    ends = ("start, coloured by its end", "end (dark: in none)") if many else ("start", "end")
    minima = "global minimum", "local minimum"
    legend(figure, function, *ends, *minima, shaded=function.dims == 2)
    return figure


def animate(trajectories: list[Trajectory], title: str, path: Path) -> None:
    """Write a GIF of trajectories from one start each; the first steps are the slowest."""
    figure = draw(trajectories, title)
    grow = [line for line in figure.findobj(Line2D) if line.get_gid() == GROWS]
    lines = {line: np.asarray(line.get_xydata()) for line in grow}
    dots = {dot: np.asarray(dot.get_offsets()) for dot in figure.findobj(PathCollection)}
    pieces = {piece: piece.get_segments() for piece in figure.findobj(LineCollection)}
    figure.set_dpi(80)
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not for every frame
    steps = max(len(trajectory.path) for trajectory in trajectories) - 1
    images = []
    for step in np.unique((np.linspace(0, 1, FRAMES) ** 2 * steps).round().astype(int)):
        for line, points in lines.items():
            line.set_data(*points[: step + 1].T)
        for dot, points in dots.items():
            dot.set_offsets(points[: step + 1])
        for piece, parts in pieces.items():
            piece.set_segments(parts[:step])
        canvas.draw()  # type: ignore[no-untyped-call]
        images.append(Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB"))  # type: ignore[no-untyped-call]
    # One palette for all frames: the style's colours, and what the last one has most of.
    common = [colour for _, colour in sorted(images[-1].getcolors(2**24) or (), reverse=True)[:240]]
    style = [MARKS["global minimum"]["mfc"], *COLOURS]
    shades = np.array([*(np.array([to_rgb(one) for one in style]) * 255).round(), *common])
    frames = [_indexed(image, shades.astype(int)) for image in images]
    times = [80] * (len(frames) - 1) + [2000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)


def _indexed(image: Image.Image, shades: np.ndarray) -> Image.Image:
    """Return an image in the nearest colours of a palette; Pillow's own search is inexact."""
    place = np.array([16, 8, 0])
    codes, at = np.unique(np.asarray(image).astype(int) @ 2**place, return_inverse=True)
    far = ((codes[:, None] >> place) % 256)[:, None] - shades
    found = Image.fromarray(np.square(far).sum(-1).argmin(1).astype(np.uint8)[at])
    found.putpalette(shades.astype(np.uint8).tobytes())
    return found


def draw_basins(trajectories: list[Trajectory], title: str = "") -> Figure:
    """Draw every start of a grid in the colour of the minimum that it ends in, a panel each."""
    function = find(trajectories[0].function)
    columns = min(2, len(trajectories))
    rows = -(-len(trajectories) // columns)
    title = title or f"{trajectories[0].function}: each start in the colour of where it ends"
    figure = titled(title, 3.9 * rows + 1, 5 * columns)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, trajectory in zip(grid.flat, trajectories, strict=False):
        which, colours = _by_end(function, trajectory)
        side = round(len(which) ** 0.5)
        image = colours.reshape(side, side, 3).transpose(1, 0, 2)
        axes.imshow(image, origin="lower", extent=sum(function.view, ()), aspect="auto")
        contours(axes, function, function.view, "lines")
        mark_minima(axes, function)
        lost = int((which == -1).sum())
        note = f"\n(dark: {lost} of {len(which)} have not arrived)" if lost else ""
        axes.set(title=fill(trajectory.label, 52) + note, xlabel="x", ylabel="y")
        axes.label_outer()
    for axes in grid.flat[len(trajectories) :]:
        axes.remove()
    legend(figure, function, "global minimum of the starts in that colour", "local minimum")
    return figure


def _by_end(function: Function, trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Return in which minimum each start ends, -1: none, and the colours of these, (starts, 3)."""
    which = ends_in(function, trajectory.path[-1])
    return which, np.array([*map(to_rgb, BASINS), (0.25,) * 3])[which]


def ends_in(function: Function, points: Tensor) -> np.ndarray:
    """Return the index of the minimum that each point (starts, dims) has reached; -1: none."""
    minima = torch.tensor(function.minima, dtype=points.dtype)
    size = torch.tensor([high - low for low, high in function.view], dtype=points.dtype)
    distance, nearest = ((points[:, None] - minima) / size).norm(dim=-1).min(1)
    return torch.where(distance < NEAR, nearest, -1).numpy()


def _draw_rows(figure: Figure, trajectories: list[Trajectory]) -> None:
    """Draw a row for each: the function and the points on it, x and learning rate by step."""
    function = find(trajectories[0].function)
    view = _view(function, trajectories)
    has_lr = any(len({*one.lrs}) > 1 for one in trajectories)
    widths = [1.2, 1, 0.7][: 2 + has_lr]
    style: Any = {"squeeze": False, "sharex": "col", "sharey": "col", "width_ratios": widths}
    grid = figure.subplots(len(trajectories), len(widths), **style)
    for row, trajectory in zip(grid, trajectories, strict=True):
        left, middle = row[:2]
        x = torch.linspace(view[0][0], view[0][1], 500, dtype=torch.float64)[:, None]
        left.plot(x[:, 0], function(x), color=GREY, lw=1.5)
        limits = (view[0], left.get_ylim())
        name = f"{trajectory.label}; {len(trajectory.path) - 1} steps"
        left.set(xlim=view[0], ylim=limits[1], title=fill(name, 90), ylabel="loss")
        middle.set(ylim=view[0], ylabel="x")
        mark_minima(middle, function, over_steps=True)
        xs, losses = trajectory.path[..., 0].numpy(), trajectory.losses.numpy()
        steps = np.arange(len(xs))
        if xs.shape[1] > 1:
            colours = _by_end(function, trajectory)[1]
            left.scatter(xs[0], losses[0], c=colours, s=30, zorder=3, edgecolors="white", lw=0.5)
            lines = [np.stack([steps, one], 1) for one in xs.T]
            left.scatter(xs[-1], np.full(len(xs[-1]), limits[1][0]), c=colours, marker="X",
                s=30, zorder=3, clip_on=False)  # fmt: skip
            middle.add_collection(LineCollection(lines, colors=list(colours), lw=0.8, alpha=0.7))
        else:
            _trace(left, _clip(np.stack([xs[:, 0], losses[:, 0]], 1), limits))
            _trace(middle, _clip(np.stack([steps, xs[:, 0]], 1), ((0, len(xs)), view[0])))
        middle.set_xlim(-0.03 * len(xs), 1.03 * len(xs))
        mark_minima(left, function)
        if has_lr:
            row[2].step(steps[:-1], trajectory.lrs, where="post", color=COLOURS[0])
            row[2].set(ylabel="learning rate", ylim=(0, None))
    for axes, name in zip(grid[-1], ("x", "step", "step"), strict=False):
        axes.set_xlabel(name)
        axes.locator_params("x", integer=True)


def _draw_map(figure: Figure, trajectories: list[Trajectory]) -> None:
    """Draw paths over lines of equal loss (left), loss and learning rate over the steps (right)."""
    has_lr = any(len({*one.lrs}) > 1 for one in trajectories)
    panels = figure.subplot_mosaic("ab;ac" if has_lr else "ab", width_ratios=[1.25, 1])
    right = panels["b"]
    draw_panel(panels["a"], trajectories)
    for trajectory, colour in zip(trajectories, COLOURS, strict=False):
        losses = trajectory.losses[:, 0].numpy()
        right.plot(losses, color=colour, lw=1.3, label=fill(trajectory.label, 50), gid=GROWS)
        if has_lr:
            steps = range(len(trajectory.lrs))
            panels["c"].step(steps, trajectory.lrs, where="post", c=colour)
            panels["c"].set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    right.set(xlabel="step", ylabel="loss")
    every = torch.cat([trajectory.losses.flatten() for trajectory in trajectories])
    if every.min() >= 0:  # a millionth of the first loss counts as none
        right.set_yscale("log")
        right.set_ylim(bottom=max(float(every.min()), 1e-6 * float(every[0])))
    right.legend(*right.get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0, 1))


def draw_panel(axes: Axes, trajectories: list[Trajectory], parts: str = "areas lines") -> None:
    """Draw trajectories over contours, of a single one the steps by colour."""
    function = find(trajectories[0].function)
    view = _view(function, trajectories)
    contours(axes, function, view, parts)
    colours = COLOURS if len(trajectories) > 1 else [""]
    for trajectory, colour in zip(trajectories, colours, strict=False):
        _trace(axes, _clip(trajectory.path[:, 0].numpy(), view), colour)
    mark_minima(axes, function)
    axes.set(xlabel="x", ylabel="y", xlim=view[0], ylim=view[1])


def _view(function: Function, trajectories: list[Trajectory]) -> list[tuple[float, float]]:
    """Return the limits of x and y: the function's view, or a bit more than the trajectories."""
    if function.view:
        return list(function.view)
    points = torch.cat([trajectory.path.flatten(0, 1) for trajectory in trajectories]).nan_to_num()
    low, high = points.min(0).values, points.max(0).values
    margin = 0.2 * (high - low) + 0.1
    return list(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def _clip(points: np.ndarray, view: Any) -> np.ndarray:
    """Move points far outside nearer: no renderer takes 1e30."""
    low, high = np.array(view).T
    margin = 3 * (high - low)
    near: np.ndarray = np.clip(np.nan_to_num(points), low - margin, high + margin)
    return near


def _trace(axes: Axes, points: np.ndarray, colour: str = "") -> None:
    """Draw a path with its start and its end, its steps by colour unless one colour is given."""
    steps = len(points) - 1
    colours: Any = colour or BY_STEP(np.linspace(0, 1, steps + 1))
    pieces = np.stack([points[:-1], points[1:]], 1)
    style: Any = {"colors": colour or colours[1:], "lw": 1.1, "alpha": 0.85, "zorder": 3}
    axes.add_collection(LineCollection(list(pieces), **style), autolim=False)
    size = 14 if steps <= MOST_STEPS_MARKED else 3
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colours, zorder=3)
    axes.plot(*points[0], zorder=5, **MARKS["start"] | ({"mec": colour} if colour else {}))
    own: Any = {"mfc": colour, "mec": "black", "ms": 10} if colour else {}
    axes.plot(*points.T, ls="", markevery=[-1], gid=GROWS, **MARKS["end"] | own | {"zorder": 6})
