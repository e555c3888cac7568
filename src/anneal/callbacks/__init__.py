"""Callbacks: only what Lightning lacks."""

from lightning.pytorch import Trainer


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether `step` is one that the trainer's `log_every_n_steps` has logged; 0: none is."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0
