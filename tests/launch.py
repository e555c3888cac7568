"""Trainings in processes of their own, forked from one that has paid for the imports once."""

import multiprocessing
import os
import signal
import sys
import traceback
from pathlib import Path

from conftest import SMALL

TRAIN = Path(__file__).parents[1] / "train.py"
QUIET = ("--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["anneal.cli"])


class Training:
    """`python train.py ...` in `folder`, where small.yaml lies; what it prints goes to a file.

    Args:
        folder: Where it runs.
        *args: Words of the command line.
        **env: Environment variables; an empty one is taken away.
    """

    def __init__(self, folder: Path, *args: str, **env: str) -> None:
        (folder / "small.yaml").write_text(SMALL.replace("logger: false", "logger: true"))
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}"
        words = (*args, *QUIET)
        self.process = FORKS.Process(target=_train, args=(folder, words, env, self.log))
        self.process.start()

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """It and all processes that it has started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def end(self) -> tuple[int, str]:
        """Its exit status and what it has printed."""
        self.process.join(timeout=120)
        assert not self.process.is_alive(), self.log.read_text()
        return self.process.exitcode, self.log.read_text()

    def finish(self) -> str:
        """What a training that succeeds has printed."""
        status, output = self.end()
        assert status == 0, output
        return output


def train(folder: Path, *args: str, **env: str) -> str:
    """A training from start to end."""
    return Training(folder, *args, **env).finish()


def _train(folder: Path, words: tuple[str, ...], env: dict[str, str], log: Path) -> None:
    from anneal.cli import main

    os.setsid()
    os.chdir(folder)
    os.environ |= {"HOME": str(folder), **env}
    for name in [name for name, value in env.items() if not value]:
        del os.environ[name]
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [str(TRAIN), *words]  # what Lightning starts the other processes with
    try:
        main(list(words))
    except Exception:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
