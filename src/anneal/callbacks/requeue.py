"""Hands a SLURM job back to the queue before its time is up."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from anneal.runs import LAST


class Requeue(Callback):
    """On SIGUSR1, saves `last.ckpt` after the step at hand and has SLURM start the job once more.

    Lightning's own handler saves from within the signal: a process may be in the middle of a step,
    and another one waiting for its gradients. Here the signal leaves a note that all processes
    read after the same step.

    Args:
        folder: Where `last.ckpt` lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._asked = False
        self._saved = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Before Lightning sets its own, which it doesn't where it finds one.
        if stage == "fit" and "SLURM_JOB_ID" in os.environ:
            signal.signal(signal.SIGUSR1, self._note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        if "SLURM_JOB_ID" not in os.environ or loop._should_accumulate():
            return
        if not trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            return
        # What an epoch's end or a validation gives would be missing: it waits for the next step.
        validates = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        if trainer.is_last_batch or validates:
            self._asked = True
            return
        self._asked, self._saved = False, True
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Now the metrics of the step are logged too."""
        if not self._saved:
            return
        self._saved = False
        done = f"saved at step {trainer.global_step}; SLURM"
        if trainer.strategy.broadcast(trainer.is_global_zero and requeue()):
            rank_zero_info(f"{done} starts job {job_id()} again")
            sys.exit(0)
        rank_zero_warn(f"{done} refuses to start job {job_id()} again")

    def _note(self, *args: Any) -> None:
        self._asked = True


def job_id() -> str:
    """The job as scontrol takes it, also one of an array."""
    env = os.environ
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def requeue() -> bool:
    """Whether SLURM has put this job back into the queue."""
    try:
        return subprocess.run(["scontrol", "requeue", job_id()]).returncode == 0
    except OSError:
        return False
