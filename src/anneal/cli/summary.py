"""What a person reads at the end of a training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from anneal.callbacks.checkpoint import Checkpoint


def summary(
    trainer: Trainer,
    metrics: Mapping[str, Any],
    seconds: float,
    samples_per_second: float,
    folder: Path,
    looks: Sequence[str],
) -> str:
    """A few lines: best and last validation, test, time, speed, and where to look.

    Args:
        trainer: After the training.
        metrics: The last values, of validation and test.
        seconds: Duration of the training with its validations and checkpoints.
        samples_per_second: In training alone.
        folder: The run's folder.
        looks: Commands or addresses that show the run.
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
    if samples_per_second:  # else it was trained before
        lines.append(("time", f"{seconds:.1f} s, {samples_per_second:,.0f} samples/s in training"))
    lines.append(("folder", str(folder)))
    lines += [("look", look) for look in looks if look]
    return "\n" + "\n".join(f"{name:<14} {text}" for name, text in lines)
