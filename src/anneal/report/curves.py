"""Curves of several runs over one another, as a file: each run leaves its own, `curves.png`."""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from anneal.errors import first_line
from anneal.runs.drops import Array
from anneal.runs.metrics import better, family, is_learning_rate
from anneal.runs.run import AXES, Curve, Run
from anneal.system import atomic_write

CURVES = "curves.png"
TITLES = {"acc": "accuracy", "lr": "learning rate", "lr/effective": "effective learning rate"}
POINTS = 1_500  # of a curve at most: more than a screen has columns
BUDGET = 20_000  # of all curves of a panel: a browser draws three within two seconds
FEW = 50  # points, which are marked one by one
MANY = 20  # runs, and a figure's legend is full
WIDTHS = {"training": 0.7, "validation": 1.6}
LENGTH = 80  # of a name in a legend
MOST = 6  # panels of a run's own figure


@dataclass
class Line:
    """A curve as it is drawn."""

    run: int  # index of its run
    panel: str  # the metric's family
    metric: str
    curve: Curve  # all of its points
    kept: Array  # indices of those that are drawn
    band: tuple[Array, Array] | None = None  # lowest and highest values, of a mean of runs
    colour: str = ""  # of its own, among the layers or groups of a single run; "": its run's

    @property
    def stage(self) -> str:
        return family(self.metric)[0]

    @property
    def is_validated(self) -> bool:
        return self.stage not in ("", "train")

    @property
    def in_training(self) -> bool:
        """Whether it is drawn thin and can be smoothed."""
        return self.stage == "train"


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """Return the curves of all runs by panel, tests left out: these are points, for the table."""
    found: dict[str, list[Line]] = {}
    for i, run in enumerate(runs):
        for panel, columns in run.families.items():
            for column in columns:
                line = Line(i, panel, column, run.curve(column), np.array([]))
                if line.stage != "test":
                    found.setdefault(panel, []).append(line)
    for lines in found.values():
        points = max(50, min(POINTS, BUDGET // len(lines)))
        if len(runs) == 1 and len(lines) > len({line.stage for line in lines}):
            for line, colour in zip(lines, colours(len(lines)), strict=True):
                line.colour = colour
        for line in lines:
            line.kept = line.curve.extremes(points)
            held = line.in_training or is_learning_rate(line.metric)
            if (ends := runs[line.run].band) and not held:
                low, high = (end.curve(line.metric).y[line.kept] for end in ends)
                line.band = low, high
    return [line for lines in sorted(found.values(), key=_rank) for line in lines]


def _rank(lines: Sequence[Line]) -> int:
    """Return the place of a panel: the loss, metrics, the learning rate, then all others."""
    rank = 2 if any(line.is_validated for line in lines) else 4
    return {"loss": 0, "acc": 1, "lr": 3}.get(lines[0].panel, rank)


def panels_of(lines: Iterable[Line]) -> list[str]:
    """Return the panels that have a curve, from top to bottom."""
    return list(dict.fromkeys(line.panel for line in lines))


def first_panels(lines: Sequence[Line], metrics: int = 2) -> list[str]:
    """Return the panels to begin with: of so many metrics, and the learning rate."""
    staged = {line.panel for line in lines if line.stage}
    validated = {line.panel for line in lines if line.is_validated} or staged
    panels = [panel for panel in panels_of(lines) if panel in validated][:metrics]
    panels += [panel for panel in panels_of(lines) if panel == "lr"]
    return panels or panels_of(lines)[: metrics + 1]


def marked_of(runs: Sequence[Run], panels: Sequence[str]) -> list[str]:
    """Return the panels that mark drops: the marks of many runs would hide other curves."""
    return [panel for panel in panels if panel == "lr" or len(runs) <= MANY]


def colours(n: int) -> list[str]:
    """Return a colour for each of `n` runs."""
    few, many = mpl.colormaps["tab10"], mpl.colormaps["turbo"]
    return [to_hex(c) for c in (few(range(n)) if n <= 10 else many(np.linspace(0, 1, n)))]


def scale(panel: str, lines: Iterable[Line]) -> tuple[str, list[float] | None]:
    """Return `linear` or `log` for the y axis of a panel, and limits unless the data set them.

    Learning rates differ by ratios, and so do losses over more than two decades. The last hundredth
    of a cosine, where the learning rate is next to nothing, would take most of the axis: it is cut
    off.
    """
    curves = [line.curve.y for line in lines if line.panel == panel]
    low, high = min(y.min() for y in curves), max(y.max() for y in curves)
    if panel.startswith("lr") and high > 0:
        least = min(np.quantile(y[y > 0], 0.01, method="lower") for y in curves if y.max() > 0)
        return "log", [float(least) / 1.5, float(high) * 1.5]
    return "log" if better(panel) != "max" and 0 < 100 * low < high else "linear", None


def still(runs: Sequence[Run], lines: Sequence[Line]) -> Figure:
    """Draw the panels over the steps: training thin, drops of the learning rate dotted."""
    panels, palette = panels_of(lines), colours(len(runs))
    named = runs if len(runs) <= MANY else []
    legend = {run.name: Line2D([], [], color=c) for run, c in zip(named, palette, strict=False)}
    if any(line.is_validated for line in lines) and any(line.in_training for line in lines):
        legend |= {k: Line2D([], [], color="gray", linewidth=w) for k, w in WIDTHS.items()}
    columns = 1 if len(panels) <= 3 else 2
    rows = math.ceil(len(panels) / columns)
    per_row = max(1, (50 + 50 * columns) // (10 + max(map(len, legend), default=0)))
    height = 0.3 + 2.4 * rows + 0.25 * math.ceil(len(legend) / per_row)
    figure = Figure(figsize=(6 + 3 * columns, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for axes, panel in zip(grid, panels, strict=False):
        kind, limits = scale(panel, lines)
        axes.set(ylabel=TITLES.get(panel, panel), yscale=kind)
        axes.grid(alpha=0.3)
        own = [line for line in lines if line.panel == panel]
        for line in own:
            drawn, is_lr = line.curve.take(line.kept), is_learning_rate(line.metric)
            if line.band:
                x, colour = drawn.x["step"], palette[line.run]
                axes.fill_between(x, *line.band, color=colour, alpha=0.2, linewidth=0)
            axes.plot(
                drawn.x["step"],
                drawn.y,
                color=line.colour or palette[line.run],
                label=line.metric,
                alpha=0.6 if line.in_training else 1,
                linewidth=WIDTHS["training" if line.in_training else "validation"],
                drawstyle="steps-post" if is_lr else None,
                marker="." if len(drawn.y) <= FEW and not is_lr else None,
                markersize=3 if line.in_training else 6,
            )
        if own[0].colour and len(own) <= MANY:
            axes.legend(fontsize="x-small", ncols=math.ceil(len(own) / 10))
        if limits:
            axes.set_ylim(*limits)
        marked = runs if panel in marked_of(runs, panels) else []
        for run, colour in zip(marked, palette, strict=False):
            for drop in run.drops:
                axes.axvline(drop.at["step"], color=colour, linestyle=":", linewidth=1)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    for axes in figure.axes[-columns:]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(AXES["step"])
    if legend:
        names = [name if len(name) <= LENGTH else f"{name[: LENGTH - 1]}…" for name in legend]
        per_row = min(len(legend), per_row)
        figure.legend(legend.values(), names, loc="outside upper center", ncols=per_row)
    return figure


def draw_curves(folder: Path) -> None:
    """Write a run's `curves.png`; what stands in the way is a line, as it must not end a run."""
    try:
        run = Run.read(folder)
        lines = lines_of([run])
        panels = first_panels(lines, MOST - 1)
        if not panels:
            return
        with atomic_write(folder / CURVES) as part:
            figure = still([run], [line for line in lines if line.panel in panels])
            figure.savefig(part, dpi=120, format="png")
    except Exception as e:
        print(f"{folder / CURVES} is not drawn: {first_line(e)}", file=sys.stderr)
