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
        KeyboardInterrupt: After a signal: the same call goes on.
    """
    if jobs < 1:
        raise UserError(f"-j {jobs}: must be at least 1")
    check_writable(folder, "")
    if (locked := lock(folder)) is None:
        raise UserError(f"{folder} is in use: the same command is running already")
    record = folder / "finished.txt"
    done = record.read_text().splitlines() if record.is_file() else []
    left = [name for name in listed if name not in done or not (folder / name).is_dir()]
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or cores()) // jobs)
    running: dict[str, Process] = {}
    failed: dict[str, str] = {}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with locked, tqdm(total=len(left), desc=folder.name, unit=" trainings", disable=None) as bar:
        try:
            if left:
                warm_up(training=True)
            while left or running:
                while left and len(running) < jobs:
                    name = left.pop(0)
                    words = [sys.executable, str(TRAIN), "fit", "--resume=auto", *listed[name]]
                    running[name] = Process(words, folder / name, folder.name, threads, {})
                time.sleep(0.1)
                for name, process in [*running.items()]:
                    if (code := process.status()) is None:
                        continue
                    del running[name]
                    if code == 2:
                        raise UserError(process.error().removeprefix("exit status 2: error: "))
                    if code:
                        failed[name] = process.error()
                    else:
                        with record.open("a") as file:
                            print(name, file=file)
                    bar.update()
                    bar.write(f"{process.folder}: {failed.get(name, 'finished')}", file=sys.stderr)
        except KeyboardInterrupt:
            print("interrupted: the same command goes on", file=sys.stderr)
            raise
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.end()
            signal.signal(signal.SIGTERM, before)
    for name, error in failed.items():
        print(f"failed: {folder / name}: {error}", file=sys.stderr)
    return failed
