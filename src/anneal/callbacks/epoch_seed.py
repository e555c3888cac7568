"""Random numbers that follow from seed, epoch and process, and go on where a run stopped."""

import os
import random
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, LightningModule, Trainer


class SeedEveryEpoch(Callback):
    """Seeds Python, NumPy and torch at the first batch of every epoch, from (seed, epoch, process).

    So dropout differs between processes, which Lightning seeds alike, and a run resumed after an
    epoch draws what it would have drawn, instead of the first epoch's numbers again. A checkpoint
    from within an epoch holds the state of all processes' generators.
    """

    def __init__(self) -> None:
        self.seeded_epoch = -1
        self.stored: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seeded_epoch = -1

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not in on_train_epoch_start: after it, the loader of a run's later epochs draws a number,
        # and that of its first epoch has drawn it before.
        if trainer.current_epoch == self.seeded_epoch:
            return
        self.seeded_epoch = trainer.current_epoch
        stored, self.stored = self.stored, []
        if batch_idx and len(stored) == trainer.world_size:
            _set_rng_states(_with_arrays(stored[trainer.global_rank]))
            return
        if (seed := os.environ.get("PL_GLOBAL_SEED")) is None:  # seed_everything=false
            return
        mixed = np.random.SeedSequence([int(seed), trainer.current_epoch, trainer.global_rank])
        value = int(mixed.generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        own = _plain(_collect_rng_states())
        states = [own]
        if trainer.world_size > 1:
            states = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(states, own)
        checkpoint["rng_states"] = states

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.stored = checkpoint.get("rng_states", [])


def _plain(states: dict[str, Any]) -> dict[str, Any]:
    """NumPy's array as a list, for torch.load(weights_only=True)."""
    kind, keys, *rest = states["numpy"]
    return {**states, "numpy": [kind, keys.tolist(), *rest]}


def _with_arrays(states: dict[str, Any]) -> dict[str, Any]:
    kind, keys, *rest = states["numpy"]
    return {**states, "numpy": (kind, np.array(keys, dtype=np.uint32), *rest)}
