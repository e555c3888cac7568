"""What a run leaves of a step that fails: enough for `python train.py replay` to repeat it."""

import json
import os
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from anneal.data.sampler import EpochSampler, global_seed
from anneal.errors import UserError, first_line
from anneal.launch import is_lost
from anneal.lightning_internals import callback_of
from anneal.progress import Clock
from anneal.runs.folder import LAST
from anneal.system import atomic_write


@dataclass(eq=False)
class FailureRecorder(Callback):
    """Write `failure-STEP.json` into the run's folder when a batch or a step of it fails."""

    folder: Path
    checkpoints: Path
    config: str

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, e: BaseException) -> None:
        place = place_of(trainer)
        typed = isinstance(e, UserError) and e.status != 1
        if not place or not isinstance(e, Exception) or typed or is_lost(e):
            return
        with suppress(Exception):  # such as a full disk: it must not hide the reason
            last = self.checkpoints / LAST
            start = last if last.is_file() else trainer.ckpt_path
            failure = {
                "error": f"{type(e).__name__}: {first_line(e)}",
                "seed": global_seed(),
                **place,
                "samples": [key[-1] for key in keys_of(trainer, place["batch"])],
                "processes": trainer.world_size,
                "checkpoint": os.path.relpath(start, self.folder) if start else None,
                "state": state_of(pl_module),
                "config": self.config,
            }
            file = self.folder / f"failure-{trainer.global_step}.json"
            with atomic_write(file, shared=True) as part:
                part.write_text(json.dumps(failure, indent=1))
            e.add_note(f"to repeat this step: python train.py replay {file}")


def place_of(trainer: Trainer) -> dict[str, Any] | None:
    """Return where in a training a trainer is; None: not at a batch."""
    loop, training = trainer.fit_loop.epoch_loop, trainer.training
    batches = (loop if training else loop.val_loop).batch_progress.current
    size = trainer.num_training_batches if training else sum(trainer.num_val_batches)
    if trainer.state.fn != "fit" or loader_of(trainer) is None or batches.completed >= size:
        return None
    return {
        "stage": str(trainer.state.stage.value),  # type: ignore[union-attr]
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "batch": batches.completed,
        "fetches": batches.completed == batches.ready,  # no batch is here: it is read or moved
    }


def loader_of(trainer: Trainer) -> Any:
    """Return what gives the batches now; None: nothing yet."""
    return trainer.train_dataloader if trainer.training else trainer.val_dataloaders


def keys_of(trainer: Trainer, batch: int) -> list[Any]:
    """Return the samples of a batch as (epoch, place, index); none if the loader can't say it."""
    loader, clock = loader_of(trainer), callback_of(trainer, Clock)
    sampler = copy(getattr(loader, "batch_sampler", loader))
    if not isinstance(sampler, EpochSampler):
        return []
    before = clock.samples_before(batch, sampler) if clock and trainer.training else 0
    sampler.position = lambda: (trainer.current_epoch, batch, before)
    return next(EpochSampler.__iter__(sampler), [])


def state_of(module: LightningModule) -> dict[str, str]:
    """Return what tells whether a step is the same, bit for bit."""
    weights, drawn = sha256(), sha256(torch.get_rng_state().numpy().data)
    with suppress(RuntimeError):  # a device that has failed, too
        for t in (*module.parameters(), *module.buffers()):
            local = getattr(t, "to_local", t.detach)().detach().cpu().contiguous()
            weights.update(local.reshape(-1).view(torch.uint8).numpy().data)
    own = f"random numbers of process {module.global_rank}"
    return {"weights": weights.hexdigest(), own: drawn.hexdigest()}
