"""Other figures of trajectories: `python train.py figures RUN --show VIEW`."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from anneal import UserError
from examples.optimizers.figure import COLOURS, HEIGHT, MARKS, legend, mark_minima, mesh, titled
from examples.optimizers.functions import find
from examples.optimizers.trajectories import Trajectory

if TYPE_CHECKING:
    from anneal.runs.run import Run

BATCHES = 4  # whose losses are drawn
AROUND = 3  # validations


def draw_3d(trajectories: list[Trajectory], title: str) -> Figure:
    """Draw a function of x and y as a landscape, and the paths on it."""
    function = find(trajectories[0].function)
    figure = titled(title, 6.2)
    axes = figure.add_subplot(projection="3d", computed_zorder=False)
    surface = map(np.asarray, mesh(function, function.view, 81))
    axes.plot_surface(*surface, cmap=HEIGHT, rstride=1, cstride=1, lw=0, antialiased=False)
    for trajectory, colour in zip(trajectories, COLOURS, strict=False):
        walk = np.column_stack([trajectory.path[:, 0], trajectory.losses[:, 0]])
        axes.plot(*walk.T, color=colour, lw=1.3, label=trajectory.label)
        for name, i in (("start", 0), ("end", -1)):
            style = MARKS[name] | {"mfc": colour if i else "white", "zorder": 5}
            axes.plot(*walk[i], ls="", **style)
    for at in function.minima:
        axes.plot(*at, float(function(torch.tensor(at))), ls="", **MARKS["global minimum"])
    axes.set(xlabel="x", ylabel="y", zlabel="loss")
    axes.view_init(elev=48, azim=-72)
    axes.set_box_aspect((1.8, 1, 0.65), zoom=1.3)
    axes.legend(loc="upper right")
    legend(figure, function, "start", "end", "global minimum", shaded=True)
    return figure


def draw_rates(trajectories: list[Trajectory], title: str) -> Figure:
    """Draw a row for each: size of the gradient, effective learning rate and step by parameter."""
    figure = titled(title, 1 + 2.5 * len(trajectories))
    grid = figure.subplots(len(trajectories), 3, squeeze=False, sharex=True, sharey="col")
    for row, trajectory in zip(grid, trajectories, strict=True):
        steps = trajectory.path[:, 0].diff(dim=0)
        shown = (trajectory.gradients, trajectory.rates, steps)
        names = ("size of the gradient", "effective learning rate", "size of the step")
        for axes, name, values in zip(row, names, shown, strict=True):
            for parameter, column, style in zip("xy", values.T, ("-", "--"), strict=False):
                axes.plot(column.abs(), style, label=parameter)
            axes.set(ylabel=name, yscale="log", xlabel="step")
        row[0].set_title(f"{trajectory.label} on {find(trajectory.function).formula}")
        row[0].legend(ncols=2)
    for axes in grid[0]:  # what is next to nothing would take most of the axis
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom=max(1e-9 * top, bottom))
    return figure


def draw_velocity(trajectories: list[Trajectory], title: str) -> Figure:
    """Draw the weights of past gradients in the velocity of one run, and both by parameter."""
    (trajectory,) = trajectories
    g = trajectory.gradients.double()
    v = -trajectory.path[:, 0].double().diff(dim=0) / torch.tensor(trajectory.lrs)[:, None]
    momentum = float(((v[1:] - g[1:]) * v[:-1]).sum() / v[:-1].square().sum())  # v = m v + g
    figure = titled(title, 4)
    panels = figure.subplots(1, 1 + g.shape[1], width_ratios=[1.1, *[1] * g.shape[1]])
    ages = np.arange(41)
    panels[0].bar(ages, momentum**ages, color=COLOURS[0])
    panels[0].set(xlabel="steps ago", ylabel="weight of a gradient in the velocity")
    panels[0].set_title(f"{momentum:.2g}ᵏ for k steps ago: all together {1 / (1 - momentum):.3g}")
    for i, axes in enumerate(panels[1:]):
        axes.axhline(0, color="gray", lw=0.8)
        axes.plot(g[:60, i], color=COLOURS[1], ls="--", label="gradient")
        axes.plot(v[:60, i], color=COLOURS[0], label="velocity")
        most = float(v[:, i].abs().max() / g[:, i].abs().max())
        axes.set(xlabel="step", ylabel=f"gradient and velocity along {'xy'[i]}")
        axes.set_title(f"up to {most:.1f} times as large")
        axes.legend()
    legend(figure, find(trajectory.function))
    return figure


def draw_batches(trajectories: list[Trajectory], title: str) -> Figure:
    """Draw the losses of the first batches of a noisy run beside that of all data."""
    trajectory = trajectories[0]
    function = find(trajectory.function)
    figure = titled(title, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    x = torch.linspace(*function.view[0], 300)[:, None]
    whole = function(x)
    left.plot(x, whole, color="gray", lw=2.5, label="all data")
    at = trajectory.path[:-1, 0].clone().requires_grad_()
    (exact,) = torch.autograd.grad(function(at).sum(), at)
    noise = trajectory.gradients - exact
    for k, colour in zip(range(BATCHES), COLOURS, strict=False):
        left.plot(x, whole + noise[k] * x[:, 0], color=colour, lw=1.2, label=f"batch {k + 1}")
        ends = trajectory.path[k : k + 2, 0]
        losses = function(ends) + noise[k] * ends[:, 0]
        start, end = zip(ends[:, 0].tolist(), losses.tolist(), strict=True)
        left.plot(*start, color=colour, **({"marker": "o", "ms": 5} if k else MARKS["start"]))
        left.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.8})
    mark_minima(left, function)
    highest = float(whole.max())
    left.set(xlabel="x", ylabel="loss", ylim=(-0.7 * highest, 1.3 * highest))
    left.legend(loc="upper center")
    for one, colour in zip(trajectories, COLOURS, strict=False):
        xs = one.path[:, 0, 0]
        right.plot(xs, color=colour, marker=".", label=one.label)
        right.plot(0, xs[0], **MARKS["start"])
        right.plot(len(xs) - 1, xs[-1], **MARKS["end"] | {"mfc": colour, "zorder": 4})
    mark_minima(right, function, over_steps=True)
    right.set(xlabel="step", ylabel="x")
    right.legend(loc="lower right")
    right.locator_params("x", integer=True)
    legend(figure, function, "start", "end", "global minimum", "local minimum")
    return figure


def curves_of(words: list[str], *needed: str) -> "list[Run]":
    """Read the metrics of any runs, or of a folder of them, in the order of their names.

    Raises:
        UserError: One of them has not logged what is needed.
    """
    from anneal.report.page import read
    from anneal.runs.run import labelled  # imports pandas

    runs = sorted(labelled(read(words)), key=lambda run: run.name)
    for run in runs:
        there = {*run.families, *run.metrics.dropna(axis=1, how="all")}
        if missing := [name for name in needed if name not in there]:
            raise UserError(f"{run.name} has no {' and no '.join(missing)} in its metrics")
    return runs


def draw_curves(runs: "list[Run]", title: str) -> Figure:
    """Draw loss and accuracy of the validations."""
    figure = titled(title, 4.4)
    metrics = [name for name in ("val/loss", "val/acc") if all(name in run.metrics for run in runs)]
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for run in runs:
            curve = run.curve(metric)
            axes.plot(curve.x["epoch"], curve.y, label=run.name, lw=1.3, marker=".", ms=4)
        axes.set(xlabel="epochs", ylabel=metric, xscale="log")
        axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    figure.axes[0].legend()
    return figure


def jumps(run: "Run") -> list[tuple[float, float, float]]:
    """Return the epoch of each drop of the rate, and the mean accuracy AROUND before and after."""
    accuracy, found = run.curve("val/acc"), []
    for drop in run.drops:
        later = accuracy.x["step"] > drop.at["step"]
        before, after = accuracy.y[~later][-AROUND:], accuracy.y[later][:AROUND]
        if before.size and after.size:
            found.append((drop.at["epoch"], float(before.mean()), float(after.mean())))
    return found


def draw_ladder(runs: "list[Run]", title: str) -> Figure:
    """Draw a column for each: the accuracy of its validations over its learning rate."""
    figure = titled(title, 4.8)
    shared: Any = {"sharex": "col", "sharey": "row", "height_ratios": [3, 1], "squeeze": False}
    for (top, bottom), run in zip(figure.subplots(2, len(runs), **shared).T, runs, strict=True):
        accuracy, lr = run.curve("val/acc"), run.curve(run.families["lr"][0])
        end = accuracy.x["epoch"][-1]
        top.plot(accuracy.x["epoch"], accuracy.y, marker=".", lw=1.3)
        bottom.step([*lr.x["epoch"], end], [*lr.y, lr.y[-1]], where="post", color=COLOURS[1])
        for epoch, before, after in jumps(run):
            for axes in (top, bottom):
                axes.axvline(epoch, color="gray", lw=0.8, ls=":")
            note = f"{100 * (after - before):+.1f} points"
            top.annotate(note, (epoch, after), (-4, 4), textcoords="offset points", ha="right")
        top.set_title(run.name)
        bottom.set(xlabel="epochs", yscale="log")
    figure.axes[0].set_ylabel("accuracy, validation")
    figure.axes[len(runs)].set_ylabel("learning rate")
    return figure


def draw_sharpness(names: list[str], measured: list[Any], title: str) -> Figure:
    """Draw the sharpness of runs in a panel each, and what their optimizer can bear."""
    figure = titled(title, 4)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name, rows in zip(panels, names, measured, strict=True):
        steps, sharpness, edge = zip(*rows, strict=True)
        top = 1.5 * float(np.nanmax([*edge, sharpness[-1]]))
        axes.plot(steps, sharpness, marker=".", label="sharpness")
        axes.plot(steps, edge, color="black", ls="--", label=f"edge: {edge[-1]:g}")
        if sharpness[0] > top:
            axes.text(0.1, 0.94, f"begins at {sharpness[0]:,.0f}", transform=axes.transAxes)
        axes.set(title=name, xlabel="step", ylabel="largest curvature", ylim=(0, top))
        axes.legend(loc="lower right")
    return figure


# Of any runs, and what these must have logged.
CURVES = {"curves": (draw_curves, ["val/loss"]), "ladder": (draw_ladder, ["val/acc", "lr"])}
VIEWS = {"3d": draw_3d, "rates": draw_rates, "velocity": draw_velocity, "batches": draw_batches}
ON = {"3d": "runs on x and y", "velocity": "one run", "batches": "runs on x"}


def check(done: list[Trajectory], show: str | None) -> None:
    """Raise a UserError if one of these views, or an animation, can't show these trajectories."""
    function, starts = find(done[0].function), {one.path.shape[1] for one in done}
    if len({one.function for one in done}) > 1 or len(starts) > 1:
        raise UserError("these runs are not over one function from one start or one grid")
    if show and starts != {1}:
        raise UserError("an animation or a view has one start: train without model.grid")
    fit = {"3d": function.dims == 2, "velocity": len(done) == 1, "batches": function.dims == 1}
    if not fit.get(str(show), True):
        raise UserError(f"--show={show}: draws {ON[str(show)]}")
    if show in VIEWS and not (function.view and function.minima):
        raise UserError(f"--show={show}: draws runs on a function with view and minima (@surface)")
