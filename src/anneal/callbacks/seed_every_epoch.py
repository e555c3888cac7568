"""Random numbers that follow from seed, epoch and process, and resume where a run stopped."""

import os
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from anneal.launch import gather
from anneal.progress import in_training, resume_position


class SeedEveryEpoch(Callback):
    """Seed Python, NumPy and torch in every epoch, from (seed, epoch, process).

    So dropout differs between processes, which Lightning seeds alike, and a run resumed after an
    epoch draws what it would have drawn, instead of the first epoch's numbers again. It is done
    before the data loader draws the order of its samples, and once more at the first batch. A
    checkpoint from within an epoch holds the state of all processes' generators.
    """

    def __init__(self) -> None:
        self.seeded_epoch = -1
        self.stored: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _seed(trainer, resume_position(trainer)[0])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seeded_epoch = -1
        if resume_position(trainer)[1]:  # within an epoch
            self._restore(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch and not trainer.fit_loop.is_resuming:  # else the order is drawn
            _seed(trainer, trainer.current_epoch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stored and in_training(trainer):
            self._restore(trainer)  # its loader has drawn a number

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.stored = []
        if trainer.current_epoch != self.seeded_epoch:
            self.seeded_epoch = trainer.current_epoch
            _seed(trainer, trainer.current_epoch)

    def on_save_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng_states"] = gather(trainer, collect())

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        self.stored = checkpoint.get("rng_states", [])

    def _restore(self, trainer: Trainer) -> None:
        if len(self.stored) == trainer.world_size:
            restore(self.stored[trainer.global_rank])
            self.seeded_epoch = trainer.current_epoch


def _seed(trainer: Trainer, epoch: int) -> None:
    if (seed := os.environ.get("PL_GLOBAL_SEED")) is None:  # seed_everything=false
        return
    mixed = np.random.SeedSequence([int(seed), epoch, trainer.global_rank])
    value = int(mixed.generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def collect() -> dict[str, Any]:
    """Return the state of all generators, as torch.load(weights_only=True) takes it."""
    state: Any = np.random.get_state()
    kind, keys, *rest = state
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
        "torch.cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(states: dict[str, Any]) -> None:
    """Set all generators to what `collect` returned."""
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["torch.cuda"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, state, gauss = states["python"]
    random.setstate((version, tuple(state), gauss))
