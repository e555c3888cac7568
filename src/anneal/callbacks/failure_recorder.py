"""What a run leaves of a step that fails: enough for `python train.py replay` to repeat it."""

import json
import math
import os
from contextlib import suppress
from copy import copy
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from anneal.data.sampler import EpochSampler
from anneal.data.seeding import global_seed
from anneal.errors import UserError, first_line
from anneal.launch import is_lost
from anneal.runs.folder import LAST
from anneal.system import atomic_write


class FailureRecorder(Callback):
    """Write `failure-STEP.json` into the run's folder when a batch or a step of it fails.

    Args:
        folder: The run's.
        checkpoints: Where its `last.ckpt` lies.
        config: Its configuration as YAML.
    """

    def __init__(self, folder: Path, checkpoints: Path, config: str) -> None:
        self.folder = folder
        self.last = checkpoints / LAST
        self.config = config

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        typed = isinstance(exception, UserError) and exception.status != 1
        place = place_of(trainer)
        if place and isinstance(exception, Exception) and not typed and not is_lost(exception):
            with suppress(Exception):  # such as a full disk: it must not hide the reason
                file = self.folder / f"failure-{trainer.global_step}.json"
                failure = self._describe(trainer, pl_module, place, exception)
                with atomic_write(file, shared=True) as part:
                    part.write_text(json.dumps(failure, indent=1))
                exception.add_note(f"to repeat this step: python train.py replay {file}")

    def _describe(
        self, trainer: Trainer, module: LightningModule, place: dict[str, Any], e: Exception
    ) -> dict[str, Any]:
        loader, start, samples = loader_of(trainer), trainer.ckpt_path, None
        # From a checkpoint of this process, a loader without a state gives other samples.
        if self.last.is_file() and hasattr(loader, "load_state_dict"):
            start = self.last
        sampler = copy(getattr(loader, "batch_sampler", loader))
        if isinstance(sampler, EpochSampler):
            sampler.position = lambda: (place["epoch"], place["batch"], 0)
            samples = next(sampler.batches())[2].tolist()
        return {
            "error": f"{type(e).__name__}: {first_line(e)}",
            "seed": global_seed(),
            **place,
            "samples": samples,
            "processes": trainer.world_size,
            "checkpoint": os.path.relpath(start, self.folder) if start else None,
            "state": state_of(module),
            "config": self.config,
        }


def place_of(trainer: Trainer) -> dict[str, Any] | None:
    """Return where in a training a trainer is; None: not at a batch."""
    loop = trainer.fit_loop.epoch_loop
    batches = loop.batch_progress if trainer.training else loop.val_loop.batch_progress
    fetches = batches.current.ready == batches.current.completed  # the next one
    sizes = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
    size = trainer.num_training_batches if trainer.training else sum(sizes)
    ended = batches.is_last_batch and (batches.current.ready >= size or size == math.inf)
    if trainer.state.fn != "fit" or loader_of(trainer) is None or (fetches and ended):
        return None
    return {
        "stage": str(trainer.state.stage.value),  # type: ignore[union-attr]
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "batch": batches.current.ready - (not fetches),
        "fetches": fetches,
    }


def loader_of(trainer: Trainer) -> Any:
    """Return what gives the batches now; None: nothing yet."""
    return trainer.train_dataloader if trainer.training else trainer.val_dataloaders


def state_of(module: LightningModule) -> dict[str, str]:
    """Return what tells whether a step is the same, bit for bit."""
    weights, drawn = sha256(), sha256(torch.get_rng_state().numpy().tobytes())
    with suppress(RuntimeError):  # a device that has failed, too
        for t in (*module.parameters(), *module.buffers()):
            local = getattr(t, "to_local", t.detach)().detach().cpu().contiguous()
            weights.update(local.reshape(-1).view(torch.uint8).numpy().tobytes())
    own = f"random numbers of process {module.global_rank}"
    return {"weights": weights.hexdigest(), own: drawn.hexdigest()}
