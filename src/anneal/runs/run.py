"""A run read back from its folder: its configuration, and its metrics as curves."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anneal.errors import UserError
from anneal.runs.config import flatten, parse
from anneal.runs.drops import Array, drops
from anneal.runs.folder import STAMP, configs_of
from anneal.runs.metrics import family, is_learning_rate, whole_lines

AXES = {"step": "optimizer steps", "epoch": "epochs", "samples": "samples", "time": "seconds"}
# What makes no other training of one. No name of a run tells more than its seed.
BESIDE = re.compile(
    r"(seed_everything|wandb|progress_bar|lr_monitor|trainer\.(default_root_dir|logger|enable_\w+))\b"
)
GENERATED = re.compile(rf"-\d{{3}}$|{STAMP.pattern}")  # names of a sweep's runs, and of others
SEED_IN_NAME = re.compile(r"[-_]s(eed)?[-_=]?\d+$")
LONG_NUMBER = re.compile(r"-?\d+\.\d+(e-?\d+)?")
FEW_KEYS = 3  # that differ, and a label can say them
OURS_AND_TORCHS = re.compile(r"^(anneal|torch|lightning)\..*\.")  # classes with a short name


@dataclass
class Curve:
    """One metric of one run."""

    y: Array  # finite values, (n,)
    x: dict[str, Array]  # their places on the axes of AXES that the run has logged, (n,) each

    def extremes(self, points: int) -> Array:
        """Return indices of at most `points` values: both ends, each stretch's extremes."""
        n = len(self.y)
        if n <= points:
            return np.arange(n)
        width = -(-n // max(1, points // 2 - 1))
        stretches = np.pad(self.y, (0, -n % width), mode="edge").reshape(-1, width)
        starts = np.arange(len(stretches)) * width
        extremes = [starts + stretches.argmin(1), starts + stretches.argmax(1)]
        return np.unique(np.minimum(np.concatenate([[0, n - 1], *extremes]), n - 1))

    def take(self, indices: Array) -> "Curve":
        """Return the values at some indices."""
        return Curve(self.y[indices], {axis: x[indices] for axis, x in self.x.items()})

    def smooth(self, weight: float) -> "Curve":
        """Return the exponential moving average; the past has a `weight` of 0 to less than 1."""
        return replace(self, y=pd.Series(self.y).ewm(alpha=1 - weight).mean().to_numpy())


@dataclass
class Drop:
    """A place where the learning rate falls within a step, as at the end of a stair."""

    before: float
    after: float
    at: dict[str, float]  # on each axis


@dataclass
class Run:
    """A run, finished or not, as its folder holds it."""

    name: str  # its folder's, or another
    config: dict[str, str]  # by typed key, as text; an arrow is a change by a resume
    metrics: pd.DataFrame  # a column of numbers for each metric
    band: "tuple[Run, Run] | None" = None  # of a mean of runs: their lowest and highest values

    @classmethod
    def read(cls, folder: Path, name: str = "") -> "Run":
        """Read a run's folder; raise UserError if it holds no metrics yet, or can't be read."""
        return cls(name or folder.resolve().name, _read_config(folder), _read_metrics(folder))

    def curve(self, metric: str) -> Curve:
        """Return the finite values of a metric.

        The learning rate of step 7 stands at 7 steps taken, and what the step gave (a loss, the
        samples seen) at 8, so that epochs begin and end at whole numbers.
        """
        rows = self.metrics[np.isfinite(self.metrics[metric])]
        taken = rows["step"] + (0 if is_learning_rate(metric) else 1)
        x: dict[str, Array] = {"step": taken.to_numpy()}
        for axis, (steps, places) in self._progress.items():
            x[axis] = np.interp(taken, steps, places)
        if "time" in rows and rows["time"].notna().all():
            x["time"] = rows["time"].to_numpy()
        return Curve(rows[metric].to_numpy(), x)

    @cached_property
    def families(self) -> dict[str, list[str]]:
        """The metrics that have a value, by the name of their family; of equal columns the first.

        Parameter groups may have equal learning rates.
        """
        found: dict[str, list[str]] = {}
        for column in self.metrics.columns.difference([*AXES], sort=False):
            values = self.metrics[column]
            own = found.setdefault(family(column)[1], [])
            equal = (self.metrics[c].equals(values) for c in own if family(c) == family(column))
            if np.isfinite(values).any() and not any(equal):
                own.append(column)
        return {name: columns for name, columns in found.items() if columns}

    @cached_property
    def drops(self) -> list[Drop]:
        """Drops of the learning rate, the first one that is logged if there are several."""
        if "lr" not in self.families:
            return []
        curve = self.curve(self.families["lr"][0])
        lr = curve.y
        return [
            Drop(float(lr[i - 1]), float(lr[i]), {axis: float(x[i]) for axis, x in curve.x.items()})
            for i in drops(lr, curve.x.get("epoch", curve.x["step"]))
        ]

    def reached(self) -> dict[str, float]:
        """Return how far it has come on each axis, tests left out."""
        other = [c for c in self.metrics if c not in ("step", "epoch", "time")]
        trained = [c for c in other if not c.startswith("test/")]
        rows = self.metrics.dropna(how="all", subset=trained)
        taken = float(rows["step"].max() + 1)
        end = {"step": taken}
        for axis, (steps, places) in self._progress.items():
            end[axis] = float(np.interp(taken, steps, places))
        if "time" in rows and rows["time"].notna().any():
            end["time"] = float(rows["time"].max())
        return end

    @cached_property
    def _progress(self) -> dict[str, tuple[Array, Array]]:
        """Optimizer steps taken, and the epochs and the samples that they make."""
        known = {}
        if "epoch" in self.metrics:
            ends = self.metrics.groupby("epoch")["step"].max().cummax() + 1
            steps = np.array([0, *ends])
            if len(ends) > 1:  # the last epoch may not be over: take it to be as long as the others
                steps[-1] = max(steps[-1], 2 * steps[-2] - steps[-3])
            known["epoch"] = steps, np.array([0, *ends.index + 1])
        if "samples" in self.metrics:
            rows = self.metrics.dropna(subset="samples")
            known["samples"] = np.array([0, *rows["step"] + 1]), np.array([0, *rows["samples"]])
        return known


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return runs that differ by their seed only, together, by what the groups are called.

    That is their name without the seed, or else what differs between the groups.
    """
    groups: dict[str, list[Run]] = {}
    configs = [{k: v for k, v in run.config.items() if not BESIDE.match(k)} for run in runs]
    for run, config in zip(runs, configs, strict=True):
        groups.setdefault(json.dumps(config, sort_keys=True), []).append(run)
    differ = labels_of([json.loads(config) for config in groups])
    labels: dict[str, list[Run]] = {}
    for label, members in zip(differ, groups.values(), strict=True):
        names = {SEED_IN_NAME.sub("", Path(run.name).name) for run in members}
        named = len(names) == 1 and not GENERATED.search(min(names))
        label = min(names) if named or not label else label
        labels[label if label not in labels else members[0].name] = members
    return labels


def labelled(runs: Sequence[Run]) -> Sequence[Run]:
    """Return runs that nobody has named under their recipe's name, or what tells them apart."""
    generated = all(GENERATED.search(run.name) for run in runs)
    names = [(GENERATED if generated else STAMP).sub("", run.name) for run in runs]
    if generated and len({*names}) < len(runs):
        seed = "seed_everything"
        configs = [run.config.items() for run in runs]
        own = [{k: v for k, v in c if k == seed or not BESIDE.match(k)} for c in configs]
        names = labels_of(own)
    if "" in names or len({*names}) < len(runs):
        return runs
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def labels_of(configs: Sequence[dict[str, str]]) -> list[str]:
    """Return what differs between configurations, as text for each; "" if that is too much.

    Of many keys it is one or two that tell all of them apart.
    """
    keys = [k for k in {k: 0 for c in configs for k in c} if len({c.get(k) for c in configs}) > 1]
    if len(keys) > FEW_KEYS:
        few = (some for n in (1, 2) for some in combinations(keys, n))
        n = len(configs)
        keys = [*next((s for s in few if len({tuple(map(c.get, s)) for c in configs}) == n), [])]
    short = [key.rpartition(".")[2] for key in keys]
    if len({*short}) < len(keys):
        short = [".".join(key.split(".")[-2:]) for key in keys]
    found = [
        ", ".join(f"{name}={_brief(c[k])}" for k, name in zip(keys, short, strict=True) if k in c)
        for c in configs
    ]
    return found if len({*found}) == len(configs) else [""] * len(configs)


def _brief(value: str) -> str:
    """Return a drawn number in four digits."""
    return f"{float(value):.4g}" if len(value) > 8 and LONG_NUMBER.fullmatch(value) else value


def mean_of(name: str, runs: Sequence[Run]) -> Run:
    """Return the mean of runs at each step, with the lowest and the highest values as its band."""
    if len(runs) == 1:
        return replace(runs[0], name=name)
    metrics = pd.concat(_with_held_lr([run.metrics for run in runs]))
    metrics = metrics.replace([np.inf, -np.inf], np.nan)
    steps, config = metrics.groupby("step"), runs[0].config
    mean, low, high = (steps.agg(how).reset_index() for how in ("mean", "min", "max"))
    run = Run(f"{name} ({len(runs)} runs)", config, mean)
    return replace(run, band=(replace(run, metrics=low), replace(run, metrics=high)))


def _with_held_lr(found: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return metrics with a learning rate where any run has one: only its changes are logged."""
    lrs = [f.set_index("step").filter(filter(is_learning_rate, f)).dropna(how="all") for f in found]
    steps = sorted({step for lr in lrs for step in lr.index})
    held = [lr.groupby("step").last().reindex(steps).ffill() for lr in lrs]
    return [
        pd.concat([f.drop(columns=lr.columns), lr[lr.index <= f["step"].max()].reset_index()])
        for f, lr in zip(found, held, strict=True)
    ]


def _read_metrics(folder: Path) -> pd.DataFrame:
    file = folder / "metrics.csv"
    lines = whole_lines(file) if file.is_file() else []
    if sum(not line.isspace() for line in lines) < 2:  # no more than the columns' names
        raise UserError(f"{folder}: no metrics yet")
    try:
        frame = pd.read_csv(StringIO("".join(lines)), low_memory=False)
    except ValueError as e:
        reason = str(e).strip().splitlines()[-1].removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{file}: {reason}") from e
    if "step" not in frame:
        raise UserError(f"{file}: no column called step in its first line")
    for name in frame.select_dtypes(exclude="number"):
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if (wrong := frame[name].notna() & numbers.isna()).any():
            row = wrong.idxmax()
            raise UserError(f"{file}: line {row + 2}: {name}={frame[name][row]} is no number")
        frame[name] = numbers
    if frame["step"].isna().any():
        raise UserError(f"{file}: line {frame['step'].isna().idxmax() + 2}: step is missing")
    return frame.astype(float).sort_values("step", kind="stable", ignore_index=True)


def _read_config(folder: Path) -> dict[str, str]:
    """Return `config.yaml`, and what `config-2.yaml` and so on of its resumes have changed."""
    files = configs_of(folder)
    values: dict[str, str] = {}
    for file in files:
        config = parse(file.read_text(errors="replace"), file)
        now = {key.removesuffix(".class_path"): _shown(key, v) for key, v in flatten(config)}
        for key in {**values, **now}:
            before, after = values.get(key), now.get(key, "–")  # noqa: RUF001
            if before is None or file is files[0]:
                values[key] = after
            elif before.rsplit(" → ")[-1] != after:
                values[key] = f"{before} → {after}"
    return values


def _shown(key: str, value: Any) -> str:
    """Return a value as it is typed: a class by its short name where it has one."""
    if key.endswith(".class_path"):
        return OURS_AND_TORCHS.sub("", str(value))
    return value if isinstance(value, str) else json.dumps(value, default=str)
