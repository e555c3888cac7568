"""The command `report`: curves and a table of runs, as a page and as figures.

What takes a second to import is imported where it is used, so that `--help` does not wait for it.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anneal.errors import UserError, command, in_a_line
from anneal.runs.folder import find_runs
from anneal.runs.metrics import better, family

if TYPE_CHECKING:
    from anneal.report.curves import Line
    from anneal.runs.run import Run

# Columns behind those of metrics.
COSTS = {"epochs": "{}", "steps": "{:,.0f}", "time [s]": "{:,.1f}", "samples/s": "{:,.0f}"}
BANDS = " Runs that differ by their seed only are drawn as their mean, in a band of all values."
BEST = "background-color: #c9efd2; font-weight: bold"
TEMPLATE = Path(__file__).with_name("page.html")


def read(words: Iterable[str]) -> "list[Run]":
    """Return the runs that can be read, and name the others; raise UserError if none can."""
    from anneal.runs.run import Run

    folders, wrong = find_runs(words)
    names = Counter(folder.resolve().name for folder in folders)
    runs = []
    for folder in folders:
        try:
            run = Run.read(folder)
            runs.append(run if names[run.name] == 1 else replace(run, name=str(folder)))
        except UserError as e:
            wrong.append(str(e))
    if not runs:
        more = f" (and {len(wrong) - 1} more like this)" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{more}")
    for line in wrong:
        print(f"left out: {line}", file=sys.stderr)
    return runs


def results(run: "Run") -> dict[str, float | str]:
    """Return the best, last and tested values of a run, and how long it took."""
    row: dict[str, float | str] = {}
    for name, columns in run.families.items():
        stages = {metric: family(metric)[0] for metric in columns}
        measured = {*stages.values()} - {"train"}
        for metric, stage in stages.items():
            trained = stage == "train" and name != "loss" and measured
            if trained or metric.startswith("lr") or (len(columns) > 1 and not stage):
                continue
            y, how = run.curve(metric).y, better(metric)
            if stage not in ("", "train", "test") and how:
                row[f"best {metric}"] = float(y.max() if how == "max" else y.min())
            row[metric if stage == "test" else f"last {metric}"] = float(y[-1])
    end = run.reached()
    if "epoch" in end:
        row["epochs"] = f"{end['epoch']:.4g} of {run.config.get('trainer.max_epochs', '?')}"
    row["steps"] = end["step"]
    if seconds := end.get("time"):
        row["time [s]"] = seconds
        if "samples" in end:
            row["samples/s"] = end["samples"] / seconds
    return row


def table(runs: "Sequence[Run]", palette: Sequence[str] = ()) -> str:
    """Return results and what differs between the configurations, a row a run, as HTML."""
    import pandas as pd

    from anneal.report.curves import colours

    names = [run.name for run in runs]
    found = pd.DataFrame([results(run) for run in runs], index=names)
    found = found[sorted(found, key=_rank)]  # whatever the first run has logged
    settings = pd.DataFrame([run.config for run in runs], index=names).fillna("–")  # noqa: RUF001
    differing = settings.loc[:, settings.nunique() > 1]
    parts = {"results": found, "configuration, where it differs": differing}
    frame = pd.concat({k: part for k, part in parts.items() if part.shape[1]}, axis=1)
    style = frame.style.format(escape="html").format_index(escape="html", axis=0)
    style = style.format_index(escape="html", axis=1)
    for column in frame["results"].select_dtypes("number"):
        key = ("results", column)
        how = {**dict.fromkeys(COSTS), "samples/s": "max"}.get(column, better(column))
        shown = COSTS.get(column, "{:.4f}" if how == "max" else "{:.4g}")
        style = style.format(shown, subset=[key], na_rep="–")  # noqa: RUF001
        if len(runs) > 1 and how:
            mark = style.highlight_max if how == "max" else style.highlight_min
            style = mark(subset=[key], props=BEST)
    swatch = dict(zip(names, palette or colours(len(runs)), strict=True))
    style = style.map_index(lambda name: f"border-left: 0.7em solid {swatch[name]}", axis=0)
    return str(style.to_html())


def _rank(column: str) -> int:
    """Return the place of a column: accuracies, losses, what is of training only, then costs."""
    if column in COSTS:
        return 9 + [*COSTS].index(column)
    stage, name = family(column.removeprefix("best ").removeprefix("last "))
    return {"acc": 0, "loss": 2}.get(name, 1) + 3 * (stage in ("", "train"))


def page(runs: "Sequence[Run]", lines: "Sequence[Line]", groups: "Iterable[list[Run]]" = ()) -> str:
    """Return the page, with all that it needs in it; `groups` are the runs that means are of."""
    from plotly.offline import get_plotlyjs

    from anneal.report.curves import colours
    from anneal.report.traces import traces_of
    from anneal.runs.run import labelled

    groups = list(groups) or [[run] for run in runs]
    every = [run for group in groups for run in group]
    by_group = zip(groups, colours(len(runs)), strict=True)
    palette = [colour for group, colour in by_group for _ in group]
    longest = max(len(line.kept) for line in lines)
    notes = BANDS if len(runs) < len(every) else ""
    if any(len(line.kept) < len(line.curve.y) for line in lines):
        notes += (
            f" Long curves are drawn by up to {longest:,} points, the lowest and the highest value"
            " of each stretch of steps; smoothing and the table use all of them."
        )
    values = {
        "title": "1 run" if len(every) == 1 else f"{len(every)} runs",
        "plotly": get_plotlyjs(),
        "notes": notes,
        "table": table(every, palette),
        "data": json.dumps(traces_of(labelled(runs), lines)).replace("<", r"\u003c"),
    }
    return re.sub(r"{{ (\w+) }}", lambda found: values[found[1]], TEMPLATE.read_text())


def write(runs: "Sequence[Run]", output: Path, bands: bool = False) -> list[Path]:
    """Write the page, a figure of what it shows at first, and one of each panel; return paths."""
    from anneal.report.curves import first_panels, lines_of, panels_of, still
    from anneal.runs.run import grouped, labelled, mean_of

    groups = grouped(runs) if bands else {run.name: [run] for run in runs}
    means = [mean_of(label, members) for label, members in groups.items()]
    lines = lines_of(means)
    if not lines:
        raise UserError(f"no metric in {', '.join(run.name for run in runs)}")
    figures = {output.with_suffix(".png"): first_panels(lines)}
    for panel in panels_of(lines):
        name = re.sub(r"\W+", "-", panel)
        figures[output.with_name(f"{output.stem}-{name}.png")] = [panel]
    with in_a_line(f"can't write {output} and its figures"):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(means, lines, list(groups.values())), encoding="utf-8")
        for path, panels in figures.items():
            drawn = [line for line in lines if line.panel in panels]
            still(labelled(means), drawn).savefig(path, dpi=120)
    return [output, *figures]


@command
def main(args: list[str] | None = None) -> int:
    """Write the page of some runs, and print the paths of its files."""
    about = "Draws curves and a table of runs, as a page and as figures."
    parser = argparse.ArgumentParser(prog="python train.py report", description=about)
    about = "a run's folder, its name in runs/, a folder of runs, or a pattern of these"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=about)
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page")
    about = "draw runs that differ by their seed only as their mean, in a band of all values"
    parser.add_argument("--bands", action="store_true", help=about)
    options = parser.parse_args(args)
    for path in write(read(options.runs), options.output, options.bands):
        print(path)
    return 0
