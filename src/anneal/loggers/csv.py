"""`metrics.csv`: every metric, none lost when the process is killed, none twice after a resume."""

import csv
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from anneal.runs.metrics import Table, read, whole_lines
from anneal.system import atomic_write


class CSVLogger(Logger):
    """Write `metrics.csv` into the run's folder, one line for each call that logs.

    Lightning's own class deletes an earlier file and loses what it holds back when the process is
    killed. This one appends, and hands each line to the system at once, so that a kill loses none.
    New columns are put at the end. `time` is in seconds, pauses before a resume left out.

    Args:
        run_dir: The run's folder; made when the first line is written.
    """

    rows_are_cheap = True  # so the learning rate is logged at its every change
    name = version = None  # the folder's name says which run it is

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(run_dir) / "metrics.csv"
        self._columns = ["step", "epoch", "time"]
        self._file: TextIO | None = None
        self._step = 0
        self._started: float | None = None

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kw: Any) -> None:
        """Do nothing: `config.yaml` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one line, by default at the optimizer step of the line before."""
        self._step = self._step if step is None else step
        row = {k: v.item() if isinstance(v, Tensor) else v for k, v in metrics.items()}
        file = self._open()
        assert self._started is not None
        row |= {"step": self._step, "time": round(time.monotonic() - self._started, 3)}
        if new := [key for key in row if key not in self._columns]:
            # Once for each set of metrics (training, validation, test): the cost stays linear.
            columns, rows = self._read()
            self.finalize("columns")
            self._replace(columns + new, rows)
            file = self._open()
        _write(file, [row.get(key) for key in self._columns])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file; the next line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @rank_zero_only
    def rewind(
        self,
        step: int,
        count: int | None = None,
        without: Sequence[int] = (0, 0),
        pending: Iterable[str] = (),
    ) -> list[dict[str, str]]:
        """Go back to where a checkpoint was saved, as training starts; return the lines that stay.

        Training writes the others again. Those of tests stay, which it does not write.

        Args:
            step: The checkpoint's `global_step`, 0 for a fresh run.
            count: What `rows` gave then; None: the lines before this step stay.
            without: Of these the first that goes, and the next that stays.
            pending: What was logged next, if it was: that line stays too.
        """
        if not self.path.exists():
            return []
        self.finalize("rewind")
        columns, rows = self._read()
        tests = [name for name in columns if name.startswith("test/")]
        pending = list(pending) or ["nothing"]
        stay = [
            int(row["step"]) < step
            if count is None
            else (i < count and not without[0] <= i < without[1])
            or _has(row, tests, any)
            or (i == count and _has(row, pending, all))
            for i, row in enumerate(rows)
        ]
        kept = [row for row, stays in zip(rows, stay, strict=True) if stays]
        self._replace(columns, kept)
        return kept

    def has(self, names: Iterable[str], step: int) -> bool:
        """Return whether a line of this step has values under all these names."""
        rows = self._read().rows if self.path.exists() else []
        return any(int(row["step"]) == step and _has(row, names, all) for row in rows)

    @rank_zero_only
    def rows(self) -> int:
        """Return how many whole lines the file has: counted, as every checkpoint asks."""
        if not self.path.exists():
            return 0
        rows = csv.reader(whole_lines(self.path))
        columns = len(next(rows, []))
        return sum(len(row) == columns > 0 and row[0].isdigit() for row in rows)

    def _open(self) -> TextIO:
        # Another process (a `test` while training runs) may have put a file with more columns in
        # the place of ours, so compare what is open with what is there now.
        exists = self.path.exists()
        if self._file is not None:
            if exists and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                return self._file
            self._file.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = 0.0
        if exists:
            self._columns, rows = self._read()
            before = float(rows[-1].get("time") or 0) if rows else 0.0
        if self._started is None:
            self._started = time.monotonic() - before
        self._file = self.path.open("a", buffering=1, newline="")  # line by line
        if self._file.tell() == 0:
            _write(self._file, self._columns)
        return self._file

    def _read(self) -> Table:
        """Return columns and rows; a last line that was cut is removed, in the file too."""
        with self.path.open("rb+") as raw:
            raw.truncate(raw.read().rfind(b"\n") + 1)
        columns, rows = read(self.path)
        steps = [row for row in rows if row.get("step", "").isdigit()]
        return Table(columns or self._columns, steps)

    def _replace(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        with atomic_write(self.path) as part, part.open("w", newline="") as file:
            _write(file, columns)
            for row in rows:
                _write(file, [row.get(column, "") for column in columns])


def _has(row: dict[str, str], names: Iterable[str], of: Callable[..., bool]) -> bool:
    return of(row.get(name) for name in names)


def _write(file: TextIO, row: list[Any]) -> None:
    csv.writer(file, lineterminator="\n").writerow(row)
