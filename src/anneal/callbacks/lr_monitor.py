"""The learning rate of every optimizer step, one curve for each parameter group."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor as LightningLearningRateMonitor

from anneal.callbacks import is_logged


class LearningRateMonitor(LightningLearningRateMonitor):
    """Logs `lr` (or `lr/decay` and `lr/no_decay`) at every optimizer step that changes it.

    Lightning's own looks every `log_every_n_steps` only, which hides a short warmup, and can't
    run without a logger.

    Args:
        log_momentum: Whether momentum (beta1 in Adam) is logged too.
        log_weight_decay: Whether weight decay is logged too.
    """

    def __init__(self, log_momentum: bool = False, log_weight_decay: bool = False) -> None:
        super().__init__("step", log_momentum, log_weight_decay)
        self.logged: dict[str, float] = {}
        self.step = -1

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.step = -1
        if trainer.loggers:
            super().on_train_start(trainer, *args, **kwargs)

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if not trainer.loggers or step == self.step:  # in the middle of an accumulation
            return
        self.step = step
        stats = self._extract_stats(trainer, "any")
        for history in self.lrs.values():
            history.clear()  # Lightning's keeps every value for ever
        if stats != self.logged or is_logged(trainer, step):
            self.logged = stats
            for logger in trainer.loggers:
                logger.log_metrics({"epoch": trainer.current_epoch, **stats}, step=step)

    def state_dict(self) -> dict[str, float]:
        return self.logged

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.logged = state_dict  # a resumed run does not log again what has not changed
