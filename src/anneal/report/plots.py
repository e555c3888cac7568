"""Curves of several runs over one another: by Plotly for a browser, by matplotlib for a file."""

import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from anneal.runs.drops import Array
from anneal.runs.run import AXES, Curve, Drop, Run

PANELS = {"loss": "loss", "acc": "accuracy", "lr": "learning rate"}
SMOOTHING = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
POINTS = 1_500  # of a curve at most: more than a screen has columns
BUDGET = 50_000  # of all curves of a page: a browser draws it within two seconds
FEW = 50  # points, which are marked one by one
MANY = 20  # runs, and a figure's legend is full
HOVER_X = "%{x:,.6~g} %{xaxis.title.text}"
HEIGHTS = [0, 0.2, 0.4, 0.6, 0.8, 1, None]  # of a mark's points: hovering looks for one


@dataclass
class Line:
    """A curve as it is drawn."""

    run: int  # index of its run
    panel: str  # key of PANELS
    metric: str
    curve: Curve  # all of its points
    kept: Array  # indices of those that are drawn
    band: tuple[Array, Array] | None = None  # lowest and highest values, of a mean of runs

    @property
    def in_training(self) -> bool:
        """Whether it is drawn thin and can be smoothed."""
        return self.metric.startswith("train/")

    @property
    def is_learning_rate(self) -> bool:
        return self.panel == "lr"


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """Return the curves of all runs, tests left out: these are points, for the table."""
    found = []
    for i, run in enumerate(runs):
        for panel in PANELS:
            columns = run.learning_rates()
            if panel != "lr":
                columns = [c for stage, c in run.stages(panel).items() if stage != "test"]
            found += [(i, panel, c, curve) for c in columns if len((curve := run.curve(c)).y)]
    points = max(50, min(POINTS, BUDGET // max(1, len(found))))
    lines = [Line(i, panel, c, curve, curve.extremes(points)) for i, panel, c, curve in found]
    for line in lines:
        if (ends := runs[line.run].band) and not (line.in_training or line.is_learning_rate):
            low, high = (end.curve(line.metric).y[line.kept] for end in ends)
            line.band = low, high
    return lines


def panels_of(lines: Iterable[Line]) -> list[str]:
    """Return the panels that have a curve, from top to bottom."""
    return [panel for panel in PANELS if any(line.panel == panel for line in lines)]


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
    if panel == "lr" and high > 0:
        least = min(np.quantile(y[y > 0], 0.01, method="lower") for y in curves if y.max() > 0)
        return "log", [float(least) / 1.5, float(high) * 1.5]
    return "log" if panel == "loss" and 0 < 100 * low < high else "linear", None


# ---- for a browser


def interactive(runs: Sequence[Run], lines: Sequence[Line]) -> go.Figure:
    """Return panels over one x axis, with its switch, smoothing, hover values and a legend."""
    names, palette = [escape(run.name) for run in runs], colours(len(runs))
    panels = panels_of(lines)
    y_axes = {panel: f"y{i}" for i, panel in enumerate(panels, 1)}
    traces: list[dict[str, Any]] = []
    places: list[dict[str, Any]] = []  # x of each trace, by axis
    smooth = {}  # y of the traces in training, by trace and level
    for i, (run, name, colour) in enumerate(zip(runs, names, palette, strict=True)):
        group = {"name": name, "legendgroup": str(i), "showlegend": False}
        own = [line for line in lines if line.run == i]
        # The thick lines are drawn last, and stand for their run in the legend.
        for line in sorted(own, key=lambda line: not line.in_training):
            drawn = line.curve.take(line.kept)
            if line.band:  # there and back
                low, high = line.band
                places.append({k: _pack(np.append(x, x[::-1])) for k, x in drawn.x.items()})
                data = {"x": places[-1]["step"], "y": _pack(np.append(low, high[::-1]))}
                traces.append(_band(colour) | data | group | {"yaxis": y_axes[line.panel]})
            if line.in_training:
                levels = (line.curve.smooth(w) if w else line.curve for w in SMOOTHING)
                smooth[len(traces)] = [_pack(level.y[line.kept]) for level in levels]
            places.append({axis: _pack(x) for axis, x in drawn.x.items()})
            data = {"x": places[-1]["step"], "y": _pack(drawn.y), "yaxis": y_axes[line.panel]}
            traces.append(_look(line, colour) | data | group)
        traces[-1]["showlegend"] = True
        if drops := run.drops:
            marks = _marks(drops, colour)
            for panel in marked_of(runs, panels):
                places.append({axis: _at(drops, axis) for axis in drops[0].at})
                traces.append(marks | {"yaxis": f"{y_axes[panel]}0"} | group)
    height, space = 1 / len(panels), 0.03
    figure = go.Figure(traces)
    figure.update_layout(
        template="plotly_white",
        height=180 + 250 * len(panels),
        margin={"t": 100, "l": 80, "r": 20, "b": 60},
        hovermode="closest",
        legend={"tracegroupgap": 0},
        xaxis={"title": {"text": AXES["step"]}, "anchor": y_axes[panels[-1]]},
        updatemenus=[_axis_switch(places)],
        sliders=[_smoothing_slider(smooth)] if smooth else [],
    )
    for i, panel in enumerate(panels, 1):
        kind, limits = scale(panel, lines)
        top = 1 - (i - 1) * height
        figure.layout[f"yaxis{i}"] = {
            "title": {"text": PANELS[panel]},
            "domain": [max(0, top - height + space), top],
            "type": kind,
            "range": None if limits is None else np.log10(limits).tolist(),
            "tickformat": "~g" if kind == "log" else None,
            "nticks": None if kind == "linear" else 7 if panel == "lr" else 3,
        }
        # The marks' own axis: they reach from the bottom to the top, whatever is zoomed.
        own_axis = {"overlaying": f"y{i}", "range": [0, 1], "visible": False, "fixedrange": True}
        figure.layout[f"yaxis{i}0"] = own_axis
    return figure


def _look(line: Line, colour: str) -> dict[str, Any]:
    few = len(line.kept) <= FEW and not line.is_learning_rate
    return {
        "mode": "lines+markers" if few else "lines",
        # A learning rate holds until the next one.
        "line": {
            "color": colour,
            "width": 1 if line.in_training else 2,
            "shape": "hv" if line.is_learning_rate else "linear",
        },
        "marker": {"size": 3 if line.in_training else 5},
        "opacity": 0.6 if line.in_training else 1,
        "hovertemplate": f"{escape(line.metric)} <b>%{{y:.5g}}</b><br>{HOVER_X}",
    }


def _band(colour: str) -> dict[str, Any]:
    """Return an area without an edge."""
    area = {"fill": "toself", "fillcolor": colour, "opacity": 0.2}
    return {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", **area}


def _marks(drops: Sequence[Drop], colour: str) -> dict[str, Any]:
    """Return vertical lines where the learning rate drops."""
    return {
        "x": _at(drops, "step"),
        "y": HEIGHTS * len(drops),
        "mode": "lines",
        "line": {"color": colour, "width": 1, "dash": "dot"},
        "text": [f"lr {drop.before:.3g} → {drop.after:.3g}" for drop in drops for _ in HEIGHTS],
        "hovertemplate": f"%{{text}}<br>{HOVER_X}",
    }


def _at(drops: Sequence[Drop], axis: str) -> list[float]:
    return [drop.at[axis] for drop in drops for _ in HEIGHTS]


def _axis_switch(places: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return buttons that give all traces the x of another axis, or none to a run without it."""
    nowhere: list[float] = []
    buttons = [
        {
            "label": label,
            "method": "update",
            "args": [
                {"x": [at.get(axis, nowhere) for at in places]},
                {"xaxis.title.text": label, "xaxis.autorange": True},
            ],
        }
        for axis, label in AXES.items()
        if any(axis in at for at in places)
    ]
    where = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 20}}
    return {"type": "buttons", "direction": "right", "buttons": buttons, **where}


def _smoothing_slider(levels: dict[int, list[Any]]) -> dict[str, Any]:
    steps = [
        {
            "label": f"{weight:g}",
            "method": "restyle",
            "args": [{"y": [ys[i] for ys in levels.values()]}, list(levels)],
        }
        for i, weight in enumerate(SMOOTHING)
    ]
    title = {"prefix": "smoothing of the curves in training: ", "font": {"size": 12}}
    where = {"len": 0.4, "x": 0.6, "y": 1, "yanchor": "bottom", "pad": {"b": 20}}
    return {"steps": steps, "currentvalue": title, "ticklen": 0, **where}


def _pack(values: Array) -> dict[str, str]:
    """Return numbers in base64 for Plotly, in 4 bytes each if these hold integers exactly."""
    kind = "f4" if np.abs(values).max(initial=0) < 2**24 else "f8"
    return {"dtype": kind, "bdata": b64encode(values.astype(f"<{kind}").tobytes()).decode()}


# ---- for a file


def still(runs: Sequence[Run], lines: Sequence[Line]) -> Figure:
    """Draw the panels over the steps: training thin, drops of the learning rate dotted."""
    panels, palette = panels_of(lines), colours(len(runs))
    names = [run.name for run in runs] if len(runs) <= MANY else []
    columns = max(1, 100 // (10 + max(map(len, names), default=0)))
    height = 0.3 + 2.4 * len(panels) + 0.25 * math.ceil(len(names) / columns)
    figure = Figure(figsize=(9, height), layout="constrained")
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(rows, panels, strict=True):
        kind, limits = scale(panel, lines)
        axes.set(ylabel=PANELS[panel], yscale=kind)
        axes.grid(alpha=0.3)
        for line in lines:
            if line.panel == panel:
                drawn = line.curve.take(line.kept)
                if line.band:
                    x, colour = drawn.x["step"], palette[line.run]
                    axes.fill_between(x, *line.band, color=colour, alpha=0.2, linewidth=0)
                axes.plot(
                    drawn.x["step"],
                    drawn.y,
                    color=palette[line.run],
                    alpha=0.6 if line.in_training else 1,
                    linewidth=0.7 if line.in_training else 1.6,
                    drawstyle="steps-post" if line.is_learning_rate else None,
                    marker="." if len(drawn.y) <= FEW and not line.is_learning_rate else None,
                    markersize=3 if line.in_training else 6,
                )
        if limits:
            axes.set_ylim(*limits)
        marked = runs if panel in marked_of(runs, panels) else []
        for run, colour in zip(marked, palette, strict=False):
            for drop in run.drops:
                axes.axvline(drop.at["step"], color=colour, linestyle=":", linewidth=1)
    rows[-1].set_xlabel(AXES["step"])
    if names:
        handles = [Line2D([], [], color=colour) for colour in palette]
        figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), columns))
    return figure
