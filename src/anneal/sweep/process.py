"""One trial as a process: a training forked from a process that has done the imports, or a script.

The imports of a training take seconds. `multiprocessing`'s fork server does them once; it has one
thread and has computed nothing, so that each fork is like a fresh start.
"""

import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.forkserver import ensure_running
from pathlib import Path

from tqdm import tqdm

from anneal.errors import UserError
from anneal.runs.folder import LAST, check_writable, checkpoints_of
from anneal.system import cores, lock

TRAIN = Path(__file__).parents[3] / "train.py"
# What the fork server imports; wandb, matplotlib and the curves leave the others for later.
WARM = ["anneal.cli.warm", "wandb.sdk.launch", "matplotlib.backends.backend_agg", "pandas"]
TERM_SECONDS = 10.0  # from SIGTERM to SIGKILL
ERROR = re.compile(r"(error|[\w.]+(Error|Exception|Interrupt|Exit)|Killed|Segmentation fault)\b")


def training_words(command: list[str]) -> list[str] | None:
    """Return the script and its arguments of a command that runs our train.py, or None."""
    words = command[1:] if command[0] == "/usr/bin/env" else command
    if len(words) < 2 or not Path(words[0]).name.startswith("python"):
        return None
    return words[1:] if Path(words[1]).exists() and TRAIN.samefile(words[1]) else None


def can_resume(folder: Path) -> bool:
    """Return whether a training that was killed has left a checkpoint to resume from."""
    return (checkpoints_of(folder) / LAST).is_file()


def warm_up(training: bool) -> None:
    """Start the fork server, which does the imports of a training if it is to fork them."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(WARM if training else [])
    ensure_running()


class Process:
    """A running trial; if an earlier training has left a checkpoint in its folder, it resumes."""

    def __init__(
        self, command: list[str], folder: Path, group: str, jobs: int, env: dict[str, str]
    ) -> None:
        said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # 4,2 is for nested ones
        threads = max(1, int(said if said.isdecimal() else cores()) // jobs)
        self.folder = folder
        self.log = self.log_path if folder.is_dir() else folder.parent / f"{folder.name}.log"
        env = {**env, "OMP_NUM_THREADS": str(threads), "WANDB_RUN_GROUP": group}
        words = training_words(command)
        if words and can_resume(folder):
            words = [words[0], "fit", "--ckpt_path=last", f"--run={folder}"]
        elif words:
            words += [f"--trainer.default_root_dir={folder.parent}", f"--run_name={folder.name}"]
            for option in (f"--wandb.group={group}", "--trainer.enable_progress_bar=false"):
                if not any(word.startswith(option.partition("=")[0]) for word in words):
                    words.append(option)
        else:
            folder.mkdir()
            env["WANDB_DIR"] = str(folder)
        context = multiprocessing.get_context("forkserver")
        target, args = (_train, (words, threads)) if words else (_run, (command,))
        self._process = context.Process(target=_child, args=(target, args, self.log, env))
        self._process.start()  # waits for the fork server's imports
        assert self._process.pid
        self.pid = self._process.pid
        self.started = time.monotonic()

    def status(self) -> int | None:
        """Return its exit status (negative: the signal that ended it); None: it is running."""
        code = self._process.exitcode
        if code is not None:
            self._signal(signal.SIGKILL)  # what is left of its own processes
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.folder.is_dir():
            self.log.replace(self.log_path)  # also while it is being written to
        return code

    @property
    def log_path(self) -> Path:
        """File of what the trial printed, once its folder is there."""
        return self.folder / "log.txt"

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait for its end, which it was asked for, and kill what takes longer."""
        self._process.join(TERM_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self.status()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def error(self) -> str:
        """Return why it ended, in a line: the last error it printed, or the signal."""
        code = self._process.exitcode or 0
        number = -code if code < 0 else code - 128
        killed = number in set(signal.Signals)
        why = f"killed by {signal.Signals(number).name}" if killed else f"exit status {code}"
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        errors = [line for line in lines if ERROR.match(line)]
        last = lines[-1:] if killed else errors[-1:] or lines[-1:]
        return ": ".join([why, *last])[:500]


def train(folder: Path, listed: dict[str, list[str]], jobs: int) -> dict[str, str]:
    """Train what is not finished: by the name of its folder, with its options.

    The finished ones stand in `finished.txt`; one that was interrupted, or has failed, resumes.
    Return why they failed, of those that have.
    """
    if jobs < 1:
        raise UserError(f"-j {jobs}: must be at least 1")
    check_writable(folder, "")
    if (locked := lock(folder)) is None:
        raise UserError(f"{folder} is in use: the same command is running already")
    record = folder / "finished.txt"
    done = record.read_text().splitlines() if record.is_file() else []
    left = [name for name in listed if name not in done or not (folder / name).is_dir()]
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
                    running[name] = Process(words, folder / name, folder.name, jobs, {})
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


# ---- in the trial's own process


def _child(target, args, log: Path, env: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(env)
    multiprocessing.set_start_method(None, force=True)  # as for a command, not by a fork server
    target(*args)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _train(words: list[str], threads: int) -> None:
    import torch  # is there already, in the fork server
    import wandb

    torch.set_num_threads(threads)
    sys.argv[:] = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))  # as for a script
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        wandb.teardown()  # multiprocessing leaves out what is to be done at exit


def _run(command: list[str]) -> None:
    code = subprocess.call(command, stdin=subprocess.DEVNULL)
    sys.exit(code if code >= 0 else 128 - code)  # as a shell says that a signal ended it
