"""A learning rate to start from: Lightning's range test, for any module that takes an optimizer.

The rate rises from step to step, from one at which nothing happens to one at which the loss blows
up (Smith 2017, arXiv 1506.01186, section 3.3). Then everything is put back as it was.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from matplotlib.figure import Figure
from torch.optim import AdamW, Optimizer

from anneal.errors import UserError

FIRST, LAST = 10, -1  # the smoothed loss begins with next to nothing to smooth over
LEAST = 5  # points that a slope can be read from
SMOOTHING = 0.98  # what Lightning's running mean keeps in a step


@dataclass
class Search:
    """What a search has seen.

    Args:
        lrs: The optimizer's rate in each step, (steps,).
        losses: The smoothed training loss in it, (steps,).
        optimizer: Name of the optimizer.
    """

    lrs: np.ndarray
    losses: np.ndarray
    optimizer: str

    @property
    def best(self) -> int:
        """The step at which the loss falls fastest over the logarithm of the rate.

        Lightning's own suggestion takes the slope over the rate itself, where noise at the smallest
        rates is steeper than everything else (its issue 21141).

        Raises:
            UserError: The loss was never seen to fall.
        """
        finite = np.isfinite(self.losses)
        seen = np.flatnonzero(finite)[FIRST:LAST]
        if len(seen) < LEAST:
            raise UserError(
                f"lr_find: only {finite.sum()} steps gave a loss before it blew up at a rate of "
                f"{self.lrs[-1]:.2g}: lower --min_lr, or raise --num_training or "
                "--early_stop_threshold (null: never stops)",
                status=1,
            )
        slopes = np.gradient(self.losses[seen], np.log(self.lrs[seen]))
        if slopes.min() >= 0:
            raise UserError(
                f"lr_find: the loss does not fall at any rate from {self.lrs[seen[0]]:.2g} to "
                f"{self.lrs[seen[-1]]:.2g}: set --min_lr and --max_lr, or look at the module",
                status=1,
            )
        return int(seen[slopes.argmin()])


def search(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    num_training: int = 100,
    mode: Literal["exponential", "linear"] = "exponential",
    early_stop_threshold: float | None = 4.0,
) -> Search:
    """Trains with rising rates, and leaves weights, optimizer and schedule as they were.

    Args:
        trainer: Without callbacks and without an end of its own.
        model: Takes an `optimizer`, a callable, and hands it to `configure_optimizers`.
        datamodule: Its data.
        min_lr: The optimizer's rate in the first step.
        max_lr: In the last.
        num_training: How many steps.
        mode: Whether each step multiplies the rate or adds to it.
        early_stop_threshold: Ends the search when the loss is so many times its lowest.

    Raises:
        UserError: A value makes no sense, or the module takes no optimizer.
    """
    if not 0 < min_lr < max_lr < math.inf:
        raise UserError(f"--min_lr={min_lr:g} must lie above 0 and below --max_lr={max_lr:g}")
    if num_training < (least := FIRST + LEAST - LAST):
        raise UserError(f"--num_training={num_training}: must be at least {least}")
    if trainer.num_nodes > 1:
        raise UserError("lr_find runs on one machine: --trainer.num_nodes=1")
    if not hasattr(model, "optimizer"):
        raise UserError(f"lr_find: {type(model).__name__} takes no `optimizer`, whose lr to search")
    # The folder is that of the checkpoint that the weights come back from.
    with TemporaryDirectory() as folder, rates_in_proportion(model) as built:
        trainer._default_root_dir = folder  # type: ignore[attr-defined]
        found: Any = Tuner(trainer).lr_find(
            model,
            datamodule=datamodule,
            min_lr=min_lr,
            max_lr=max_lr,
            num_training=num_training,
            mode=mode,
            early_stop_threshold=early_stop_threshold,
            update_attr=False,
        )
    lrs, losses = (np.array(found.results[name]) for name in ("lr", "loss"))
    # Lightning takes n values for n + 1 when it corrects the mean's start, and so halves the first.
    n = np.arange(len(losses)) + 1
    losses *= (1 - SMOOTHING ** (n + 1)) / (1 - SMOOTHING**n)
    return Search(lrs, losses, type(built[0]).__name__)


@contextmanager
def rates_in_proportion(model: LightningModule) -> Iterator[list[Optimizer]]:
    """Meanwhile, the rates of a module's groups keep their ratios; the optimizers it has built."""
    given: Any = model.optimizer
    configure = model.configure_optimizers
    built: list[Optimizer] = []

    def configured() -> Any:
        result: Any = configure()
        built.append(result["optimizer"] if isinstance(result, dict) else result)
        keep_ratios(built[-1])
        return result

    # With a base rate of 1, the rate of every group is its ratio to it.
    unit: Any = partial(given or AdamW, lr=1.0)
    model.optimizer = unit
    model.configure_optimizers = configured  # type: ignore[method-assign]
    try:
        yield built
    finally:
        model.optimizer = given
        model.configure_optimizers = configure  # type: ignore[method-assign]


def keep_ratios(optimizer: Optimizer) -> None:
    """Has every step multiply the rates it is given, the same for all groups, by those of now."""
    ratios = [group["lr"] for group in optimizer.param_groups]

    def scale(optimizer: Optimizer, *_: Any) -> None:
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] *= ratio

    optimizer.register_step_pre_hook(scale)


def picture(found: Search) -> Figure:
    """The loss over the rate, the suggestion marked."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    lr, loss = found.lrs[found.best], found.losses[found.best]
    axes.plot(found.lrs, found.losses)
    axes.plot(lr, loss, "o", color="tab:red", label=f"falls fastest: lr = {lr:.2g}")
    axes.axvline(lr, color="tab:red", linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed")
    seen = found.losses[np.isfinite(found.losses)]
    drop = seen[0] - seen.min()
    axes.set_ylim(seen.min() - 0.1 * drop, min(seen.max(), seen[0] + drop) + 0.1 * drop)
    axes.set_title(f"{found.optimizer}: the loss while the learning rate rises")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def report(found: Search, output: Path) -> None:
    """Writes the picture, and prints the suggestion as an option of the command line."""
    figure, lr = picture(found), found.lrs[found.best]
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    print(f"{output}: rates from {found.lrs[0]:.2g} to {found.lrs[-1]:.2g}")
    print(f"--model.optimizer.lr={lr:.2g}")
