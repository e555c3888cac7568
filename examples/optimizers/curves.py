"""Learning curves of runs of any network: `python train.py figures RUN ... --show curves`."""

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from anneal.report.page import read
from anneal.runs.run import labelled
from examples.optimizers.figure import entitle, styled


@styled
def draw(runs: list[str], title: str) -> Figure:
    """Draw loss and accuracy of the validations of runs, or of a folder of runs, by their names."""
    figure = Figure(figsize=(10, 4.4))
    entitle(figure, title)
    panels = figure.subplots(1, 2)
    for run in labelled(read(runs)):
        for axes, metric in zip(panels, ("val/loss", "val/acc"), strict=True):
            curve = run.curve(metric)
            axes.plot(curve.x["step"] + 1, curve.y, label=run.name, lw=1.3)
            axes.set(xlabel="optimizer steps", ylabel=metric, xscale="log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:.0f}")
            axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter("{x:.1f}")
    panels[0].yaxis.set_minor_formatter("{x:.1f}")
    panels[1].legend()
    return figure
