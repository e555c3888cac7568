"""The results of a sweep: a table, and a figure of the metric over the first parameter."""

import json
import math
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anneal.sweep.file import Sweep
from anneal.sweep.study import FINISHED, STOPPED, Study
from anneal.system import text_table as in_columns
from anneal.system import write_csv

SEED = "seed_everything"
MARKERS = "osD^vPX*<>"
MOST_LINES = 10


@dataclass(frozen=True)
class Row:
    """A trial as the table shows it."""

    number: int
    value: float  # the metric's last; NaN: there is none
    status: str  # how it ended, with the error if it failed
    values: dict[str, Any]  # the parameters that vary, by dotted name
    seconds: float | None  # None: it did not end
    folder: str


def rows_of(study: Study) -> list[Row]:
    """Return all trials that were begun: the best first, those without a value last."""
    rows = []
    interrupted = study.interrupted()
    for t in study.trials():
        if "values" in t.user_attrs:
            attrs = t.user_attrs
            status = attrs.get("status", "running")
            if t.number in interrupted:
                status = "interrupted, run again"
            status = ": ".join(filter(None, [status, attrs.get("error")]))
            value = t.value if t.state.is_finished() and study.sweep.metric else None
            value = math.nan if value is None else value
            seconds, folder = attrs.get("seconds"), attrs.get("folder", "")
            rows.append(Row(t.number, value, status, attrs["values"], seconds, folder))
    sign = -1 if study.sweep.metric and study.sweep.metric.maximize else 1

    def order(row: Row) -> tuple[bool, bool, float, int]:
        none = math.isnan(row.value)
        return none, row.status != FINISHED, 0 if none else sign * row.value, row.number

    return sorted(rows, key=order)


def write_table(path: Path, sweep: Sweep, rows: list[Row]) -> None:
    """Write the table as CSV, with full names and numbers."""
    metric, names = [sweep.metric.name] if sweep.metric else [], [p.name for p in sweep.parameters]
    lines: list[list[Any]] = [["trial", *metric, *names, "status", "seconds", "folder"]]
    for r in rows:
        values = (r.values[name] for name in names)
        varied = [json.dumps(v) if isinstance(v, dict | list) else v for v in values]
        lines.append([r.number, *[r.value] * len(metric), *varied, r.status, r.seconds, r.folder])
    write_csv(path, lines)


def text_table(sweep: Sweep, rows: list[Row]) -> str:
    """Return the table for the terminal."""
    short = short_names([p.name for p in sweep.parameters])
    header = ["trial", *([sweep.metric.name] if sweep.metric else []), *short.values()]
    lines = [[*header, "time", "folder", "status"]]
    for r in rows:
        value = [] if sweep.metric is None else ["" if math.isnan(r.value) else f"{r.value:.5g}"]
        seconds = "" if r.seconds is None else f"{r.seconds:.1f} s"
        varied = [label(r.values[name]) for name in short]
        lines.append([str(r.number), *value, *varied, seconds, r.folder, r.status])
    return in_columns(lines)


def short_names(names: list[str]) -> dict[str, str]:
    """Return dotted names shortened to their last part, where that says which is meant."""
    last = [name.rpartition(".")[2] for name in names]
    return {n: s if last.count(s) == 1 else n for n, s in zip(names, last, strict=True)}


def label(value: Any) -> str:
    """Return a value as it is shown: a class by name and arguments, a number in its digits."""
    if isinstance(value, dict) and "class_path" in value:
        args = value.get("init_args") or {}
        inside = ", ".join(f"{k}={label(v)}" for k, v in args.items())
        name = str(value["class_path"]).rpartition(".")[2]
        return f"{name}({inside})" if inside else name
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def plot(sweep: Sweep, rows: list[Row]) -> Figure | None:
    """Plot the metric over the learning rate, or else over the first parameter of numbers.

    Points with the same parameters and other seeds are drawn small, and their mean large. The best
    is marked. Without a parameter of numbers the table says it all.
    """
    done = [r for r in rows if math.isfinite(r.value)]
    names = [p.name for p in sweep.parameters]
    names = [name for name in names if name != SEED] or names
    if sweep.metric is None or not done or (x := _x_axis(names, done)) is None:
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    _curves(axes, sweep, x, [n for n in names if n != x], rows)
    axes.set_title(sweep.name)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def _x_axis(names: list[str], rows: list[Row]) -> str | None:
    """Return the first learning rate, or the first parameter whose values are all numbers."""
    numeric = [n for n in names if not any(math.isnan(_x(r, n)) for r in rows)]
    rates = [n for n in numeric if n.rpartition(".")[2] == "lr"]
    return next(iter(rates + numeric), None)


