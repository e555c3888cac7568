"""Trainings in processes of their own, some at a time: the others go on when one fails."""

import os
import re
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from anneal.errors import UserError
from anneal.runs.folder import check_writable
from anneal.sweep.process import TRAIN, Process, warm_up
from anneal.system import cores, lock

POLL_SECONDS = 0.1


class Pool:
    """Run `jobs` processes at a time, each with its share of the cores and its own folder."""

    unit = " trainings"

    def __init__(self, name: str, total: int | None, jobs: int) -> None:
        self.name, self.total, self.jobs = name, total, jobs
        self.threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or cores()) // jobs)
        self.running: dict[Any, Process] = {}
        self.interrupted = False

    def interrupt(self, *_: Any) -> None:
        """End what is running, and `run`, within seconds; a handler of signals."""
        self.interrupted = True

    def run(self) -> None:
        """Run until nothing is left, here or with another worker that may die."""
        bar = tqdm(total=self.total, desc=self.name, unit=self.unit, smoothing=0, disable=None)
        try:
            while not self.interrupted:
                others = self._heartbeat()
                while len(self.running) < self.jobs and not self.interrupted and self._start():
                    pass
                self._show(bar)
                if not self.running and not others:
                    break
                self._wait()
        finally:
            self._end_all()
            bar.close()

    def _wait(self) -> None:
        """Wait until a process has ended; not for ever, as there may be a heartbeat to give."""
        deadline = time.monotonic() + 1.0
        while not (self.interrupted or self._tend()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _tend(self) -> bool:
        """Say how those have ended that have; return whether one has."""
        before = len(self.running)
        for key, process in list(self.running.items()):
            if (facts := self._ended(key, process)) is not None:
                tqdm.write(f"{process.folder}: {facts}", file=sys.stderr)
                del self.running[key]
        return len(self.running) < before

    def _end_all(self) -> None:
        """End what is running when the whole is interrupted."""
        for process in self.running.values():
            process.terminate()
        for key, process in self.running.items():
            process.end()
            self._requeue(key)

    def _heartbeat(self) -> bool:
        """Give signs of life; return whether other workers are at it."""
        return False

    def _start(self) -> bool:
        """Start the next process; return whether there may be one more."""
        raise NotImplementedError

    def _ended(self, key: Any, process: Process) -> str | None:
        """Record how a process has ended, and say it; None: it has not."""
        raise NotImplementedError

    def _show(self, bar: Any) -> None:
        """Show how far it has come."""
        raise NotImplementedError

    def _requeue(self, key: Any) -> None:
        """Take note of what is to be run again."""


class Trainings(Pool):
    """Trainings that are listed: the name of each one's folder, and its options.

    The names of those that are finished are kept in `finished.txt`: these are not trained again.
    Another one resumes in its folder.
    """

    def __init__(self, folder: Path, listed: dict[str, list[str]], jobs: int) -> None:
        super().__init__(folder.name, len(listed), jobs)
        check_writable(folder, "")
        self._lock = lock(folder)
        if self._lock is None:
            raise UserError(f"{folder} is in use: the same command is running already")
        self.folder, self.listed = folder, listed
        self.record = folder / "finished.txt"
        names = self.record.read_text().splitlines() if self.record.is_file() else []
        self.finished = {name for name in names if (folder / name).is_dir()} & listed.keys()
        self.left = [name for name in listed if name not in self.finished]
        self.failures: dict[str, str] = {}
        if self.left:
            warm_up(training=True)

    def run(self) -> None:
        """Train what is left; after a signal, end with status 130."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.interrupt)
        super().run()
        if self.interrupted:
            print("interrupted: the same command goes on", file=sys.stderr)
            sys.exit(130)

    def report_failures(self) -> int:
        """Name the trainings that failed; return the exit status, 1 if there are any."""
        for name, error in self.failures.items():
            print(f"failed: {self.folder / name}: {error}", file=sys.stderr)
        return 1 if self.failures else 0

    def _start(self) -> bool:
        if not self.left:
            return False
        name = self.left.pop(0)
        # Without a checkpoint it starts anew, in the folder that may be there.
        words = [sys.executable, str(TRAIN), "fit", "--resume=auto", *self.listed[name]]
        self.running[name] = Process(words, self.folder / name, self.name, self.threads, {})
        return True

    def _ended(self, key: str, process: Process) -> str | None:
        if (code := process.status()) is None:
            return None
        if code:
            self.failures[key] = process.error()
            return f"failed: {self.failures[key]}"
        self.finished.add(key)
        with self.record.open("a") as file:
            print(key, file=file)
        return "finished"

    def _show(self, bar: Any) -> None:
        bar.n = len(self.finished) + len(self.failures)
        bar.set_postfix_str(f"{len(self.failures)} failed" if self.failures else "")


def mistakes(words: list[str]) -> list[str]:
    """Return what is wrong with the options of a training, a line each, without training."""
    with TemporaryDirectory() as scratch:
        command = [sys.executable, str(TRAIN), "fit", *words, "--print_config"]
        process = Process(command, Path(scratch) / "checked", "", 1, {})
        process.end()
        found = re.findall("(?m)^error: (.*)", process.log_path.read_text())
        return found or [process.error()] * bool(process.status())
