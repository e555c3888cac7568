"""The reader of metrics.csv: whole lines only, whatever a kill or a power failure has left."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from anneal.errors import UserError

LOWER = {"loss", "error", "err", "nll", "mse", "rmse", "mae", "perplexity", "ece", "wer", "cer"}
HIGHER = {"acc", "accuracy", "f", "auroc", "auc", "precision", "recall", "iou", "dice", "map"}
HIGHER |= {"psnr", "ssim", "bleu", "r"}
# train/loss, and as Lightning writes it: val_loss, train/loss_epoch, val/acc/dataloader_idx_1.
STAGED = re.compile(
    r"(train|val|valid|validation|test)[/_](.+?)(_step|_epoch)?(/dataloader_idx_\d+)?$"
)
Mode = Literal["min", "max"]
BESIDE_LR = re.compile(r"lr\b.*-(momentum|weight_decay)$")


class Table(NamedTuple):
    """What a CSV file holds: its lines as text by column."""

    columns: list[str]
    rows: list[dict[str, str]]

    def values(self, column: str) -> list[float]:
        """Return the values of a column in their order, empty cells left out."""
        return [float(row[column]) for row in self.rows if row.get(column)]


def whole_lines(path: Path) -> list[str]:
    """Return the lines that are whole: the last one may be in the middle of being written.

    A power failure can leave zeros in place of lines.
    """
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [f"{line}\n" for line in lines if "\0" not in line]


def read(path: Path) -> Table:
    """Return what the whole lines hold, but for one of more or fewer values than columns."""
    columns, *rows = list(csv.reader(whole_lines(path))) or [[]]
    whole = (row for row in rows if len(row) == len(columns))
    return Table(columns, [dict(zip(columns, row, strict=True)) for row in whole])


def of_run(folder: Path) -> Table:
    """Return what a run's metrics.csv holds; nothing if there is none yet."""
    file = folder / "metrics.csv"
    return read(file) if file.is_file() else Table([], [])


def recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of W&B's recordings in a run's folder."""
    for file in sorted(folder.glob("wandb/*run-*/run-*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", str(file), "--json"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            yield json.loads(line).get("history", {}).get("item", {})


def family(metric: str) -> tuple[str, str]:
    """Return the stage that a metric is of, "" if of none, and the name of all that belong to it.

    Those of other stages and of other layers do: they are drawn in one panel.
    """
    if staged := STAGED.fullmatch(metric):
        name, _, part = staged[2].partition("/")
        return staged[1], f"{name} of each" if part else name
    if is_learning_rate(metric):
        return "", "lr/effective" if metric.startswith("lr/effective") else "lr"
    if beside := BESIDE_LR.match(metric):
        return "", beside[1]
    first, *others = metric.split("/")
    return "", f"{first}/{others[-1]}" if others else first


def is_learning_rate(column: str) -> bool:
    """Return whether a metric is a learning rate: `lr`, or `lr/decay` of a parameter group."""
    return column.partition("/")[0] == "lr" and "-" not in column  # lr-momentum, ...


def better(metric: str) -> Mode | None:
    """Return whether lower or higher is better; None: the metric's name doesn't say."""
    with suppress(UserError):
        return direction(metric)
    return None


def direction(metric: str, mode: str | None = None, owner: str = "monitor") -> Mode:
    """Return whether lower or higher is better: `mode`, by default as the metric's name says."""
    words = set(re.split(r"[^a-z]+", metric.lower()))
    by_name = "min" if words & LOWER else "max" if words & HIGHER else mode
    if by_name is None:
        unsaid = f"is a lower or a higher {metric} better? Its name doesn't say"
        raise UserError(f"{owner}: {unsaid}: give `mode`")
    if mode not in (None, by_name):
        said = f"{metric} is better when it is {'lower' if by_name == 'min' else 'higher'}"
        opposite = f"mode={mode} watches for the opposite"
        raise UserError(f"{owner}: {said}, and {opposite}: give mode={by_name}")
    return cast(Mode, by_name)
