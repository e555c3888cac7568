"""A learning rate to start from: a range test, for any module that takes an optimizer.

The learning rate rises from step to step, from one at which nothing happens to one at which the
loss blows up (Smith 2017, arXiv 1506.01186, section 3.3).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from anneal.commands.schedule import save_figure
from anneal.errors import UserError
from anneal.lightning_internals import callbacks_of
from anneal.optim.kinds import EvaluationWeights

FIRST, LAST = 10, -1  # the smoothed loss begins with next to nothing to smooth over
LEAST = 5  # points that a slope can be read from
SMOOTHING = 0.98  # what the running mean of the loss keeps in a step


@dataclass
class Search:
    """The result of a search."""

    lrs: np.ndarray  # in each step, (steps,)
    losses: np.ndarray  # smoothed, (steps,)
    optimizer: str  # its name

    @property
    def best(self) -> int:
        """The step at which the loss falls fastest over the logarithm of the learning rate.

        Over the learning rate itself, noise at the smallest ones would be steeper than all else.
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


class LossRecorder(Callback):
    """Record the smoothed loss of each step, and put the weights back at the end.

    That is after so many steps, or when the loss is `threshold` times its lowest.
    """

    def __init__(self, steps: int, threshold: float | None) -> None:
        self.steps = steps
        self.threshold = math.inf if threshold is None else threshold
        self.losses: list[float] = []
        self.mean = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.epoch_loop.max_steps = self.steps
        self.weights = deepcopy(pl_module.state_dict())
        disable = None if trainer.is_global_zero else True  # None: only in a terminal
        self.bar = tqdm(total=self.steps, desc="lr_find", unit=" steps", disable=disable)

    def on_train_batch_end(self, trainer: Trainer, _: Any, outputs: Any, *args: Any) -> None:
        if trainer.global_step == len(self.losses):  # in the middle of an accumulation
            return
        self.bar.update()
        loss = float(outputs["loss"]) if outputs else math.nan
        self.mean = SMOOTHING * self.mean + (1 - SMOOTHING) * loss
        self.losses.append(self.mean / (1 - SMOOTHING ** (len(self.losses) + 1)))
        blown_up = self.losses[-1] > self.threshold * min(self.losses)
        if trainer.strategy.broadcast(blown_up):
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.close()
        pl_module.load_state_dict(self.weights)


def lr_find(
    run: Any,
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    num_training: int = 100,
    early_stop_threshold: float | None = 4.0,
    output: Path | None = None,
) -> None:
    """Raise the learning rate step by step, and suggest the one to start with.

    Weights, optimizer and schedule are left as they were.

    Args:
        min_lr: Learning rate of the first step.
        max_lr: Learning rate of the last.
        num_training: Steps between them.
        early_stop_threshold: Ends the search when the loss is so many times its lowest. None: goes
            on to the end.
        output: The figure's file. None: lr_find.png in the folder of runs.
    """
    trainer, model = run.trainer, run.model
    if not 0 < min_lr < max_lr < math.inf:
        raise UserError(f"--min_lr={min_lr:g} must lie above 0 and below --max_lr={max_lr:g}")
    if num_training < (least := FIRST + LEAST - LAST):
        raise UserError(f"--num_training={num_training}: must be at least {least}")
    if trainer.num_nodes > 1:
        raise UserError("lr_find runs on one machine: --trainer.num_nodes=1")
    if not hasattr(model, "optimizer"):
        raise UserError(f"lr_find: {type(model).__name__} takes no `optimizer`, whose lr to search")
    lrs = np.geomspace(min_lr, max_lr, num_training)
    recorder = LossRecorder(num_training, early_stop_threshold)
    with rising(model, lrs, recorder):
        trainer.fit(model, datamodule=run.data)
    losses = np.array(recorder.losses)
    found = Search(lrs[: len(losses)], losses, type(trainer.optimizers[0]).__name__)
    if trainer.is_global_zero:
        report(found, output or run.folder / "lr_find.png")


@contextmanager
def rising(model: LightningModule, lrs: np.ndarray, recorder: LossRecorder) -> Iterator[None]:
    """Have a module configure its optimizer for these learning rates while the block runs.

    For an optimizer with a learning rate of 1, that of each group is its ratio to the others.
    """
    given: Any = model.optimizer
    configure = model.configure_optimizers

    def configured() -> Any:
        result: Any = configure()
        optimizer = result["optimizer"] if isinstance(result, dict) else result
        trainer: Any = model.trainer
        # The schedule's callback goes.
        trainer.callbacks[:] = [*callbacks_of(trainer, EvaluationWeights), recorder]
        trainer.num_sanity_val_steps = 0
        schedule = LambdaLR(optimizer, lambda step: float(lrs[min(step, len(lrs) - 1)]))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    unit: Any = partial(given or AdamW, lr=1.0)
    model.optimizer = unit
    model.configure_optimizers = configured  # type: ignore[method-assign]
    try:
        yield
    finally:
        model.optimizer = given
        model.configure_optimizers = configure  # type: ignore[method-assign]


def picture(found: Search) -> Figure:
    """Draw the loss over the learning rate, the suggestion marked."""
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
    """Write the figure, and print the suggestion as an option of the command line."""
    figure, lr = picture(found), found.lrs[found.best]
    print(f"{output}: rates from {found.lrs[0]:.2g} to {found.lrs[-1]:.2g}")
    print(f"--model.optimizer.lr={lr:.2g}")
    save_figure(figure, output)
