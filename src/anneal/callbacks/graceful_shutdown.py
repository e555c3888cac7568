"""The end of a run that is told to stop, with a checkpoint of that moment."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from anneal.launch import is_lost
from anneal.lightning_internals import is_between_steps
from anneal.runs.folder import LAST

EVERY = 1.0  # seconds between two questions of several processes to each other
PATIENCE = 10.0  # seconds that these give a validation to end, in which they don't ask


class GracefulShutdown(Callback):
    """On Ctrl-C or SIGTERM finish the step, save `last.ckpt` and end with status 130 or 143.

    A second one ends at once. A validation is left, at the latest after a few seconds: it has a
    checkpoint before it, and the resumed run makes it. In a SLURM job SIGUSR1 also hands the job
    back to the queue.

    Lightning's own handlers act from within the signal, when a process may be in the middle of a
    step and another one waiting for its gradients. Here the signal leaves a note that all
    processes read after the same step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._trainer: Trainer | None = None  # while it trains
        self._told = 0  # the signal
        self._since = 0.0
        self._asked = 0.0  # when the processes have asked each other
        self._last_batch = 0  # of the run, at which they did
        self._next = 0  # the one at which they do so again
        self._agreed = False
        self._saved = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()
        self._trainer, self._told = trainer, 0
        self._asked = time.monotonic()
        self._next = self._last_batch = trainer.fit_loop.total_batch_idx

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._agree(trainer) and is_between_steps(trainer):
            self._saved = True
            trainer.save_checkpoint(self.folder / LAST, weights_only=False)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """End here, where the metrics of the step are logged too."""
        if self._saved:
            self._leave(trainer, f"saved {self.folder / LAST} at step {trainer.global_step}")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        patience = PATIENCE if trainer.world_size > 1 else 0
        if self._told and self._trainer and time.monotonic() - self._since >= patience:
            self._leave(trainer, f"{self.folder / LAST} is from before this validation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = None
        if self._told:
            self._leave(trainer, "the training had just ended, and all of it is saved")

    def on_exception(self, trainer: Trainer, _: Any, exception: BaseException) -> None:
        """End at once if told to stop because another process has failed, or left after saving."""
        self._trainer = None
        if self._told and is_lost(exception):
            if self._saved and self._told != signal.SIGUSR1:
                self._leave(trainer, f"saved {self.folder / LAST}")
            sys.exit(128 + self._told)

    def _listen(self) -> None:
        """Take the signals until Lightning puts back what it found before it set its own."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)
            if "SLURM_JOB_ID" in os.environ:
                signal.signal(signal.SIGUSR1, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self._trainer is None or self._told in (signal.SIGINT, signal.SIGTERM):
            launcher: Any = self._trainer.strategy.launcher if self._trainer else None
            if hasattr(launcher, "kill"):  # it has started other processes
                launcher.kill(signal.SIGKILL)
            sys.exit(128 + number)
        self._told, self._since = number, time.monotonic()

    def _agree(self, trainer: Trainer) -> bool:
        """Return whether any process was told to stop, the same in all of them."""
        if trainer.world_size == 1:
            return bool(self._told)
        batch = trainer.fit_loop.total_batch_idx
        if not self._agreed and batch >= self._next:
            now = time.monotonic()
            strategy = trainer.strategy
            mine = torch.tensor([self._told, now - self._asked], device=strategy.root_device)
            told, seconds = strategy.reduce(mine, reduce_op="max").tolist()
            # So many batches were that long; the slowest process counts.
            batches = batch - self._last_batch
            self._next = batch + max(1, min(2 * batches, int(batches * EVERY / max(seconds, 1e-3))))
            self._asked, self._last_batch = now, batch
            self._told = int(told)
            self._agreed = bool(told)
        return self._agreed

    def _leave(self, trainer: Trainer, state: str) -> None:
        number = signal.Signals(self._told)
        self._told, self._agreed, self._saved = 0, False, False
        if number in (signal.SIGINT, signal.SIGTERM):
            if trainer.is_global_zero:
                print(f"stopped by {number.name}: {state}", file=sys.stderr)
            sys.exit(128 + number)
        if trainer.strategy.broadcast(trainer.is_global_zero and requeue()):
            rank_zero_info(f"{state}; SLURM starts job {job_id()} again")
            sys.exit(0)
        rank_zero_warn(f"{state}; SLURM refuses to start job {job_id()} again")


def job_id() -> str:
    """Return the job's number as scontrol takes it, also that of an array's job."""
    env = os.environ
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def requeue() -> bool:
    """Put this job back into SLURM's queue; return whether SLURM has taken it."""
    with suppress(OSError):
        return subprocess.run(["scontrol", "requeue", job_id()]).returncode == 0
    return False
