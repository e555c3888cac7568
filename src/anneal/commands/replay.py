"""A failed step of a training once more: which layer, tensor and sample it fails at first."""

import json
import logging
import os
import warnings
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.distributed import DistError

from anneal.callbacks.accumulation import RescaleLastAccumulation
from anneal.callbacks.seed_every_epoch import SeedEveryEpoch
from anneal.commands.watch import Failure, Passed, Watch
from anneal.errors import UserError
from anneal.progress import Clock
from anneal.runs.folder import read_checkpoint


def read_failure(file: Path) -> Failure:
    """Return what a failed run has left; raise UserError if the file is something else."""
    try:
        failure: Failure = json.loads(file.read_text())
        return {**failure, "config": str(failure["config"])}
    except (OSError, ValueError, KeyError, TypeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not what a run leaves of a failed step"
        raise UserError(f"{file}: {reason}") from e


def repeat(trainer: Trainer, model: LightningModule, data: LightningDataModule, file: Path) -> str:
    """Train up to the step that failed, and return what there is to say about it.

    Args:
        trainer: With the run's settings, but without loggers and checkpoints.
        model: The run's.
        data: Likewise.
        file: What the run has left.

    Raises:
        UserError: The step does not fail again, or there is nothing to start from.
    """
    failure = read_failure(file)
    if trainer.world_size != failure["processes"]:
        raise UserError(f"{file}: that run had {failure['processes']} processes: start as many")
    start = file.parent / failure["checkpoint"] if failure["checkpoint"] else None
    if start and (not start.is_file() or read_checkpoint(start)["global_step"] > failure["step"]):
        raise UserError(f"{start}, to start from, is gone or from after step {failure['step']}")
    watch = Watch(failure)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [Clock(), *callbacks, RescaleLastAccumulation(), SeedEveryEpoch(), watch]
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # the error of a kernel is raised where it starts
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), watch.recorded():
            warnings.simplefilter("ignore")
            trainer.fit(model, data, ckpt_path=start)
    except Exception as e:
        if watch.elsewhere:
            raise DistError("the step fails in another process") from e
        if not watch.found and not isinstance(e, Passed):
            raise
    if not watch.found:
        raise UserError(f"step {failure['step']} does not fail again: {failure['error']}", status=1)
    many = f" in {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return f"replayed {file}{many} from {start or 'the start'}: {watch.found}"
