"""Random numbers that follow from seed, epoch and process."""

import os
import random

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class EpochSeed(Callback):
    """Seeds Python, NumPy and torch at the start of every epoch from (seed, epoch, process).

    So dropout differs between processes, which Lightning seeds alike, and a resumed run draws
    what it would have drawn instead of the first epoch's numbers again.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (seed := os.environ.get("PL_GLOBAL_SEED")) is None:  # seed_everything=false
            return
        mixed = np.random.SeedSequence([int(seed), trainer.current_epoch, trainer.global_rank])
        value = int(mixed.generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)
