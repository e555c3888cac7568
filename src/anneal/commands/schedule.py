"""The learning rate of a run before it starts: its own schedule, stepped without its data.

It is shown as a table of changes and a figure.
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anneal.data.sampler import EpochSampler
from anneal.errors import UserError, first_line
from anneal.lightning_internals import attach_data, batches_of_a_process, callback_of
from anneal.optim.callback import ScheduleCallback
from anneal.optim.run_schedule import RunSchedule
from anneal.runs.drops import drops
from anneal.system import text_table

ROWS = 16  # of a table; those in its middle are left out
FEW = 8  # changes, whose learning rates are written into the figure
HOW_LONG = "say how long an epoch is: --samples=N of the training data (ImageNet has 1281167)"


@dataclass
class Preview:
    """The course of a schedule."""

    lrs: NDArray[np.float64]  # of each optimizer step and parameter group, (steps, groups)
    groups: list[str]  # their names; a single one has none
    trained: list[dict[str, Any]]  # what is trained how: a row for each group
    steps_per_epoch: int
    warmup: int  # steps
    length: str  # a sentence with the lengths of epoch and run, and their source
    notes: list[str]


def preview(
    trainer: Trainer, model: LightningModule, data: LightningDataModule, samples: int | None = None
) -> Preview:
    """Step the schedule of a run from its first step to its last.

    Everything is the run's own but for the training batches, which are only counted: the data is
    neither prepared nor read.
    """
    trainer.strategy.connect(model)
    attach_data(trainer, model, data)
    batches, origin = count_batches(trainer, data, samples)
    # Batches with nothing in them are counted instead of read.
    blank: Iterable[int] = itertools.repeat(0) if batches is None else range(batches)
    data.train_dataloader = lambda: blank  # type: ignore[method-assign]
    if getattr(data, "class_names", ()) is None:
        # The number of classes makes no difference to the learning rate, but a network needs one.
        names = list(map(str, range(getattr(model, "num_classes", None) or 2)))
        data.class_names = names  # type: ignore[attr-defined]
    model.setup("fit")
    model.configure_model()
    trainer.fit_loop.setup_data()
    model.configure_optimizers()
    if (callback := callback_of(trainer, ScheduleCallback)) is None:
        raise UserError(
            f"{type(model).__name__} does not hand its optimizer and schedule to "
            "anneal.configure_optimizers: there is nothing to preview"
        )
    schedule = callback.schedule
    callback.on_train_start(trainer, model)
    if schedule.total_steps is None:
        raise UserError("the run has no end: set trainer.max_epochs or trainer.max_steps")
    notes = []
    if schedule.is_plateau:
        unknown = f"{schedule.schedule.monitor}, which only a training knows"
        notes.append(f"ReduceLROnPlateau follows {unknown}: drawn without a cut")
    if kept := sorted(getattr(schedule.inner, "kept_steps", ())):
        notes.append(f"checkpoints are kept of the steps {', '.join(f'{n:,}' for n in kept)}")
    return Preview(
        step(schedule),
        [group.get("name", "") for group in schedule.optimizer.param_groups],
        schedule.groups(),
        schedule.steps_per_epoch,
        schedule.warmup,
        f"{schedule.steps_per_epoch:,} steps an epoch ({origin}), {schedule.total_steps:,} steps",
        notes,
    )


def count_batches(
    trainer: Trainer, data: LightningDataModule, samples: int | None = None
) -> tuple[int | None, str]:
    """Return one process's batches in an epoch (None: endless) and the source of the number."""
    if samples is not None and samples < 1:
        raise UserError(f"--samples={samples}: must be at least 1")
    name = type(data).__name__
    origin = name if samples is None else "--samples"
    samples = samples or getattr(data, "train_samples", None)
    if samples is not None:
        if (batch_size := getattr(data, "batch_size", None)) is None:
            raise UserError(f"{name} has no batch_size, so its samples say nothing of the steps")
        batches = len(EpochSampler(samples, batch_size, world_size=trainer.world_size))
        return batches, f"from the {samples:,} training samples of {origin}"
    try:
        data.setup("fit")
        loaders = CombinedLoader(data.train_dataloader(), "max_size_cycle").flattened
    except Exception as e:  # whatever it needs that is not here
        hint = f"to preview the schedule without the data, {HOW_LONG}"
        raise UserError(f"{first_line(e)}; {hint}") from e
    lengths = [batches_of_a_process(trainer, loader) for loader in loaders]
    longest = None if None in lengths else max(n for n in lengths if n is not None)
    return longest, f"from the batches of {name}"


def step(schedule: RunSchedule) -> NDArray[np.float64]:
    """Step a schedule to its end; return the learning rates, (steps, groups)."""
    groups, total = schedule.optimizer.param_groups, schedule.total_steps
    assert total is not None

    def in_force() -> Iterator[list[float]]:
        for _ in range(total):
            yield [group["lr"] for group in groups]
            schedule.step()

    with warnings.catch_warnings():
        # torch warns of a scheduler's steps without an optimizer's.
        warnings.filterwarnings("ignore", ".*lr_scheduler.step.*", UserWarning)
        return np.fromiter(in_force(), np.dtype((float, len(groups))), total)


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


def table(preview: Preview) -> str:
    """Return a line for each change: step, epoch and learning rates."""
    columns = rates(preview)
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
    """Draw learning rates over epochs, and over steps if epochs have other lengths."""
    lengths = {p.steps_per_epoch for p in previews.values()}
    panels = ["epochs", *["optimizer steps"] * (len(lengths) > 1)]
    figure = Figure(figsize=(9, 1 + 3 * len(panels)), layout="constrained")
    figure.suptitle(f"Schedule of {', '.join(previews)}" if len(previews) < 4 else "Schedules")
    curves = [
        (f"{name} {what[3:]}".strip(), preview, curve)
        for name, preview in previews.items()
        for what, curve in rates(preview).items()
    ]
    is_log, limits = scale(previews)
    rows = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, over in zip(rows, panels, strict=True):
        axes.set(ylabel="learning rate", xlabel=over, yscale="log" if is_log else "linear")
        axes.grid(alpha=0.3)
        axes.margins(x=0.08)
        axes.set_ylim(*limits)
        for label, preview, curve in curves:
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
