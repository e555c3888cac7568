"""Callbacks for trainings in processes of their own."""

import atexit
import multiprocessing
import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from helpers import idle_time
from torch.distributed import is_initialized

from anneal.errors import UserError


class Fail(pl.Callback):
    """Lets one process fail in the middle of an epoch.

    Args:
        rank: Which one.
        how: What happens to it. `late` also holds up the others, so that they don't notice.
    """

    def __init__(self, rank: int, how: str) -> None:
        self.rank = rank
        self.how = how

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx != 2:
            return
        if trainer.global_rank != self.rank:
            if self.how == "late":
                time.sleep(600)
            return
        Path("failed").write_text(str(idle_time()))
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "memory":
            torch.empty(2**50)
        if self.how == "bug":
            raise RuntimeError("shapes 3 and 4")
        raise UserError("picture.jpg can't be read", status=1)


class Slow(pl.Callback):
    """Makes each batch take 0.3 s or more."""

    def on_train_batch_start(self, *args) -> None:
        time.sleep(0.3)


class Hold(pl.Callback):
    """Holds a training up at a step as long as the file `hold` is there, and leaves word of it.

    Args:
        step: Optimizer steps before it.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *args) -> None:
        while trainer.global_step == self.step and Path("hold").exists():
            Path("held").touch()
            time.sleep(0.01)


class Told(pl.Callback):
    """Prints with how many threads a training begins, and how processes are started."""

    def on_train_start(self, trainer, pl_module) -> None:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_text().replace("\0", " ")
        print("threads", torch.get_num_threads(), "of", parent, flush=True)
        print("workers by", multiprocessing.get_start_method(), flush=True)


class Dropped(pl.Callback):
    """Writes what each process draws in a dropout, one file for each."""

    def on_train_batch_end(self, trainer, *args) -> None:
        drawn = torch.nn.functional.dropout(torch.ones(64)).bool().int().tolist()
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"drawn-{trainer.global_rank}").open("a") as file:
            file.write("".join(map(str, drawn)) + "\n")


class Connected(pl.Callback):
    """Writes whether a process still has a connection when its interpreter ends."""

    def setup(self, trainer, pl_module, stage) -> None:
        path = Path(f"connected-{trainer.global_rank}").absolute()
        atexit.register(lambda: path.write_text(str(is_initialized())))
