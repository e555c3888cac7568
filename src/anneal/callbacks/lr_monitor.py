"""The learning rate of every optimizer step, one curve for each parameter group."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor as LightningLearningRateMonitor
from torch import Tensor

from anneal.lightning_internals import logged_step
from anneal.progress import is_logged, log, loggers_with

STEP = 0.02  # of the last value: a change that is worth a row of its own


class LearningRateMonitor(LightningLearningRateMonitor):
    """Log `lr` (or `lr/decay` and `lr/no_decay`) at every optimizer step that changes it.

    Lightning's own looks every `log_every_n_steps` only, which hides a short warmup, and can't
    run without a logger. `metrics.csv` has every change. W&B, where a row takes a fifth of a small
    network's step, gets those of `log_every_n_steps` and each that is 2 % away from the last row.
    An optimizer that finds its own learning rate has it in `lr/effective`, a curve a group as well.

    Args:
        log_momentum: Whether momentum (beta1 in Adam) is logged too.
        log_weight_decay: Whether weight decay is logged too.
    """

    def __init__(self, log_momentum: bool = False, log_weight_decay: bool = False) -> None:
        super().__init__("step", log_momentum, log_weight_decay)
        self.logged: dict[str, float] = {}
        self.sent: dict[str, float] = {}  # to the loggers whose rows cost time
        self.step = -1

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.step = -1
        if trainer.loggers:
            super().on_train_start(trainer, *args, **kwargs)

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        step = logged_step(trainer)
        if not trainer.loggers or step == self.step:  # in the middle of an accumulation
            return
        self.step = step
        stats = self._extract_stats(trainer, "any")  # Lightning's, as in 2.6.4 to 2.6.6
        stats |= _effective(trainer)
        for history in self.lrs.values():
            history.clear()  # Lightning's keeps every value for ever
        is_due = is_logged(trainer, step)
        if stats == self.logged and not is_due:
            return
        self.logged, sent = stats, self.sent
        send = is_due or stats.keys() != sent.keys()
        send = send or any(abs(v - sent[k]) > STEP * abs(sent[k]) for k, v in stats.items())
        if send:
            self.sent = stats
        log(trainer, stats, step, None if send else loggers_with(trainer, "rows_are_cheap"))

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {"logged": self.logged, "sent": self.sent}

    def load_state_dict(self, state_dict: dict[str, dict[str, float]]) -> None:
        # A resumed run does not log again what has not changed.
        self.logged, self.sent = state_dict["logged"], state_dict["sent"]


def _effective(trainer: Trainer) -> dict[str, float]:
    """Return the learning rates that optimizers keep beside `lr`, as they stand before a step.

    Prodigy's and D-Adaptation's is `d` times `lr`; `schedulefree` tells that of its last step.
    """
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    found = {}
    for i, group in enumerate(groups, 1):
        rate, d = group.get("scheduled_lr"), group.get("d")
        if isinstance(d, float) or (isinstance(d, Tensor) and d.numel() == 1):
            rate = d * group["lr"]
        if rate is not None:
            name = f"/{group.get('name', f'pg{i}')}" if len(groups) > 1 else ""
            found[f"lr/effective{name}"] = float(rate)
    return found
