"""Random numbers that follow from seed, epoch and process."""

import os
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class EpochSeed(Callback):
    """Seeds Python, NumPy and torch at the first batch of every epoch, from (seed, epoch, process).

    So dropout differs between processes, which Lightning seeds alike, and a run resumed after an
    epoch draws what it would have drawn, instead of the first epoch's numbers again.
    """

    def __init__(self) -> None:
        self.seeded_epoch = -1

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
        if (seed := os.environ.get("PL_GLOBAL_SEED")) is None:  # seed_everything=false
            return
        mixed = np.random.SeedSequence([int(seed), trainer.current_epoch, trainer.global_rank])
        value = int(mixed.generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)
