"""What a person reads at the end of a training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from anneal.callbacks.checkpoint import Checkpoint
from anneal.runs.ended import why_told


def summary(
    trainer: Trainer,
    metrics: Mapping[str, Any],
    seconds: float,
    samples_per_second: float,
    folder: Path,
    looks: Sequence[str],
) -> str:
    """A few lines: best and last validation, test, time, speed, and where to look.

    The time is that of training with its validations and checkpoints, the speed of training alone.
    """
    lines: list[tuple[str, str]] = []
    checkpoint = trainer.checkpoint_callback
    monitor = "val/acc"
    if isinstance(checkpoint, Checkpoint) and checkpoint.best_model_score is not None:
        monitor = str(checkpoint.monitor)
        name = Path(checkpoint.best_model_path).name
        lines.append((f"best {monitor}", f"{float(checkpoint.best_model_score):.4f}   {name}"))
    tested = f"test/{monitor.removeprefix('val/')}"
    for label, key in {f"last {monitor}": monitor, tested: tested}.items():
        if key in metrics:
            lines.append((label, f"{float(metrics[key]):.4f}"))
    if reason := why_ended(trainer):
        lines.append(("ended", reason))
    if samples_per_second:  # else it was trained before
        lines.append(("time", f"{seconds:.1f} s, {samples_per_second:,.0f} samples/s in training"))
    lines.append(("folder", str(folder)))
    lines += [("look", look) for look in looks if look]
    return "\n" + "\n".join(f"{name:<14} {text}" for name, text in lines)


def why_ended(trainer: Trainer) -> str:
    """Return why a training has ended before its `max_epochs`, or an empty string."""
    if trainer.global_step >= trainer.max_steps > -1:
        return f"after max_steps={trainer.max_steps}"
    epoch = trainer.fit_loop.epoch_progress.current.ready - 1
    return f"in epoch {epoch}: {why_told(trainer)}" if trainer.should_stop else ""
