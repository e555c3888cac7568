"""Trainings that are listed, run some at a time: the others go on when one fails."""

import os
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from anneal.errors import UserError
from anneal.runs.folder import check_writable
from anneal.sweep.process import TRAIN, Process, warm_up
from anneal.system import cores, lock

STOPPING = (signal.SIGINT, signal.SIGTERM)


def train(folder: Path, listed: dict[str, list[str]], jobs: int) -> dict[str, str]:
    """Train what is not finished: by the name of its folder, with its options.

    The finished ones stand in `finished.txt`; one that was interrupted, or has failed, resumes.

    Returns:
        Why they failed, of those that have.

    Raises:
        UserError: The options of one are wrong.
        SystemExit: After a signal, with status 130: the same call goes on.
    """
    if jobs < 1:
        raise UserError(f"-j {jobs}: must be at least 1")
    check_writable(folder, "")
    if (locked := lock(folder)) is None:
        raise UserError(f"{folder} is in use: the same command is running already")
    record = folder / "finished.txt"
    done = record.read_text().splitlines() if record.is_file() else []
    left = {k: v for k, v in listed.items() if k not in done or not (folder / k).is_dir()}
    signals: list[int] = []
    before = {n: signal.signal(n, lambda n, _: signals.append(n)) for n in STOPPING}
    try:
        with (
            locked,
            tqdm(total=len(left), desc=folder.name, unit=" trainings", disable=None) as bar,
        ):
            failed = _train(folder, left, jobs, record, signals, bar) if left else {}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for name, error in failed.items():
        print(f"failed: {folder / name}: {error}", file=sys.stderr)
    if signals:
        print("interrupted: the same command goes on", file=sys.stderr)
        sys.exit(130)
    return failed


def _train(
    folder: Path,
    left: dict[str, list[str]],
    jobs: int,
    record: Path,
    signals: list[int],
    bar: "tqdm[None]",
) -> dict[str, str]:
    warm_up(training=True)
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or cores()) // jobs)
    running: dict[str, Process] = {}
    failed: dict[str, str] = {}
    try:
        while (left or running) and not signals:
            while left and len(running) < jobs:
                name = next(iter(left))
                words = [sys.executable, str(TRAIN), "fit", "--resume=auto", *left.pop(name)]
                running[name] = Process(words, folder / name, folder.name, threads, {})
            time.sleep(0.1)
            for name, process in list(running.items()):
                if (code := process.status()) is None:
                    continue
                del running[name]
                bar.update()
                if code == 2:
                    raise UserError(process.error().removeprefix("exit status 2: error: "))
                if code:
                    failed[name] = process.error()
                else:
                    with record.open("a") as file:
                        print(name, file=file)
                ended = f"failed: {failed[name]}" if code else "finished"
                tqdm.write(f"{process.folder}: {ended}", file=sys.stderr)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.end()
    return failed
