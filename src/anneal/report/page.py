"""The command `report`: curves and a table of runs, as a page and as figures.

What takes a second to import is imported where it is used, so that `--help` does not wait for it.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anneal.errors import UserError, command
from anneal.runs.folder import STAMP, find_runs

if TYPE_CHECKING:
    import pandas as pd

    from anneal.report.plots import Line
    from anneal.runs.run import Run

BETTER = {"acc": "max", "loss": "min"}
FORMATS = {  # by the end of a column, in their order
    "acc": "{:.4f}",
    "loss": "{:.4g}",
    "epochs": "{}",
    "steps": "{:,.0f}",
    "time [s]": "{:,.1f}",
    "samples/s": "{:,.0f}",
}
GENERATED = re.compile(rf"-\d{{3}}$|{STAMP.pattern}")  # names of a sweep's runs, and of others
BANDS = " Runs that differ by their seed only are drawn as their mean, in a band of all values."
BEST = "background-color: #c9efd2; font-weight: bold"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14px system-ui, sans-serif; color: #2a3f5f; margin: 1.5em; }}
h1 {{ font-size: 1.4em; margin: 0; }}
p {{ max-width: 75em; line-height: 1.5; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; white-space: nowrap; }}
th, td {{ padding: 0.25em 0.7em; border-bottom: 1px solid #dfe8f3; text-align: right; }}
thead th {{ white-space: normal; vertical-align: bottom; }}
thead tr:first-child th {{ text-align: left; }}
tbody th {{ position: sticky; left: 0; background: white; text-align: left; }}
tbody th {{ font-weight: normal; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Thick: validation and the learning rate. Thin: training. Dotted: where the learning rate drops. A
click on a run in the legend switches it off and on, a double click all others. Drag to zoom,
double-click to zoom out.{bands}{thinned}</p>
{figure}
<div class="table">
{table}
</div>
<p>The best value of a metric is marked. Keys of the configuration that all runs share are left out;
an arrow is a change on a resume. Time and samples/s include validation.</p>
</body>
</html>
"""


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
    for what, better in BETTER.items():
        for stage, metric in run.stages(what).items():
            if metric == "train/acc" or not len(y := run.curve(metric).y):
                continue
            if stage not in ("train", "test"):
                row[f"best {metric}"] = float(y.max() if better == "max" else y.min())
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

    from anneal.report.plots import colours

    names = [run.name for run in runs]
    found = pd.DataFrame([results(run) for run in runs], index=names)
    found = found[sorted(found, key=_rank)]  # whatever the first run has logged
    parts = {"results": found, "configuration, where it differs": _differing(runs)}
    frame = pd.concat({k: part for k, part in parts.items() if part.shape[1]}, axis=1)
    style = frame.style.format(escape="html").format_index(escape="html", axis=0)
    style = style.format_index(escape="html", axis=1)
    for column in frame["results"].select_dtypes("number"):
        key = ("results", column)
        shown = next(form for end, form in FORMATS.items() if column.endswith(end))
        style = style.format(shown, subset=[key], na_rep="–")  # noqa: RUF001
        if len(runs) > 1 and column.endswith(("acc", "samples/s")):
            style = style.highlight_max(subset=[key], props=BEST)
        elif len(runs) > 1 and column.endswith("loss"):
            style = style.highlight_min(subset=[key], props=BEST)
    swatch = dict(zip(names, palette or colours(len(runs)), strict=True))
    style = style.map_index(lambda name: f"border-left: 0.7em solid {swatch[name]}", axis=0)
    return str(style.to_html())


def _rank(column: str) -> tuple[int, bool]:
    """Return the place of a column: accuracies, losses, then costs, and training the last."""
    return next(i for i, end in enumerate(FORMATS) if column.endswith(end)), "train/" in column


def labelled(runs: "Sequence[Run]") -> "Sequence[Run]":
    """Return runs that nobody has named under what differs between them, if that is little."""
    from anneal.runs.run import FEW_KEYS

    differ = _differing(runs).rename(columns=lambda key: key.rpartition(".")[2])
    names = [", ".join(f"{k}={v}" for k, v in row.items()) for _, row in differ.iterrows()]
    few = differ.shape[1] <= FEW_KEYS and len(set(names)) == len(runs)
    if not (few and all(GENERATED.search(run.name) for run in runs)):
        return runs
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _differing(runs: "Sequence[Run]") -> "pd.DataFrame":
    """Return what differs between the configurations, a row a run."""
    import pandas as pd

    names = [run.name for run in runs]
    settings = pd.DataFrame([run.config for run in runs], index=names).fillna("–")  # noqa: RUF001
    return settings.loc[:, settings.nunique() > 1]


def page(
    runs: "Sequence[Run]", lines: "Sequence[Line]", groups: "Sequence[Sequence[Run]]" = ()
) -> str:
    """Return the page, with all that it needs in it; `groups` are the runs that means are of."""
    from anneal.report.plots import colours, interactive

    groups = groups or [[run] for run in runs]
    every = [run for group in groups for run in group]
    by_group = zip(groups, colours(len(runs)), strict=True)
    palette = [colour for group, colour in by_group for _ in group]
    longest = max(len(line.kept) for line in lines)
    thinned = (
        f" Long curves are drawn by up to {longest:,} points, the lowest and the highest value of"
        " each stretch of steps; smoothing and the table use all of them."
    )
    figure = interactive(labelled(runs), lines).to_html(
        full_html=False,
        include_plotlyjs=True,
        config={"displaylogo": False, "showSendToCloud": False, "responsive": True},
    )
    return PAGE.format(
        title="1 run" if len(every) == 1 else f"{len(every)} runs",
        thinned=thinned if any(len(line.kept) < len(line.curve.y) for line in lines) else "",
        bands=BANDS if len(runs) < len(every) else "",
        figure=figure,
        table=table(every, palette),
    )


def write(runs: "Sequence[Run]", output: Path, bands: bool = False) -> list[Path]:
    """Write the page, a figure of its curves, and one of each panel; return their paths."""
    from anneal.report.plots import lines_of, panels_of, still
    from anneal.runs.run import grouped, mean_of

    groups = grouped(runs) if bands else {run.name: [run] for run in runs}
    means = [mean_of(label, members) for label, members in groups.items()]
    lines = lines_of(means)
    if not lines:
        raise UserError(f"no loss, acc or lr in {', '.join(run.name for run in runs)}")
    figures = {output.with_suffix(".png"): lines}
    for panel in panels_of(lines):
        path = output.with_name(f"{output.stem}-{panel}.png")
        figures[path] = [line for line in lines if line.panel == panel]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(means, lines, list(groups.values())), encoding="utf-8")
        for path, drawn in figures.items():
            still(labelled(means), drawn).savefig(path, dpi=120)
    except OSError as e:
        raise UserError(f"can't write {e.filename or output}: {e.strerror}") from e
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
