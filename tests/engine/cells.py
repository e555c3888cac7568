"""How a run may end, where, how it goes on and how it counts: what must then come of it."""

import io
import itertools
import json
import os
from collections.abc import Iterable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from launch import Training

from anneal.testing import QUIET, draw_nothing, logged, main

COURSE = """
trainer:
  max_epochs: 3
  log_every_n_steps: 1
  accelerator: cpu
  callbacks: {class_path: course.Course}
model:
  class_path: MLP
  init_args:
    width: 8
    depth: 1
    optimizer: {class_path: SGD, init_args: {lr: 0.1, momentum: 0.9}}
    schedule:
      scheduler: {class_path: StepLR, init_args: {step_size: 1, gamma: 0.5}}
      warmup_steps: 1
data: {class_path: course.Numbers}
"""
BATCHES = 8  # of 12 in an epoch
ENDS = ("kill", "term", "error", "steps", "time", "stop")
PLACES = ("edge", "inside", "accumulation", "validation", "before")
GOES_ON = ("same", "batch", "processes", "longer")
COUNTS = {
    "default": (),
    "accumulate": ("--trainer.accumulate_grad_batches=4",),
    "interval": ("--trainer.val_check_interval=0.25",),
    "null": ("--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=5"),
}


class Cell(NamedTuple):
    """A way in which a run is disturbed.

    Attributes:
        end: `kill` (SIGKILL), `term` (SIGTERM), `error` in a step, `steps` (max_steps), `time`
            (max_time), `stop` (a callback such as early stopping).
        place: The end of an epoch, within one, within an accumulation, within a validation, or
            before the first checkpoint.
        goes_on: With the same settings, another batch size, two processes, or to a later end.
        counts: How it counts steps and validations.
    """

    end: str
    place: str
    goes_on: str
    counts: str


def impossible(cell: Cell) -> str:
    """Why there is no such run, or an empty string."""
    if cell.place == "accumulation" and cell.counts != "accumulate":
        return "nothing is accumulated"
    if cell.end == "steps" and cell.place in ("accumulation", "validation"):
        return "a step is the end of an accumulation and comes before a validation"
    return ""


def every() -> list[Cell]:
    """The whole table."""
    return [Cell(*c) for c in itertools.product(ENDS, PLACES, GOES_ON, COUNTS)]


def pairwise() -> list[Cell]:
    """Cells in which each two values of two different factors meet, and few more."""
    cells = [cell for cell in every() if not impossible(cell)]
    chosen: list[Cell] = []
    missing = set().union(*map(_pairs, cells))
    while missing:
        best = max(cells, key=lambda cell: len(_pairs(cell) & missing))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def _pairs(cell: Cell) -> set[tuple[tuple[int, str], ...]]:
    return set(itertools.combinations(enumerate(cell), 2))


