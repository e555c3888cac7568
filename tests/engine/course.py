"""A course to be disturbed: samples that say which they are, and a callback that ends the run."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from anneal import InMemoryBatches
from anneal.lightning_internals import callback_of
from anneal.progress import Clock


class Numbers(pl.LightningDataModule):
    """96 images to train on and 20 to validate; the first pixel of each is its number.

    Args:
        batch_size: Samples in a batch of one process.
        noise: Whether training images get noise from torch's own generator.
    """

    class_names = tuple("0123456789")

    def __init__(self, batch_size: int = 12, noise: bool = True) -> None:
        super().__init__()
        self.noise = noise
        self.batch_size = batch_size

    def _batches(self, n: int, shuffle: bool) -> InMemoryBatches:
        images = torch.randint(0, 256, (n, 1, 28, 28), generator=torch.Generator().manual_seed(n))
        images[:, 0, 0, 0] = torch.arange(n)
        labels = images[:, 0, 5, 5] % 10
        images = images.to(torch.uint8)
        return InMemoryBatches.in_run(self.trainer, images, labels, self.batch_size, shuffle)

    def train_dataloader(self) -> InMemoryBatches:
        return self._batches(96, shuffle=True)

    def val_dataloader(self) -> InMemoryBatches:
        return self._batches(20, shuffle=False)

    def test_dataloader(self) -> InMemoryBatches:
        return self._batches(20, shuffle=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Add the noise to a training batch."""
        if not self.trainer.training or not self.noise:
            return batch
        images, labels = batch
        noisy = images // 2 + torch.randint(0, 2, images.shape, dtype=torch.uint8)
        noisy[:, 0, 0, 0] = images[:, 0, 0, 0]
        return noisy, labels


class Course(pl.Callback):
    """Writes the numbers of each batch, and ends the run where the environment says.

    COURSE_END is `how hook epoch batch`; validations are counted in the epoch as batches are.
    """

    def __init__(self) -> None:
        self.end = os.environ.get("COURSE_END", "").split()
        self.validations = 0

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        self.validations = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        clock = callback_of(trainer, Clock)
        line = {
            "epoch": trainer.current_epoch,
            "batch": batch_idx,
            "place": clock.samples,
            "numbers": batch[0][:, 0, 0, 0].tolist(),
            "noise": int(batch[0].sum()),
        }
        name = f"batches-{os.environ.get('COURSE_LEG', 1)}-{trainer.global_rank}"
        with (Path(trainer.default_root_dir) / name).open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._may_end(trainer, "batch", batch_idx)

    def on_train_batch_end(self, trainer: Any, m: Any, o: Any, batch: Any, batch_idx: int) -> None:
        self._may_end(trainer, "after", batch_idx)

    def on_validation_start(self, trainer: Any, *args: Any) -> None:
        self.validations += not trainer.sanity_checking

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        if not trainer.sanity_checking:
            self._may_end(trainer, "validation", self.validations)

    def on_validation_end(self, trainer: Any, *args: Any) -> None:
        if not trainer.sanity_checking:
            self._may_end(trainer, "validated", self.validations)

    def _may_end(self, trainer: Any, hook: str, batch: int) -> None:
        if [hook, str(trainer.current_epoch), str(batch)] != self.end[1:]:
            return
        how, self.end = self.end[0], []
        if how == "kill":
            os.killpg(os.getpgrp(), signal.SIGKILL)
        if how == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        if how == "time":
            time.sleep(1.2)
        if how == "stop":
            trainer.should_stop = True
        if how == "error":
            raise RuntimeError("broken")
