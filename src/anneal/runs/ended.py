"""Whether a run has ended before its last epoch because a callback asked for it, and was tested."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from anneal.lightning_internals import callbacks_of
from anneal.runs.config import parse
from anneal.runs.metrics import of_run

TIME_IS_OVER = "max_time is over"


def why_told(trainer: Trainer) -> str:
    """Return why a training was told to stop."""
    left = [timer.time_remaining() for timer in callbacks_of(trainer, Timer)]
    if any(seconds is not None and seconds <= 0 for seconds in left):
        return TIME_IS_OVER
    said = [c.stopping_reason_message for c in callbacks_of(trainer, EarlyStopping)]
    why = next(filter(None, said), "a callback or the module has set should_stop")
    return why.removesuffix(" Signaling Trainer to stop.").rstrip(".")


def stop_of(trainer: Trainer, config: str) -> dict[str, Any] | None:
    """Return what a checkpoint keeps of a stop that a callback or the module has asked for.

    None: nobody has, or it was the clock of `max_time`, which a resume may set anew.
    """
    if not trainer.should_stop or (why := why_told(trainer)) == TIME_IS_OVER:
        return None
    return {"epoch": trainer.current_epoch, "why": why, "by": _who_may_stop(trainer, config)}


def was_stopped(checkpoint: dict[str, Any], trainer: Trainer, config: str) -> bool:
    """Return whether a run was told to stop, and its callbacks are the same now."""
    stop = checkpoint.get("stopped")
    return bool(stop) and stop["by"] == _who_may_stop(trainer, config)  # type: ignore[index]


def stopped_early(checkpoint: dict[str, Any], trainer: Trainer, config: str) -> str:
    """Return that a run was told to stop and has nothing left to do, or an empty string."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    done = epochs >= (trainer.min_epochs or 0)
    done = done and checkpoint["global_step"] >= (trainer.min_steps or 0)
    if not done or not was_stopped(checkpoint, trainer, config):
        return ""
    return (
        "stopped early at epoch {epoch} ({why}): nothing is left. To train on, change "
        "--trainer.callbacks, or start a new run from it with --run_name."
    ).format(**checkpoint["stopped"])


def is_tested(folder: Path, step: int) -> bool:
    """Return whether a run's folder has the result of a test after so many optimizer steps."""
    table = of_run(folder)
    if not table.columns:  # it has no logger
        return any(folder.glob("test-*"))
    lines = [row for row in table.rows if row.get("step") == str(max(0, step - 1))]
    return any(name.startswith("test/") and row[name] for row in lines for name in row)


def _who_may_stop(trainer: Trainer, config: str) -> list[Any]:
    """Return the callbacks of a configuration, and those that were given from Python."""
    others = [
        f"{c.state_key} {getattr(c, 'patience', '')}"
        for c in callbacks_of(trainer)
        if isinstance(c, EarlyStopping) or not type(c).__module__.startswith(("anneal", "light"))
    ]
    return [parse(config, "config.yaml")["trainer"].get("callbacks"), others]
