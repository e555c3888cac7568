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
    left = [name for name in listed if name not in done or not (folder / name).is_dir()]
    signals: list[int] = []
    take_note = lambda number, _: signals.append(number)  # noqa: E731
    before = {n: signal.signal(n, take_note) for n in (signal.SIGINT, signal.SIGTERM)}
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or cores()) // jobs)
    bar = tqdm(
        total=len(listed), initial=len(listed) - len(left), desc=folder.name, unit=" trainings",
        smoothing=0, disable=None,
    )  # fmt: skip
    running: dict[str, Process] = {}
    failed: dict[str, str] = {}
    if left:
        warm_up(training=True)
    try:
        while (left or running) and not signals:
            while left and len(running) < jobs:
                name = left.pop(0)
                words = [sys.executable, str(TRAIN), "fit", "--resume=auto", *listed[name]]
                running[name] = Process(words, folder / name, folder.name, threads, {})
            time.sleep(0.1)
            for name, process in list(running.items()):
                if (code := process.status()) is None:
                    continue
                del running[name]
                bar.update()
                if code == 2:
                    raise UserError(process.error().partition("error: ")[2])
                if code:
                    failed[name] = process.error()
                    bar.set_postfix_str(f"{len(failed)} failed")
                else:
                    with record.open("a") as file:
                        print(name, file=file)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.end()
        bar.close()
        locked.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        print("interrupted: the same command goes on", file=sys.stderr)
        sys.exit(130)
    for name, error in failed.items():
        print(f"failed: {folder / name}: {error}", file=sys.stderr)
    return failed
