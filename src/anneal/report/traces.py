"""Curves of several runs over one another, as the page's script hands them to Plotly."""

import math
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np

from anneal.report import curves
from anneal.runs.drops import Array
from anneal.runs.metrics import is_learning_rate
from anneal.runs.run import AXES, Run

SMOOTHING = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


def traces_of(runs: Sequence[Run], lines: Sequence[curves.Line]) -> dict[str, Any]:
    """Return what the page draws, as JSON can hold it: the runs, and the curves of each panel."""
    panels, first = curves.panels_of(lines), curves.first_panels(lines)
    marked = curves.marked_of(runs, panels)
    by_panel = {panel: [line for line in lines if line.panel == panel] for panel in panels}
    shown = []
    for run, colour in zip(runs, curves.colours(len(runs)), strict=True):
        drops = [{"text": f"lr {d.before:.3g} → {d.after:.3g}", "at": d.at} for d in run.drops]
        shown.append({"name": run.name, "colour": colour, "drops": drops})
    axes = {}
    for axis, name in AXES.items():
        if ends := [line.curve.x[axis].max() for line in lines if axis in line.curve.x]:
            axes[axis] = {"name": name, "end": float(max(ends))}
    return {
        "runs": shown,
        "axes": axes,
        "smoothing": SMOOTHING,
        "panels": [
            {
                "title": curves.TITLES.get(panel, panel),
                "shown": panel in first,
                "marked": panel in marked,
                "scale": _scale(panel, by_panel[panel]),
                "lines": _curves(by_panel[panel]),
            }
            for panel in panels
        ],
    }


def _scale(panel: str, lines: Sequence[curves.Line]) -> dict[str, Any]:
    """Return the settings of the y axis of a panel."""
    kind, limits = curves.scale(panel, lines)
    axis: dict[str, Any] = {"type": kind}
    if kind == "log":
        least = limits[0] if limits else min(line.curve.y.min() for line in lines)
        axis["tickformat"] = "~e" if least < 1e-4 else "~g"
        axis["nticks"] = 3  # more of them would run into each other
    if limits:
        axis["range"] = [math.log10(limit) for limit in limits]
    return axis


def _curves(lines: Sequence[curves.Line]) -> list[dict[str, Any]]:
    """Return the bands of lines, there and back, and the lines at each level of smoothing."""
    found = []
    for line in sorted(lines, key=lambda line: not line.in_training):  # thick ones over thin ones
        at = {axis: x[line.kept] for axis, x in line.curve.x.items()}
        about = {"run": line.run, "metric": line.metric}
        if line.band:
            low, high = line.band
            x = {axis: _pack(np.append(places, places[::-1])) for axis, places in at.items()}
            y = [_pack(np.append(low, high[::-1]))]
            look = {"mode": "lines", "line": {"width": 0}}
            found.append(about | {"x": x, "y": y, "look": look, "band": True})
        x = {axis: _pack(places) for axis, places in at.items()}
        smooth = map(line.curve.smooth, SMOOTHING[1:] if line.in_training else ())
        y = [_pack(level.y[line.kept]) for level in (line.curve, *smooth)]
        found.append(about | {"x": x, "y": y, "look": _look(line)})
    return found


def _look(line: curves.Line) -> dict[str, Any]:
    is_lr = is_learning_rate(line.metric)
    few = len(line.kept) <= curves.FEW and not is_lr
    shape = "hv" if is_lr else "linear"  # a learning rate holds until the next one
    colour = {"color": line.colour} if line.colour else {}
    return {
        "mode": "lines+markers" if few else "lines",
        "line": {"width": 1 if line.in_training else 2, "shape": shape, **colour},
        "marker": {"size": 3 if line.in_training else 5},
        "opacity": 0.6 if line.in_training else 1,
    }


def _pack(values: Array) -> dict[str, str]:
    """Return numbers in base64 for Plotly, in 4 bytes each if these hold integers exactly."""
    kind = "f4" if np.abs(values).max(initial=0) < 2**24 else "f8"
    return {"dtype": kind, "bdata": b64encode(values.astype(f"<{kind}").tobytes()).decode()}
