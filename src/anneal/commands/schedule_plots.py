"""Previews of schedules as a table of changes and a figure."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anneal.commands.schedule import Preview
from anneal.errors import UserError
from anneal.runs.drops import drops
from anneal.system import text_table

ROWS = 16  # of a table; those in its middle are left out
FEW = 8  # changes, whose learning rates are written into the figure


class Change(NamedTuple):
    """A named place in a schedule."""

    name: str  # first, warmup ends, decay begins, peak, low, drop, rise or last
    step: int  # how many are taken before it


def changes(preview: Preview) -> list[Change]:
    """Return where the first group's learning rate jumps or turns, in the order of the steps.

    A drop or a rise lies between two constant stretches; at a peak or a low a slope turns. A decay
    begins where a constant stretch ends in a slope.
    """
    lr = relative_lr(preview)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(lr)) + 1])
    held = np.diff([*starts, len(lr)]) > 1
    slopes = np.sign(np.diff(lr[starts]))
    found = {0: "first"}
    if 0 < preview.warmup < len(lr):
        found[preview.warmup] = "warmup ends"
    for i in np.flatnonzero(held[:-1] & held[1:]):
        found.setdefault(int(starts[i + 1]), "drop" if slopes[i] < 0 else "rise")
    for i in np.flatnonzero(held[:-2] & ~held[1:-1] & (slopes[:-1] < 0)):
        found.setdefault(int(starts[i + 1]) - 1, "decay begins")
    for i in np.flatnonzero(slopes[1:] != slopes[:-1]):
        found.setdefault(int(starts[i + 1]), "low" if slopes[i] < 0 else "peak")
    found.setdefault(len(lr) - 1, "last")
    return [Change(found[step], step) for step in sorted(found)]


def relative_lr(preview: Preview) -> NDArray[np.float64]:
    """Return the first group's learning rate over its highest, (steps,), rounding errors gone."""
    lr = preview.lrs[:, 0]
    return (lr / (float(lr.max()) or 1.0)).round(9)


def rates(preview: Preview) -> dict[str, NDArray[np.float64]]:
    """Return the curves that differ, (steps,) each: `lr`, or `lr body` and so on."""
    names: dict[int, list[str]] = {}  # of the groups whose learning rates are equal
    for i, name in enumerate(preview.groups):
        like = (j for j in names if np.array_equal(preview.lrs[:, i], preview.lrs[:, j]))
        names.setdefault(next(like, i), []).append(name)
    if len(names) == 1:
        return {"lr": preview.lrs[:, 0]}
    return {f"lr {', '.join(named)}": preview.lrs[:, i] for i, named in names.items()}


def cycles_momentum(preview: Preview) -> bool:
    """Return whether the momentum changes."""
    return bool(np.ptp(preview.momentum) > 0)


def table(preview: Preview) -> str:
    """Return a line for each change: step, epoch, learning rates and, if it changes, momentum."""
    columns = rates(preview)
    if cycles_momentum(preview):
        columns["momentum"] = preview.momentum
    lines = [["", "step", "epoch", *columns]]
    for name, step in changes(preview):
        values = [f"{column[step]:.4g}" for column in columns.values()]
        lines.append([name, f"{step:,}", f"{step / preview.steps_per_epoch:.6g}", *values])
    if len(lines) - 1 > ROWS:
        cut = slice(ROWS - 4, -4)
        lines[cut] = [[f"… {len(lines[cut])} more", *[""] * (len(lines[0]) - 1)]]
    return text_table(lines, left=1)


def trained(preview: Preview) -> str:
    """Return a line for each parameter group: what is trained how."""
    shown: dict[type, str] = {int: ",", float: ".6g"}
    rows = [[format(v, shown.get(type(v), "")) for v in r.values()] for r in preview.trained]
    return text_table([[name.replace("_", " ") for name in preview.trained[0]], *rows], left=2)


def picture(previews: Mapping[str, Preview]) -> Figure:
    """Draw learning rates over epochs and over steps, and the momentum if it changes."""
    lengths = {p.steps_per_epoch for p in previews.values()}
    panels = [("learning rate", "epochs")]
    if len(lengths) > 1:
        panels.append(("learning rate", "optimizer steps"))
    if any(map(cycles_momentum, previews.values())):
        panels.append(("momentum", "epochs"))
    figure = Figure(figsize=(9, 1 + 3 * len(panels)), layout="constrained")
    figure.suptitle(f"Schedule of {', '.join(previews)}" if len(previews) < 4 else "Schedules")
    is_log, limits = scale(previews)
    rows = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (what, over) in zip(rows, panels, strict=True):
        axes.set(ylabel=what, xlabel=over)
        axes.grid(alpha=0.3)
        axes.margins(x=0.08)
        if what == "learning rate":
            axes.set_yscale("log" if is_log else "linear")
            axes.set_ylim(*limits)
        for label, preview, curve in _curves(previews, momentum=what == "momentum"):
            unit = preview.steps_per_epoch if over == "epochs" else 1
            x = np.arange(len(curve)) / unit
            (line,) = axes.plot(x, curve, label=label, drawstyle="steps-post", linewidth=1.6)
            places = [c.step for c in changes(preview)]
            if len(places) <= ROWS:
                axes.plot(x[places], curve[places], "o", color=line.get_color(), markersize=4)
            if len(places) <= FEW and len(previews) == 1:
                for place in places:
                    here, text = (x[place], curve[place]), f"{curve[place]:.3g}"
                    axes.annotate(text, here, (4, 4), textcoords="offset points", fontsize=8)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend()
    if len(lengths) == 1:
        (unit,) = lengths
        top = rows[0].secondary_xaxis("top", functions=(lambda x: x * unit, lambda x: x / unit))
        top.set_xlabel("optimizer steps")
        top.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def scale(previews: Mapping[str, Preview]) -> tuple[bool, tuple[float, float]]:
    """Return whether the axis of learning rates is logarithmic, as for stairs, and its limits."""
    high = max(p.lrs.max() for p in previews.values()) or 1.0
    stairs = [p.lrs[at].min() for p in previews.values() if 0 < len(at := _stairs(p)) <= ROWS]
    if not stairs or min(stairs) <= 0:
        return False, (0.0, high * 1.08)
    return True, (min(stairs) / 2, high * 2)


def _stairs(preview: Preview) -> list[int]:
    """Return the first step after each drop, if nothing but drops follows the warmup."""
    lr = relative_lr(preview)[preview.warmup :]
    found = drops(lr, np.arange(len(lr)) / preview.steps_per_epoch)
    only = len(found) == np.count_nonzero(np.diff(lr))
    return [preview.warmup + step for step in found] if only else []


def _curves(
    previews: Mapping[str, Preview], momentum: bool = False
) -> Iterator[tuple[str, Preview, NDArray[np.float64]]]:
    """Yield label, preview and values of each curve."""
    for name, preview in previews.items():
        if momentum:
            curves = {"": preview.momentum} if cycles_momentum(preview) else {}
        else:
            curves = rates(preview)
        for what, curve in curves.items():
            yield f"{name} {what[3:]}".strip(), preview, curve


def show(previews: Mapping[str, Preview], output: Path) -> None:
    """Print notes and changes, and write the figure."""
    for name, preview in previews.items():
        lines = ["", f"{name}: {preview.length}", *preview.notes, trained(preview), ""]
        print("\n".join([*lines, table(preview), ""]))
    save_figure(picture(previews), output)
    print(output)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; raise UserError if it can't be, or not into a file of that ending."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as e:
        raise UserError(f"--output={path}: {e}") from e
