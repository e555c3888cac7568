"""Twelve optimizers on six surfaces: `python train.py gallery`."""

import argparse
from functools import partial
from pathlib import Path

import torch
import yaml
from matplotlib.figure import Figure

from anneal import UserError, command
from examples.optimizers import COMMANDS
from examples.optimizers.figure import Steps, legend, save, styled, titled, train_bare
from examples.optimizers.functions import find
from examples.optimizers.surface import Surface
from examples.optimizers.trajectories import Trajectory, draw_panel

STARTS, RATES, SGD = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8")).values()


def train(function: str, optimizer: str, lr: float, steps: int = 100) -> Trajectory:
    """Train a surface and return its trajectory."""
    cls = torch.optim.SGD if optimizer in SGD else getattr(torch.optim, optimizer)
    make = partial(cls, lr=lr, **SGD.get(optimizer, {}))
    module = Surface(function, STARTS[function], optimizer=make)
    done: Trajectory = train_bare(module, Steps(steps)).trajectory()
    return done


@styled
def draw_gallery(function: str, steps: int = 100) -> Figure:
    """Draw all optimizers on one surface, each in a panel of its own."""
    place, surface = list(STARTS).index(function), find(function)
    lowest = surface(torch.tensor(surface.minima[0]))
    done = {name: train(function, name, rates[place], steps) for name, rates in RATES.items()}
    above = [max(0.0, float(one.losses[-1, 0] - lowest)) for one in done.values()]
    many = f"{sum(loss < 0.01 for loss in above)} of {len(RATES)} optimizers"
    title = f"{function.capitalize()}, {steps} steps: {many} came within 0.01 of the lowest loss"
    figure = titled(title, 7.8)
    grid = figure.subplots(3, 4, sharex=True, sharey=True)
    for axes, name, far in zip(grid.flat, done, above, strict=True):
        draw_panel(axes, [done[name]], "areas")
        axes.set_title(f"{name}, lr {RATES[name][place]:g}: {far:.2g} above", fontsize=9)
        axes.label_outer()
    legend(figure, surface, "start", "end", "global minimum", shaded=True)
    return figure


@command
def main(args: list[str] | None = None) -> int:
    """Write `gallery-SURFACE.png` for each surface and return the exit status."""
    parser = argparse.ArgumentParser("python train.py gallery", description=COMMANDS["gallery"][1])
    parser.add_argument("surfaces", nargs="*", help=f"some of {', '.join(STARTS)}; by default all")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/figures"), help="folder")
    options = parser.parse_args(args)
    if unknown := set(options.surfaces) - set(STARTS):
        raise UserError(f"no gallery of {', '.join(unknown)}: there are {', '.join(STARTS)}")
    for function in options.surfaces or STARTS:
        path = options.output / f"gallery-{function}.png"
        save(draw_gallery(function), path)
        print(path)
    return 0