def _number(value: Any) -> float:
    """Return a number, also of text: YAML takes 1e-4 for that; NaN of what is none."""
    with suppress(TypeError, ValueError):
        return math.nan if isinstance(value, bool) else float(value)
    return math.nan


def _means(rows: list[Row], names: list[str]) -> dict[str, list[Row]]:
    """Return trials grouped by the values of some parameters."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[json.dumps([row.values[n] for n in names])].append(row)
    return groups


def _mean(rows: list[Row]) -> float:
    return fmean(r.value for r in rows)


def _curves(axes: Axes, sweep: Sweep, x: str, others: list[str], rows: list[Row]) -> None:
    """Draw a line for each combination of the other parameters of a grid, or else points."""
    assert sweep.metric
    metric = sweep.metric
    grid = sweep.method == "grid"
    done = [r for r in rows if math.isfinite(r.value)]
    series = _means(done, others) if grid else {"": done}
    if len(series) > MOST_LINES:
        series, others = {"": done}, []
    for (_, mine), marker in zip(series.items(), cycle(MARKERS), strict=False):
        points = sorted(_means(mine, [x, *others]).values(), key=lambda g: _x(g[0], x))
        name = ", ".join(_named(n, mine[0].values[n]) for n in others) if grid else ""
        places, heights = [_x(g[0], x) for g in points], [_mean(g) for g in points]
        style = {"marker": marker, "linestyle": "-" if grid else "", "label": name}
        (line,) = axes.plot(places, heights, **style)  # type: ignore[arg-type]
        if any(len(g) > 1 for g in points):
            single = [(_x(r, x), r.value) for r in mine]
            axes.plot(*zip(*single, strict=True), ".", color=line.get_color(), alpha=0.5)
        if early := [r for r in mine if r.status == STOPPED]:
            axes.plot([_x(r, x) for r in early], [r.value for r in early], "o", color="white", ms=4)
    groups = _means(done, [x, *others] if grid else list(done[0].values)).values()
    whole = [g for g in groups if any(r.status == FINISHED for r in g)]
    best = (max if metric.maximize else min)(whole or groups, key=_mean)
    over = f" (mean of {len(best)})" if len(best) > 1 else ""
    text = f"best: {_mean(best):.4g}{over} at {label(best[0].values[x])}"
    star = {"ms": 18, "color": "gold", "mec": "black", "zorder": 5}
    axes.plot([_x(best[0], x)], [_mean(best)], "*", label=text, **star)  # type: ignore[arg-type]
    if failed := [r for r in rows if r not in done and r.seconds is not None]:
        edge = axes.get_xaxis_transform()  # x in values, y in shares of the height
        places = [_x(r, x) for r in failed]
        axes.plot(places, [0.02] * len(places), "rx", transform=edge, label="failed", clip_on=False)
    axes.set_xlabel(x)
    axes.set_ylabel(metric.name)
    numbers = [number for r in rows if not math.isnan(number := _x(r, x))]
    log = next(p.log for p in sweep.parameters if p.name == x)
    if min(numbers) > 0 and (log or max(numbers) / min(numbers) > 10):
        axes.set_xscale("log")
    axes.legend(loc="best")


def _named(name: str, value: Any) -> str:
    """Return a value with its name, where it does not say itself what it is."""
    return label(value) if isinstance(value, dict) else f"{name.rpartition('.')[2]}={label(value)}"


def _x(row: Row, name: str) -> float:
    return _number(row.values[name])
