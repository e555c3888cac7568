"""Trainings in processes of their own, forked from one that has paid for the imports once."""

import builtins
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import tomllib
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import SMALL

from anneal.sweep.process import WARM
from anneal.testing import draw_nothing, wait_for

TRAIN = Path(__file__).parents[2] / "train.py"
QUIET = ("--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(WARM)
NEW_INTERPRETER = {"NEW_INTERPRETER": "1"}  # for the other processes of a training, as for users


class Training:
    """`python train.py ...` in `folder`, where small.yaml lies; what it prints goes to a file.

    Args:
        folder: Where it runs.
        *args: Words of the command line.
        torchrun: Options of torchrun, which then starts it.
        **env: Environment variables; an empty one is taken away.
    """

    def __init__(self, folder: Path, *args: str, torchrun: Sequence[str] = (), **env: str) -> None:
        (folder / "small.yaml").write_text(SMALL.replace("logger: false", "logger: true"))
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}"
        self.log.touch()  # the next one has another
        self.hold, self.held = folder / "hold", folder / "held"
        words = (*args, *QUIET)
        given = (folder, env, self.log, _train, words, torchrun)
        self.process = FORKS.Process(target=_begin, args=given)
        self.process.start()

    @classmethod
    def held_at(cls, step: int, folder: Path, *args: str, **env: str) -> "Training":
        """One that has taken so many steps, and takes no more until it may go on."""
        (folder / "hold").touch()
        (folder / "held").unlink(missing_ok=True)
        hold = ("--trainer.callbacks+=ranks.Hold", f"--trainer.callbacks.step={step}")
        run = cls(folder, *args, *hold, **env)
        wait_for(lambda: run.held.exists() or not run.process.is_alive())
        assert run.process.is_alive(), run.log.read_text()
        return run

    def go_on(self) -> None:
        self.hold.unlink()

    def send(self, number: int) -> None:
        """Send a signal; one that is held up has taken note of it afterwards."""
        os.kill(self.process.pid, number)
        for _ in range(2 * self.hold.exists()):  # what was begun before the signal, and the next
            self.held.unlink(missing_ok=True)
            wait_for(lambda: self.held.exists() or not self.process.is_alive())

    def kill(self) -> None:
        """It and all processes that it has started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.hold.unlink(missing_ok=True)

    def end(self) -> tuple[int, str]:
        """Its exit status and what it has printed."""
        self.process.join(timeout=600)
        assert not self.process.is_alive(), self.log.read_text()
        return self.process.exitcode, self.log.read_text()

    def finish(self) -> str:
        """What a training that succeeds has printed."""
        status, output = self.end()
        assert status == 0, output
        return output


def train(folder: Path, *args: str, torchrun: Sequence[str] = (), **env: str) -> str:
    """A training from start to end."""
    return Training(folder, *args, torchrun=torchrun, **env).finish()


def script(folder: Path, path: Path, *args: str) -> str:
    """What a script of ours that ends well prints, run in `folder` as by `python PATH ...`."""
    log = folder / f"log-{path.stem}"
    process = FORKS.Process(target=_begin, args=(folder, {}, log, _script, path, args))
    process.start()
    process.join(timeout=1800)
    assert process.exitcode == 0, log.read_text()
    return log.read_text()


def _begin(folder: Path, env: dict[str, str], log: Path, run: Callable, *args: Any) -> None:
    # It sets variables, which are not to win over `env`.
    import anneal.testing  # noqa: F401

    os.setsid()
    os.chdir(folder)
    os.environ |= {"HOME": str(folder), **env}
    multiprocessing.set_start_method(None, force=True)  # as for a command, not by a fork server
    for name in [name for name, value in env.items() if not value]:
        del os.environ[name]
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    run(*args)


def _script(path: Path, args: tuple[str, ...]) -> None:
    sys.argv = [str(path), *args]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _train(words: tuple[str, ...], torchrun: Sequence[str]) -> None:
    from lightning.pytorch.strategies.launchers import subprocess_script

    draw_nothing(pytest.MonkeyPatch())
    sys.argv = [str(TRAIN), *words]  # what Lightning starts the other processes with
    if torchrun:
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

        subprocess_handler.Popen = _Fork
        run.main([*torchrun, *sys.argv])
        return
    if not os.environ.keys() & NEW_INTERPRETER:
        subprocess_script.subprocess = SimpleNamespace(Popen=_Fork)
    run_here(words)


def run_here(words: tuple[str, ...]) -> None:
    """Run a command of train.py in this process, with pytest's errors for warnings."""
    import anneal
    import train

    try:
        with warnings.catch_warnings():
            as_pytest_does()
            anneal.main(train.fit, train.PACKAGES, list(words))
    except Exception:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()


def as_pytest_does() -> None:
    """Makes errors of the warnings that are errors in the tests' own process."""
    settings = tomllib.loads((TRAIN.parent / "pyproject.toml").read_text())["tool"]["pytest"]
    for line in settings["ini_options"]["filterwarnings"]:
        action, message, category, module = (line.split(":") + [""] * 3)[:4]
        kind = getattr(builtins, category or "Warning")
        warnings.filterwarnings(action, message, kind, module)


class _Fork:
    """As much of a Popen as a launcher needs: the same training, in a copy of this process."""

    def __init__(
        self,
        args: Sequence[str],
        env: dict[str, str],
        cwd: str | None = None,
        stdout: None = None,
        stderr: None = None,
        start_new_session: bool = False,
    ) -> None:
        self.lock = threading.Lock()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        import torch

        from anneal import launch as processes

        status = 1
        try:
            if start_new_session:
                os.setsid()
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # Torch renews its thread pool in the first call after a fork, which must be alone.
            torch.set_num_threads(torch.get_num_threads())
            processes._launcher = None
            os.environ.clear()
            os.environ.update(env)
            run_here(tuple(sys.argv[1:]))
            status = 0
        except SystemExit as e:
            status = e.code or 0
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        with self.lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("fork", timeout)
            time.sleep(0.02)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)
