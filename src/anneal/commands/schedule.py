"""The learning rate of a run before it starts: its own schedule, stepped without its data."""

import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from numpy.typing import NDArray

from anneal.data.sampler import EpochSampler
from anneal.errors import UserError, first_line
from anneal.lightning_internals import attach_data, batches_of_a_process
from anneal.optim.callback import ScheduleCallback
from anneal.optim.run_schedule import RunSchedule

HOW_LONG = (
    "say how long an epoch is: --samples=N of the training data (ImageNet has 1281167), or "
    "--steps_per_epoch=N"
)


@dataclass
class Preview:
    """The course of a schedule."""

    lrs: NDArray[np.float64]  # of each optimizer step and parameter group, (steps, groups)
    momentum: NDArray[np.float64]  # of the first group (beta1 in Adam), (steps,)
    groups: list[str]  # their names; a single one has none
    trained: list[dict[str, Any]]  # what is trained how: a row for each group
    steps_per_epoch: int
    warmup: int  # steps
    length: str  # a sentence with the lengths of epoch and run, and their source
    notes: list[str]


def preview(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    steps_per_epoch: int | None = None,
    samples: int | None = None,
) -> Preview:
    """Step the schedule of a run from its first step to its last.

    Everything is the run's own but for the training batches, which are only counted: the data is
    neither prepared nor read. The other options are those of the command `schedule`.
    """
    trainer.strategy.connect(model)
    attach_data(trainer, model, datamodule)
    batches, origin = count_batches(trainer, datamodule, steps_per_epoch, samples)
    # Batches with nothing in them are counted instead of read.
    blank: Iterable[int] = itertools.repeat(0) if batches is None else range(batches)
    datamodule.train_dataloader = lambda: blank  # type: ignore[method-assign]
    if steps_per_epoch is not None:
        trainer.limit_train_batches = 1.0
    if getattr(datamodule, "class_names", ()) is None:
        # The number of classes makes no difference to the learning rate, but a network needs one.
        names = list(map(str, range(getattr(model, "num_classes", None) or 2)))
        datamodule.class_names = names  # type: ignore[attr-defined]
    model.setup("fit")
    model.configure_model()
    trainer.fit_loop.setup_data()
    model.configure_optimizers()
    if (callback := ScheduleCallback.of(trainer)) is None:
        raise UserError(
            f"{type(model).__name__} does not hand its optimizer and schedule to "
            "anneal.configure_optimizers: there is nothing to preview"
        )
    schedule = callback.schedule
    callback.on_train_start(trainer, model)
    if schedule.total_steps is None:
        raise UserError("the run has no end: set trainer.max_epochs or trainer.max_steps")
    lrs, momentum = step(schedule)
    notes = []
    if schedule.is_plateau:
        monitor = schedule.schedule.monitor
        notes.append(f"{monitor}, which only a training knows, may cut it: drawn without a cut")
    if kept := sorted(getattr(schedule.inner, "kept_steps", ())):
        notes.append(f"checkpoints are kept of the steps {', '.join(f'{n:,}' for n in kept)}")
    return Preview(
        lrs,
        momentum,
        [group.get("name", "") for group in schedule.optimizer.param_groups],
        schedule.groups(),
        schedule.steps_per_epoch,
        schedule.warmup,
        f"{schedule.steps_per_epoch:,} steps an epoch ({origin}), {schedule.total_steps:,} steps",
        notes,
    )


def count_batches(
    trainer: Trainer,
    datamodule: LightningDataModule,
    steps_per_epoch: int | None = None,
    samples: int | None = None,
) -> tuple[int | None, str]:
    """Return one process's batches in an epoch (None: endless) and the source of the number."""
    for name, number in (("steps_per_epoch", steps_per_epoch), ("samples", samples)):
        if number is not None and number < 1:
            raise UserError(f"--{name}={number}: must be at least 1")
    if steps_per_epoch is not None:
        if samples is not None:
            raise UserError("give --steps_per_epoch or --samples, not both")
        return steps_per_epoch * trainer.accumulate_grad_batches, "as typed"
    batch_size = getattr(datamodule, "batch_size", None)
    name = type(datamodule).__name__
    origin = "--samples"
    if samples is None:
        samples = getattr(datamodule, "train_samples", None)
        origin = name
    if samples is not None:
        if batch_size is None:
            raise UserError(f"{name} has no batch_size: give --steps_per_epoch instead")
        batches = len(EpochSampler(samples, batch_size, world_size=trainer.world_size))
        return batches, f"from the {samples:,} training samples of {origin}"
    try:
        datamodule.setup("fit")
        loaders = CombinedLoader(datamodule.train_dataloader(), "max_size_cycle").flattened
    except Exception as e:  # whatever it needs that is not here
        hint = f"to preview the schedule without the data, {HOW_LONG}"
        raise UserError(f"{first_line(e)}; {hint}") from e
    lengths = [batches_of_a_process(trainer, loader) for loader in loaders]
    longest = None if None in lengths else max(n for n in lengths if n is not None)
    return longest, f"from the batches of {name}"


def step(schedule: RunSchedule) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Step a schedule to its end; return learning rates (steps, groups) and momentum (steps,)."""
    groups, total = schedule.optimizer.param_groups, schedule.total_steps
    assert total is not None

    def in_force() -> Iterator[list[float]]:
        for _ in range(total):
            momentum = groups[0].get("betas", [groups[0].get("momentum", 0.0)])[0]
            yield [*(group["lr"] for group in groups), float(momentum)]
            schedule.step()

    with warnings.catch_warnings():
        # torch warns of a scheduler's steps without an optimizer's.
        warnings.filterwarnings("ignore", ".*lr_scheduler.step.*", UserWarning)
        rows: NDArray[Any] = np.fromiter(in_force(), np.dtype((float, len(groups) + 1)), total)
    return rows[:, :-1], rows[:, -1]
