"""Figures of trajectories over a function: one or several, basins of many starts, animations."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from examples.optimizers.functions import Function, find

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation

CHECKPOINT_KEY = "walk"  # under which checkpoints have held a trajectory from the start
BY_STEP = colormaps["plasma"]
FRAMES = 50  # the most in an animation
MOST_STEPS_MARKED = 200  # with more, dots would hide the line
NEAR = 0.02  # of the view: an end so close to a minimum has reached it


@dataclass
class Trajectory:
    """The points that one optimizer has gone through.

    Args:
        function: Name or import path of the function.
        label: Optimizer, settings, schedule.
        path: Position of each start before the first step and after every one,
            (steps + 1, starts, dims).
        lrs: Learning rate of every step.
    """

    function: str
    label: str
    path: Tensor
    lrs: list[float] = field(default_factory=list)

    @property
    def losses(self) -> Tensor:
        """Loss at each position, (steps + 1, starts)."""
        return find(self.function)(self.path)


Show = Callable[[int], None]  # shows a trajectory as far as a step


def draw(trajectories: list[Trajectory]) -> Figure:
    """Draw one trajectory with its steps by colour, several overlaid, or the basins of many starts.

    All are over the same function, from one start each, or all of them from a grid.
    """
    if trajectories[0].path.shape[1] > 1:
        return draw_basins(trajectories)
    return _draw_paths(trajectories)[0]


def animate(trajectories: list[Trajectory]) -> "FuncAnimation":
    """Animate trajectories from one start each."""
    from matplotlib.animation import FuncAnimation

    figure, shows = _draw_paths(trajectories)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not for every frame
    steps = max(len(trajectory.path) for trajectory in trajectories) - 1
    frames = np.unique(np.linspace(0, steps, FRAMES).round().astype(int))

    def show(step: int) -> list[Any]:
        for one in shows:
            one(step)
        return []

    return FuncAnimation(figure, show, [*frames, *[steps] * 5], interval=80)  # rests at the end


def draw_basins(trajectories: list[Trajectory], columns: int = 2) -> Figure:
    """Draw every start in the colour of the minimum in which it ends, one panel a trajectory."""
    function = find(trajectories[0].function)
    columns = min(columns, len(trajectories))
    rows = -(-len(trajectories) // columns)
    size = (5.2 * columns, 4.6 * rows + 0.5) if function.dims == 2 else (8, 3 * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{function.name}: each start has the colour of the minimum it ends in")
    all_axes = figure.subplots(rows, columns, squeeze=False).flat
    for axes, trajectory in zip(all_axes, trajectories, strict=False):
        colours = np.array([*colormaps["Set2"].colors[: len(function.minima)], (0.3,) * 3])  # type: ignore[attr-defined]
        which = ends_in(function, trajectory.path[-1])
        starts = trajectory.path[0].numpy()
        if function.dims == 2:
            side = round(len(starts) ** 0.5)
            image = colours[which].reshape(side, side, 3).transpose(1, 0, 2)
            axes.imshow(image, origin="lower", extent=sum(function.view, ()), aspect="auto")
            _contours(axes, function, function.view, filled=False)
        else:
            _curve(axes, function, function.view[0])
            losses = trajectory.losses[0].numpy()
            axes.scatter(starts[:, 0], losses, c=colours[which], s=25, zorder=3)
        for at, colour in zip(function.minima, colours, strict=False):
            _star(axes, function, at, colour)
        lost = int((which == -1).sum())
        note = f"\n(dark: {lost} of {len(starts)} have not arrived)" if lost else ""
        axes.set_title(trajectory.label + note, fontsize=9)
    for axes in list(all_axes):
        axes.axis("off")
    return figure


def ends_in(function: Function, points: Tensor) -> np.ndarray:
    """Return the index of the minimum that each point (starts, dims) has reached; -1: none."""
    minima = torch.tensor(function.minima, dtype=points.dtype)
    size = torch.tensor([high - low for low, high in function.view], dtype=points.dtype)
    distance, nearest = ((points[:, None] - minima) / size).norm(dim=-1).min(1)
    return torch.where(distance < NEAR, nearest, -1).numpy()


def draw_panel(axes: Axes, trajectory: Trajectory) -> None:
    """Draw a trajectory from one start over contours, its steps by colour."""
    function = find(trajectory.function)
    view = _view(function, [trajectory])
    _contours(axes, function, view)
    points = _clip(trajectory.path[:, 0].numpy(), view)
    _trace(axes, points, None)
    axes.plot(*points[0], "o", ms=7, mfc="white", mec="black", zorder=5)
    _star_all(axes, function)
    axes.set(xlim=view[0], ylim=view[1])


def _draw_paths(trajectories: list[Trajectory]) -> tuple[Figure, list[Show]]:
    """Draw the paths over the function (left), and loss or position over the steps (right)."""
    function = find(trajectories[0].function)
    single = len(trajectories) == 1
    view = _view(function, trajectories)
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1], gridspec_kw={"wspace": 0.08})
    shows: list[Show] = []
    if function.dims == 2:
        _contours(left, function, view)
        left.set(xlabel="x", ylabel="y", xlim=view[0], ylim=view[1])
    else:
        _curve(left, function, view[0])
        left.set(xlabel="x", ylabel="loss")
    for i, trajectory in enumerate(trajectories):
        colour = None if single else f"C{i}"
        points = trajectory.path[:, 0].numpy()
        losses = trajectory.losses[:, 0].numpy()
        at = points if function.dims == 2 else np.stack([points[:, 0], losses], 1)
        at = _clip(at, [*view, left.get_ylim()][:2])
        shows.append(_trace(left, at, colour))
        over_steps = losses if function.dims == 2 else points[:, 0]
        shows.append(_line(right, over_steps, colour or "0.3", trajectory.label))
        left.plot(*at[0], "o", ms=9, mfc="white", mec=colour or "black", zorder=5)
        left.plot(*at[-1], "X", ms=8, mfc=colour or "red", mec="white", zorder=5)
    _star_all(left, function)
    marks = {"start": ("o", "white"), "end": ("X", "red" if single else "0.5")}
    marks |= {"minimum": ("*", "gold")} if function.minima else {}
    for label, (marker, face) in marks.items():
        left.plot([], [], marker, ms=9, mfc=face, mec="black", label=label)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=9)
    _label_right(right, function, trajectories, view)
    if single:
        steps = ScalarMappable(Normalize(0, len(trajectories[0].path) - 1), BY_STEP)
        figure.colorbar(steps, ax=left, label="step", pad=0.01)
        figure.suptitle(f"{function.name}: {trajectories[0].label}", fontsize=11)
    else:
        figure.suptitle(function.name, fontsize=11)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", fontsize=9)
    return figure, shows


def _label_right(
    right: Axes, function: Function, trajectories: list[Trajectory], view: Any
) -> None:
    right.set_xlabel("step")
    if function.dims == 2:
        right.set_ylabel("loss")
        losses = torch.cat([trajectory.losses.flatten() for trajectory in trajectories])
        if losses.min() >= 0:  # a millionth of the first loss counts as none
            right.set_yscale("log")
            right.set_ylim(bottom=max(float(losses.min()), 1e-6 * float(losses[0])))
    else:
        right.set(ylabel="x", ylim=view[0])
        for at in function.minima:
            right.axhline(at[0], color="goldenrod", ls=":", lw=1)
    if len(trajectories) == 1 and len(set(trajectories[0].lrs)) > 1:
        lrs = trajectories[0].lrs
        axes = right.twinx()
        axes.step(range(len(lrs)), lrs, where="post", color="C0", lw=1)
        axes.set_ylabel("learning rate", color="C0")
        axes.set_ylim(0, 1.05 * max(lrs))


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


def _contours(axes: Axes, function: Function, view: Any, filled: bool = True) -> None:
    """Draw lines of equal loss, between areas of similar size that get smaller near the minimum."""
    x, y = (torch.linspace(low, high, 201, dtype=torch.float64) for low, high in view)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    losses = function(grid).numpy()
    levels = np.unique(np.quantile(losses, np.linspace(0, 1, 15) ** 1.5))
    if filled:
        shades = colormaps["Greys"](np.linspace(0.05, 0.5, len(levels) - 1))
        axes.contourf(x, y, losses, levels, colors=shades)
    axes.contour(x, y, losses, levels[1:-1], colors="white" if filled else "0.4", linewidths=0.6)


def _curve(axes: Axes, function: Function, view: tuple[float, float]) -> None:
    x = torch.linspace(*view, 500, dtype=torch.float64)[:, None]
    axes.plot(x[:, 0], function(x), color="0.6", lw=1.5)
    axes.set_xlim(view)
    axes.set_ylim(axes.get_ylim())


def _trace(axes: Axes, points: np.ndarray, colour: str | None) -> Show:
    """Draw a path, its steps by colour unless one colour is given."""
    steps = len(points) - 1
    colours = BY_STEP(np.linspace(0, 1, steps + 1)) if colour is None else colour
    pieces = np.stack([points[:-1], points[1:]], 1)
    lines = LineCollection(
        list(pieces), colors=colours[1:] if colour is None else colour, linewidths=1, alpha=0.8
    )
    axes.add_collection(lines, autolim=False)
    size = 14 if steps <= MOST_STEPS_MARKED else 3
    dots = axes.scatter(points[:, 0], points[:, 1], s=size, c=colours, zorder=3)

    def show(step: int) -> None:
        lines.set_segments(list(pieces[:step]))
        dots.set_offsets(points[: step + 1])

    return show


def _line(axes: Axes, values: np.ndarray, colour: str, label: str) -> Show:
    (line,) = axes.plot(values, color=colour, lw=1.2, label=label)

    def show(step: int) -> None:
        line.set_data(range(len(values[: step + 1])), values[: step + 1])

    return show


def _star(axes: Axes, function: Function, at: tuple[float, ...], colour: Any = "gold") -> None:
    y = at[1] if function.dims == 2 else float(function(torch.tensor(at, dtype=torch.float64)))
    axes.plot(at[0], y, "*", ms=17, mfc=colour, mec="black", zorder=4)


def _star_all(axes: Axes, function: Function) -> None:
    for at in function.minima:
        _star(axes, function, at)
