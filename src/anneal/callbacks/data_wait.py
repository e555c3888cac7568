"""How long a training waits for its data."""

import time
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler

from anneal.lightning_internals import callback_of, logged_step
from anneal.progress import Clock, log


class DataWait(Callback):
    """Log `data/wait` after each epoch: the share of its training in which a batch was waited for.

    Validations count on neither side. `share` is the same of all that this process has trained.
    """

    def __init__(self) -> None:
        self.share = self._waited = 0.0
        self._start = self._epoch = 0.0, 0.0  # seconds trained and waited before both

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the profiler tell, which may be anyone's."""
        profiler: Any = trainer.profiler  # type: ignore[attr-defined]
        kind, since, nothing = type(profiler), 0.0, nullcontext()
        if kind is PassThroughProfiler:  # nobody listens, and a step tells it a hundred times
            profiler.profile = lambda _: nothing

        def start(action: str) -> None:
            nonlocal since
            kind.start(profiler, action)
            if action.endswith("train_dataloader_next"):
                since = time.perf_counter()

        def stop(action: str) -> None:
            if action.endswith("train_dataloader_next"):
                self._waited += time.perf_counter() - since
            kind.stop(profiler, action)

        profiler.start, profiler.stop = start, stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if clock := callback_of(trainer, Clock):
            self._start = self._epoch = clock.seconds, self._waited

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        clock = callback_of(trainer, Clock)  # which is brought up to date before
        if clock and clock.seconds > self._epoch[0]:
            now, waited, both = clock.seconds, self._waited, (self._start, self._epoch)
            self.share, share = ((waited - before) / (now - then) for then, before in both)
            log(trainer, {"data/wait": share}, logged_step(trainer) - 1)
            self._epoch = now, waited
