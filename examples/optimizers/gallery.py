"""Twelve optimizers on six surfaces: `python train.py gallery`."""

import argparse
import logging
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure

from anneal import command
from examples.optimizers import COMMANDS
from examples.optimizers.figure import entitle, save, styled
from examples.optimizers.functions import find
from examples.optimizers.marks import legend
from examples.optimizers.points import Steps
from examples.optimizers.surface import Surface
from examples.optimizers.trajectories import Trajectory, draw_panel

STEPS = 100
STARTS = {
    "quadratic": [-4.0, 2.2],
    "saddle": [-1.5, 0.02],
    "rosenbrock": [-0.5, 2.5],
    "beale": [1.0, 1.5],
    "valley": [-9.0, 1.5],
    "himmelblau": [0.0, -1.0],
}
# Learning rates on the surfaces in the order above: of 1, 2 and 5 times a power of ten up to 1
# (Adagrad 2, Adadelta 20), one of the best after 100 steps whose path stays in the figure.
RATES = {
    "SGD": (0.1, 0.5, 0.002, 0.02, 0.1, 0.01),
    "Momentum": (0.1, 0.5, 0.001, 0.002, 0.1, 0.01),
    "Nesterov": (0.1, 0.5, 0.001, 0.005, 0.05, 0.01),
    "Adagrad": (2, 2, 1, 2, 1, 1),
    "Adadelta": (20, 20, 10, 20, 20, 20),
    "RMSprop": (0.5, 0.2, 0.1, 0.2, 0.1, 0.05),
    "Rprop": (0.5, 0.5, 0.5, 0.1, 0.1, 0.1),
    "Adam": (0.5, 1, 1, 0.5, 0.5, 1),
    "AdamW": (1, 0.5, 1, 0.5, 0.5, 0.5),
    "Adamax": (1, 1, 1, 1, 0.5, 1),
    "NAdam": (1, 0.2, 1, 0.5, 0.2, 0.2),
    "LBFGS": (1, 1, 0.5, 1, 0.02, 0.5),
}
SETTINGS = {
    "Momentum": {"momentum": 0.9},
    "Nesterov": {"momentum": 0.9, "nesterov": True},
}


def train(function: str, optimizer: str, lr: float, steps: int = STEPS) -> Trajectory:
    """Train a surface, without logs and checkpoints, and return its trajectory."""
    settings = SETTINGS.get(optimizer, {})
    cls = getattr(torch.optim, "SGD" if settings else optimizer)
    make = partial(cls, lr=lr, **settings)
    module = Surface(function, STARTS[function], optimizer=make)
    trainer = Trainer(accelerator="cpu", max_epochs=1, barebones=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*self.log")  # which does nothing here
        trainer.fit(module, Steps(steps))
    done = module.trajectory()
    return Trajectory(function, f"{optimizer} {lr:g}", done.path, done.lrs)


@styled
def draw_gallery(function: str, steps: int = STEPS) -> Figure:
    """Draw all optimizers on one surface, each in a panel of its own."""
    place = list(STARTS).index(function)
    surface = find(function)
    figure = Figure(figsize=(10, 7.8))
    grid = figure.subplots(3, 4, sharex=True, sharey=True)
    above = []
    for axes, (optimizer, rates) in zip(grid.flat, RATES.items(), strict=True):
        done = train(function, optimizer, rates[place], steps)
        draw_panel(axes, done)
        lowest = surface(torch.tensor(surface.minima[0]))
        above.append(max(0.0, float(done.losses[-1, 0] - lowest)))
        axes.set_title(f"{done.label}: {above[-1]:.2g} above", fontsize=9)
        axes.set(xlabel="x", ylabel="y")
        axes.label_outer()
    near = sum(loss < 0.01 for loss in above)
    many = f"{near} of {len(RATES)} optimizers"
    title = f"{function.capitalize()}, {steps} steps: {many} come within 0.01 of the lowest loss"
    entitle(figure, title)
    legend(figure, surface, "start", "end", "global minimum")
    return figure


@command
def main(args: list[str] | None = None) -> int:
    """Write `gallery-SURFACE.png` for each surface and return the exit status."""
    parser = argparse.ArgumentParser("python train.py gallery", description=COMMANDS["gallery"][1])
    parser.add_argument("surfaces", nargs="*", help=f"some of {', '.join(STARTS)}; by default all")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/figures"), help="folder")
    options = parser.parse_args(args)
    if unknown := set(options.surfaces) - set(STARTS):
        parser.error(f"there is no gallery of {', '.join(unknown)}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for function in options.surfaces or STARTS:
        path = options.output / f"gallery-{function}.png"
        save(draw_gallery(function), path)
        print(path)
    return 0
