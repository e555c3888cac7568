"""Hints that a training learns nothing."""

import math

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

STILL = 100  # steps after which a loss or weights that have not moved are worth a word
TINY = 1e-6  # of their length: weights that moved less in so many steps have not moved
PIECE = 1000  # numbers of each parameter that are kept to tell
EXPLODED = 1e4  # times the first gradient norm


class LearningHints:
    """Warn once of each sign that nothing is learnt; `NonFiniteGuard` tells it what it has seen.

    The signs are a learning rate of 0, a training loss that stays what it was, weights that do not
    move, and a gradient that has exploded. Those that compare with the first step are not looked
    for in a run that was resumed.
    """

    def __init__(self) -> None:
        self._first_loss: float | None = None
        self._first_norm = 0.0
        self._moved = False
        self._weights: Tensor | None = None
        self._warned: set[str] = set()

    def begin(self, trainer: Trainer, loss: Tensor) -> None:
        """Keep the loss of a run's first batch and the weights after it; nothing later on."""
        if self._first_loss is None:
            self._first_loss, self._weights = float(loss), _pieces(trainer)

    def look(self, trainer: Trainer, loss: float, norm: float, lr: float) -> None:
        """Warn of the signs in a batch's loss, and in its step's gradient norm (0: not known)."""
        step = trainer.global_step
        self._moved = self._moved or loss != self._first_loss
        if not 0 < self._first_norm < math.inf:
            self._first_norm = norm
        if norm > EXPLODED * self._first_norm > 0:
            self._warn(
                f"the gradient's norm was {self._first_norm:.3g} and is {norm:.3g} at step {step}: "
                "lower the learning rate or set trainer.gradient_clip_val"
            )
        if not lr and not largest_lr(trainer):  # of this step and of the next
            self._warn(f"the learning rate is 0 at step {step}: nothing is learnt from here on")
        elif step >= STILL and not self._moved:
            self._warn(
                f"the training loss is {loss:g} at step {step}, as in the beginning: is everything "
                "frozen, or does a layer give the same for all samples?"
            )
        elif step >= STILL and self._weights is not None:
            before, now, self._weights = self._weights, _pieces(trainer), None
            length, way = float(before.norm()), float((now - before).norm())
            if norm and way < TINY * length:
                self._warn(
                    f"the weights have moved by {way / length:.1g} of their length in {step} "
                    f"steps: lr {lr:g} is far too small"
                )

    def _warn(self, message: str) -> None:
        if (beginning := message[:20]) not in self._warned:
            self._warned.add(beginning)
            rank_zero_warn(message)


def largest_lr(trainer: Trainer) -> float:
    """Return the largest learning rate of the first optimizer's parameter groups."""
    return max(float(g["lr"]) for g in trainer.optimizers[0].param_groups)


def _pieces(trainer: Trainer) -> Tensor:
    """Return the beginning of each trained parameter; of one in pieces, this process's."""
    groups = [g for optimizer in trainer.optimizers for g in optimizer.param_groups]
    parts = [p.detach() for g in groups for p in g["params"]]
    local = [p.to_local() if isinstance(p, DTensor) else p for p in parts]
    return torch.cat([p.flatten()[:PIECE].double() for p in local])