def where(cell: Cell) -> tuple[str, tuple[str, ...]]:
    """What ends the first leg: COURSE_END, or flags."""
    window = 4 if cell.counts == "accumulate" else 1
    # The batch before which a run is ended, counted within the epoch.
    epoch, batch = {
        "edge": (1, 0),
        "inside": (1, 4),
        "accumulation": (1, 6),
        "validation": (1, 1),
        "before": (0, 1),
    }[cell.place]
    if cell.end == "steps":
        steps = max(2, (epoch * BATCHES + batch) // window)
        return "", (f"--trainer.max_steps={steps}",)
    limit = ("--trainer.max_time=00:00:00:01",) if cell.end == "time" else ()
    if cell.place == "validation":
        hook = "validated" if cell.end == "stop" else "validation"
        return f"{cell.end} {hook} {epoch} {batch}", limit
    if cell.end in ("stop", "time"):  # in the batch before
        epoch, batch = divmod(epoch * BATCHES + batch - 1, BATCHES)
        return f"{cell.end} {'after' if cell.end == 'stop' else 'batch'} {epoch} {batch}", limit
    return f"{cell.end} batch {epoch} {batch}", ()


def whole(folder: Path, cell: Cell) -> Path:
    """The run that nobody disturbs, with these settings."""
    longer = cell.goes_on == "longer"
    run = folder / "runs" / f"whole-{cell.counts}-{longer}"
    if not run.exists():
        epochs = ("--trainer.max_epochs=4",) if longer else ()
        status, output = leg(folder, *command(folder, cell), *epochs, f"--run_name={run.name}")
        assert status == 0, output
    return run


def leg(folder: Path, *words: str, alone: bool = False, **env: str) -> tuple[int, str]:
    """Train, and return the exit status and what was printed.

    Args:
        folder: Where.
        *words: The command line.
        alone: Whether in a process of its own, which may be killed.
        **env: Environment variables.
    """
    if alone:
        return Training(folder, *words, **{"COURSE_LEG": "1", **env}).end()
    printed = io.StringIO()
    names = ("COURSE_END", "COURSE_LEG")
    os.environ |= {name: env.get(name, default) for name, default in zip(names, " 1", strict=True)}
    try:
        with (
            chdir(folder),
            redirect_stdout(printed),
            redirect_stderr(printed),
            pytest.MonkeyPatch.context() as patch,
        ):
            draw_nothing(patch)
            main([*words, *QUIET])
    except SystemExit as e:
        return int(e.code or 0), printed.getvalue()
    except RuntimeError as e:
        return 1, printed.getvalue() + str(e)
    return 0, printed.getvalue()


def command(folder: Path, cell: Cell) -> list[str]:
    """The command line that both legs share."""
    (folder / "course.yaml").write_text(COURSE)
    return ["fit", "--config=course.yaml", *COUNTS[cell.counts]]


def disturb(folder: Path, cell: Cell) -> list[str]:
    """Train in two legs, and return what is not as it must be."""
    name = "-".join(cell)
    shared = [*command(folder, cell), f"--run_name={name}", "--resume=auto"]
    end, flags = where(cell)
    dies = cell.end == "kill"
    status, output = leg(folder, *shared, *flags, alone=dies, COURSE_END=end)
    expected = {"kill": -9, "term": 143, "error": 1}.get(cell.end, 0)
    if status != expected:
        return [f"the first leg ended with {status}:\n{output}"]
    more = {
        "same": (),
        "batch": ("--data.batch_size=8",),
        "processes": ("--trainer.devices=2", "--trainer.strategy=ddp"),
        "longer": ("--trainer.max_epochs=4",),
    }[cell.goes_on]
    free = {"steps": ("--trainer.max_steps=-1",), "time": ("--trainer.max_time=null",)}
    more += free.get(cell.end, ())
    many = cell.goes_on == "processes"
    status, output = leg(folder, *shared, *more, alone=many, COURSE_LEG="2")
    if status:
        return [f"the second leg ended with {status}:\n{output}"]
    run = folder / "runs" / name
    if cell.end == "stop":  # it is told to, and is not to train an epoch more at each restart
        trained = list(run.glob("batches-2-*"))
        return [] if "stopped early at epoch" in output and not trained else [output]
    if cell.goes_on in ("same", "longer"):
        return differences(run, whole(folder, cell))
    return misses(run)


def differences(run: Path, expected: Path) -> list[str]:
    """What differs from the undisturbed run."""
    a, b = (torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (run, expected))
    found = []
    if not all(torch.equal(t, b["state_dict"][k]) for k, t in a["state_dict"].items()):
        found.append("weights")
    for key in ("optimizer_states", "lr_schedulers", "global_step"):
        if repr(_in_order(a[key])) != repr(_in_order(b[key])):
            found.append(f"{key}: {a[key]} {b[key]}")
    rows = [[row for row in map(_filled, logged(r)) if not _tests(row)] for r in (run, expected)]
    for i, (x, y) in enumerate(itertools.zip_longest(*rows)):
        if x != y:
            found.append(f"line {i} of metrics.csv: {x} {y}")
            break
    x, y = ([{**line, "leg": 0} for line in batches(r)] for r in (run, expected))
    if x != y:
        found.append("order of samples")
    return found


def _in_order(value: Any) -> Any:
    """The same with the keys of every dictionary in order."""
    if isinstance(value, dict):
        return {key: _in_order(value[key]) for key in sorted(value, key=str)}
    return [_in_order(v) for v in value] if isinstance(value, list) else value


def _filled(row: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.items() if value}


def _tests(row: dict[str, str]) -> bool:
    return any(key.startswith("test/") for key in row)


def batches(run: Path) -> list[dict]:
    """The batches of all processes that count: each leg up to where the next began."""
    kept: list[dict] = []
    for leg in (1, 2, 3):
        files = sorted(run.glob(f"batches-{leg}-*"))
        lines = [json.loads(line) for f in files for line in f.read_text().splitlines()]
        start = min(map(_place, lines), default=(99, 0))
        kept = [line for line in kept if _place(line) < start] + lines
    return sorted(kept, key=_place)


def _place(line: dict) -> tuple[int, int]:
    return line["epoch"], line["place"]


def misses(run: Path) -> list[str]:
    """Which samples of an epoch did not come exactly once, and what else is not whole."""
    lines = batches(run)
    found = []
    for epoch in range(3):
        numbers = sorted(n for line in lines if line["epoch"] == epoch for n in line["numbers"])
        if numbers != list(range(96)):
            found.append(f"epoch {epoch} has {len(numbers)} samples")
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    if last["position"]["epoch"] != 3 or last["position"]["seen"] != 3 * 96:
        found.append(f"it ends at {last['position']}")
    rows = [_filled(row) for row in logged(run)]
    steps = [int(row["step"]) for row in rows if "lr" in row]
    if steps != sorted(set(steps)):
        found.append(f"learning rates stand at steps {steps}")
    return found


def names(cells: Iterable[Cell]) -> list[str]:
    return ["-".join(cell) for cell in cells]
