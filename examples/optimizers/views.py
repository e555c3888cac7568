"""Other figures of trajectories: `python train.py figures RUN --show VIEW`."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from anneal import UserError
from examples.optimizers.figure import COLOURS, GREY, HEIGHT, MARKS, legend, mesh, titled
from examples.optimizers.functions import find
from examples.optimizers.trajectories import Trajectory

if TYPE_CHECKING:
    from anneal.runs.run import Run

NAMES = ("x", "y")
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
    legend(figure, function, "start", "end", "global minimum")
    return figure


def draw_rates(trajectories: list[Trajectory], title: str) -> Figure:
    """Draw a row for each: size of the gradient, effective learning rate and step by parameter."""
    figure = titled(title, 1 + 2.5 * len(trajectories))
    grid = figure.subplots(len(trajectories), 3, squeeze=False, sharex=True, sharey="col")
    for row, trajectory in zip(grid, trajectories, strict=True):
        steps = trajectory.path[:, 0].diff(dim=0)
        shown = (trajectory.gradients, trajectory.rates, steps)
        titles = (f"{trajectory.label}: gradient", "effective learning rate", "step taken")
        for axes, name, values in zip(row, titles, shown, strict=True):
            for parameter, column, style in zip(NAMES, values.T, ("-", "--"), strict=False):
                axes.plot(column.abs(), style, label=parameter)
            axes.set(title=name, yscale="log", xlabel="step")
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
        axes.axhline(0, color=GREY, lw=0.8)
        axes.plot(g[:60, i], color=COLOURS[1], ls="--", label="gradient")
        axes.plot(v[:60, i], color=COLOURS[0], label="velocity")
        most = float(v[:, i].abs().max() / g[:, i].abs().max())
        axes.set(xlabel="step", title=f"along {NAMES[i]}: up to {most:.1f} times as large")
        axes.legend()
    return figure


def draw_batches(trajectories: list[Trajectory], title: str) -> Figure:
    """Draw the losses of the first batches of a noisy run beside that of all data."""
    trajectory = trajectories[0]
    function = find(trajectory.function)
    figure = titled(title, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    x = torch.linspace(*function.view[0], 300)[:, None]
    whole = function(x)
    left.plot(x, whole, color="black", lw=2.5, label="all data")
    at = trajectory.path[:-1, 0].clone().requires_grad_()
    (exact,) = torch.autograd.grad(function(at).sum(), at)
    noise = trajectory.gradients - exact
    for k, colour in zip(range(BATCHES), COLOURS, strict=False):
        left.plot(x, whole + noise[k] * x[:, 0], color=colour, lw=1.2, label=f"batch {k + 1}")
        ends = trajectory.path[k : k + 2, 0]
        losses = function(ends) + noise[k] * ends[:, 0]
        start, end = zip(ends[:, 0].tolist(), losses.tolist(), strict=True)
        left.plot(*start, color=colour, marker="o", ms=5)
        left.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.8})
    highest = float(whole.max())
    left.set(xlabel="x", ylabel="loss", ylim=(-0.7 * highest, 1.3 * highest))
    left.legend(loc="upper center")
    for one, colour in zip(trajectories, COLOURS, strict=False):
        right.plot(one.path[:, 0, 0], color=colour, marker=".", label=one.label)
    right.axhline(function.minima[0][0], color="black", lw=1, label="minimum of all data")
    right.set(xlabel="step", ylabel="x")
    right.legend(loc="lower right")
    right.locator_params("x", integer=True)
    return figure


def curves_of(runs: list[str]) -> "list[Run]":
    """Read the metrics of any runs, or of a folder of them, in the order of their names."""
    from anneal.report.page import read
    from anneal.runs.run import labelled  # imports pandas

    return sorted(labelled(read(runs)), key=lambda run: run.name)


def draw_curves(runs: "list[Run]", title: str) -> Figure:
    """Draw loss and accuracy of the validations."""
    figure = titled(title, 4.4)
    panels = figure.subplots(1, 2)
    for run in runs:
        for axes, metric in zip(panels, ("val/loss", "val/acc"), strict=True):
            if metric in run.metrics:
                curve = run.curve(metric)
                axes.plot(curve.x["step"], curve.y, label=run.name, lw=1.3)
            axes.set(xlabel="optimizer steps", ylabel=metric, xscale="log")
            axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:.0f}")
            axes.xaxis.set_minor_locator(NullLocator())
    panels[0].legend()
    return figure


class Jump(NamedTuple):
    """Means of the accuracy in AROUND validations each, before and after a drop of the rate."""

    epoch: float
    before: float
    after: float


def jumps(run: "Run") -> list[Jump]:
    """Return one for each drop of the learning rate."""
    accuracy, found = run.curve("val/acc"), []
    for drop in run.drops:
        later = accuracy.x["step"] > drop.at["step"]
        before, after = accuracy.y[~later][-AROUND:], accuracy.y[later][:AROUND]
        found.append(Jump(drop.at["epoch"], float(before.mean()), float(after.mean())))
    return found


def draw_ladder(runs: "list[Run]", title: str) -> Figure:
    """Draw a column for each: the accuracy of its validations over its learning rate.

    Raises:
        UserError: One of them has not logged both.
    """
    for run in runs:
        if "lr" not in run.families or "val/acc" not in run.metrics:
            raise UserError(f"--show=ladder: {run.name} has no lr or no val/acc in its metrics")
    figure = titled(title, 4.8)
    shared: Any = {"sharex": "col", "sharey": "row", "height_ratios": [3, 1], "squeeze": False}
    for (top, bottom), run in zip(figure.subplots(2, len(runs), **shared).T, runs, strict=True):
        accuracy, lr = run.curve("val/acc"), run.curve(run.families["lr"][0])
        end = accuracy.x["epoch"][-1]
        top.plot(accuracy.x["epoch"], accuracy.y, marker=".", lw=1.3)
        bottom.step([*lr.x["epoch"], end], [*lr.y, lr.y[-1]], where="post", color=COLOURS[1])
        for epoch, before, after in jumps(run):
            for axes in (top, bottom):
                axes.axvline(epoch, color=GREY, lw=0.8, ls=":")
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


CURVES = {"curves": draw_curves, "ladder": draw_ladder}  # of any runs
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
    known = function.view and function.minima and all(len(t.rates) == len(t.lrs) for t in done)
    if show in VIEWS and not known:
        what = "a function with view and minima (@surface), trained by this version"
        raise UserError(f"--show={show}: draws runs on {what}")
