"""What a run's folder holds, read back: its configuration, and its metrics as curves."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from anneal.errors import UserError

AXES = {"step": "optimizer steps", "epoch": "epochs", "samples": "samples", "time": "seconds"}
OURS_AND_TORCHS = re.compile(r"^(anneal|torch|lightning)\..*\.")  # classes with a short name
LADDER = 0.8  # a rate that falls to this fraction or less within one step has dropped
Array = NDArray[Any]


@dataclass
class Curve:
    """One metric of one run.

    Args:
        y: Finite values, (n,).
        x: The place of each on the axes of `AXES` that the run has logged, (n,) each.
    """

    y: Array
    x: dict[str, Array]

    def extremes(self, points: int) -> Array:
        """Indices of at most `points` values: both ends, and each stretch's lowest and highest."""
        n = len(self.y)
        if n <= points:
            return np.arange(n)
        width = -(-n // max(1, points // 2 - 1))
        stretches = np.pad(self.y, (0, -n % width), mode="edge").reshape(-1, width)
        starts = np.arange(len(stretches)) * width
        extremes = [starts + stretches.argmin(1), starts + stretches.argmax(1)]
        return np.unique(np.minimum(np.concatenate([[0, n - 1], *extremes]), n - 1))

    def take(self, indices: Array) -> "Curve":
        """The values at some indices."""
        return Curve(self.y[indices], {axis: x[indices] for axis, x in self.x.items()})

    def smooth(self, weight: float) -> "Curve":
        """Exponential moving average over the points, without the pull of the start to zero.

        Args:
            weight: Of the past, 0 <= weight < 1.
        """
        return replace(self, y=pd.Series(self.y).ewm(alpha=1 - weight).mean().to_numpy())


@dataclass
class Drop:
    """Where a learning rate falls within a step, as a staircase or a plateau's cut does.

    Args:
        before: The rate.
        after: The rate from there on.
        at: The place on each axis.
    """

    before: float
    after: float
    at: dict[str, float]


@dataclass
class Run:
    """A run, finished or not.

    Args:
        name: Its folder's name.
        config: Every key of `config.yaml` as it is typed on the command line; values as text,
            with an arrow where a resume has changed them.
        metrics: `metrics.csv`, a column of numbers for each metric.
    """

    name: str
    config: dict[str, str]
    metrics: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Reads a run's folder.

        Raises:
            UserError: It holds no metrics yet, or something that can't be read.
        """
        return cls(folder.resolve().name, _read_config(folder), _read_metrics(folder))

    def curve(self, metric: str) -> Curve:
        """The finite values of a metric.

        The rate of step 7 stands at 7 steps taken, and what the step gave (a loss, the samples
        seen) at 8, so that epochs begin and end at whole numbers.
        """
        rows = self.metrics[np.isfinite(self.metrics[metric])]
        taken = rows["step"] + (0 if is_rate(metric) else 1)
        x: dict[str, Array] = {"step": taken.to_numpy()}
        for axis, (steps, places) in self._progress.items():
            x[axis] = np.interp(taken, steps, places)
        if "time" in rows and rows["time"].notna().all():
            x["time"] = rows["time"].to_numpy()
        return Curve(rows[metric].to_numpy(), x)

    def stages(self, what: str) -> dict[str, str]:
        """The metrics called `what`: column by stage, such as {"train": "train/loss"}."""
        columns = [c for c in self.metrics if c == what or c.endswith(f"/{what}")]
        return {c.removesuffix(what).strip("/"): c for c in columns}

    def rates(self) -> list[str]:
        """The columns that hold a learning rate, groups with equal rates once."""
        rates: list[str] = []
        for column in filter(is_rate, self.metrics):
            if not any(self.metrics[column].equals(self.metrics[other]) for other in rates):
                rates.append(column)
        return rates

    @cached_property
    def drops(self) -> list[Drop]:
        """Where the rate falls to four fifths or less within a step, and that is no slope.

        A slope has, within an epoch, another change of a similar size: the end of a cosine, also
        of one that moves once an epoch. A ladder's next step is by the same factor.
        """
        if not (rates := self.rates()):
            return []
        curve = self.curve(rates[0])
        rate, epochs = curve.y, curve.x.get("epoch", curve.x["step"])
        changes = np.flatnonzero(np.diff(rate))
        found = []
        for place in np.flatnonzero(rate[changes + 1] <= LADDER * rate[changes]):
            i = changes[place]
            neighbours = [*changes[max(0, place - 1) : place], *changes[place + 1 : place + 2]]
            near = [j for j in neighbours if abs(epochs[j] - epochs[i]) < 1.01]
            if not any(_is_like(rate[j], rate[j + 1], rate[i], rate[i + 1]) for j in near):
                at = {axis: float(x[i + 1]) for axis, x in curve.x.items()}
                found.append(Drop(float(rate[i]), float(rate[i + 1]), at))
        return found

    def reached(self) -> dict[str, float]:
        """How far it has come on each axis, without its tests."""
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


def _is_like(start: float, end: float, before: float, after: float) -> bool:
    """Whether a change of the rate is a third of a drop or more, and not by the same factor."""
    if np.isclose(end * before, after * start, rtol=1e-3, atol=0):
        return False
    change, drop = abs(end - start), before - after
    return 3 * change > drop or 3 * change / max(start, end) > drop / before


def is_rate(column: str) -> bool:
    """Whether a metric is a learning rate: `lr`, or `lr/decay` of one parameter group."""
    return column.partition("/")[0] == "lr" and "-" not in column  # lr-momentum, ...


def _read_metrics(folder: Path) -> pd.DataFrame:
    file = folder / "metrics.csv"
    if not file.is_file():
        raise UserError(f"{folder}: no metrics yet")
    data = file.read_bytes()
    data = data[: data.rfind(b"\n") + 1]  # the last line may be in the middle of being written
    try:
        frame = pd.read_csv(BytesIO(data), low_memory=False)
    except pd.errors.EmptyDataError as e:
        raise UserError(f"{folder}: no metrics yet") from e
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
    if frame.empty:
        raise UserError(f"{folder}: no metrics yet")
    return frame.astype(float).sort_values("step", kind="stable", ignore_index=True)


def _read_config(folder: Path) -> dict[str, str]:
    """`config.yaml`, then what `config-2.yaml` and so on of its resumes have changed."""
    files = sorted(folder.glob("config*.yaml"), key=lambda f: (len(f.name), f.name))
    values: dict[str, str] = {}
    for file in files:
        try:
            # C's parser takes a tenth of the time where it was built.
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            config = yaml.load(file.read_text(), Loader=loader)
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise UserError(f"{file}: no YAML: {' '.join(str(e).split())}") from e
        if not isinstance(config, dict):
            raise UserError(f"{file}: no configuration")
        now = dict(_flatten(config))
        for key in {**values, **now}:
            before, after = values.get(key), now.get(key, "–")  # noqa: RUF001
            if before is None or file is files[0]:
                values[key] = after
            elif before.rsplit(" → ")[-1] != after:
                values[key] = f"{before} → {after}"
    return values


def _flatten(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Keys and classes as they are typed, such as `model.optimizer.lr` and `SGD`."""
    for key, value in node.items():
        path = f"{prefix}{key}"
        if key == "class_path" and prefix:
            yield prefix[:-1], OURS_AND_TORCHS.sub("", str(value))
        elif key == "init_args" and isinstance(value, dict):
            yield from _flatten(value, prefix)
        elif isinstance(value, dict) and value:
            yield from _flatten(value, f"{path}.")
        else:
            yield path, value if isinstance(value, str) else json.dumps(value, default=str)
