"""Whether a run has ended, or can resume from a checkpoint; what a person reads when it can't."""

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from anneal.errors import UserError
from anneal.lightning_internals import callbacks_of
from anneal.runs.config import flatten, parse
from anneal.runs.metrics import of_run

TIME_IS_OVER = "max_time is over"
ADAMW = (None, "torch.optim.AdamW")  # None is what a Classifier makes AdamW of
Differences = list[tuple[str, Any, Any]]


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
    how = "change --trainer.callbacks, or start a new run from it with --run_name"
    stop = "stopped early at epoch {epoch} ({why})".format(**checkpoint["stopped"])
    return f"{stop}: nothing is left. To train on, {how}."


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


def nothing_left(checkpoint: dict[str, Any], trainer: Trainer) -> str:
    """Return that a checkpoint has done all that the trainer is to do, or an empty string."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    position = checkpoint.get("position", {})
    line = "has done {} of {} {}: nothing is left. To train on, raise --trainer.{}."
    epochs, max_epochs = position.get("epoch", progress["processed"]), trainer.max_epochs
    if max_epochs not in (None, -1) and epochs >= max_epochs:
        return line.format(epochs, max_epochs, "epochs", "max_epochs")
    if position.get("validation_is_due"):
        return ""
    steps, max_steps = checkpoint["global_step"], trainer.max_steps
    if max_steps != -1 and steps >= max_steps:
        return line.format(steps, max_steps, "steps", "max_steps")
    for timer in callbacks_of(trainer, Timer):
        if (limit := timer.time_remaining()) is not None:
            state = checkpoint["callbacks"].get(timer.state_key, {}).get("time_elapsed", {})
            if (seconds := state.get("train", 0)) >= limit:
                return line.format(f"{seconds:.0f}", f"{limit:.0f}", "seconds", "max_time")
    return ""


def lr_jump(
    before: list[float], now: list[float], scheduler: str, had: int | None, has: int | None
) -> str:
    """Return that a resume changes a learning rate by more than a hundredth, why, and how not to.

    The learning rates are those of the groups, in a run that `had` so many steps and now `has`.
    """
    pairs = zip(before, now, strict=False)
    old, new = max(pairs, key=lambda both: abs(both[0] - both[1]) / (max(both) or 1))
    if abs(old - new) <= 0.01 * max(old, new):
        return ""
    why = "the schedule is configured otherwise now"
    if had != has:
        why = f"{scheduler} has {has} steps now" + (f", and had {had}" if had else "")
    return (
        f"lr {old:.3g} -> {new:.3g} with this resume: {why}. To stay at {old:.3g}: "
        f"--model.schedule.scheduler=null --model.optimizer.lr={old:.3g}"
    )


def differences(stored: str | None, now: str) -> Differences:
    """Return (key, value there, value now) of what differs in the model of two configurations.

    Both are YAML; a checkpoint that was not saved by the command line has none.
    """
    if stored is None:
        return []
    models = ({"model": parse(text, "the checkpoint")["model"]} for text in (stored, now))
    a, b = map(dict, map(flatten, models))
    return [(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)]


def check_optimizer(found: Differences) -> None:
    """Raise UserError if the optimizer's stored state doesn't fit the optimizer asked for."""
    for key, stored, now in found:
        if key.endswith(".rules"):
            same = _groups_of(stored) == _groups_of(now)
            change = "they match other parameters than in the checkpoint, or another optimizer"
        else:
            decides = key.endswith(("optimizer.class_path", "decay_norm", "decay_bias"))
            same = not decides or (stored in ADAMW and now in ADAMW)
            change = f"{stored} in the checkpoint, {now} now"
        if not same:
            so = "the optimizer's state doesn't fit, so this can't go on; start a new run for it"
            raise UserError(f"{key}: {change}: {so}")


def _groups_of(rules: Any) -> list[Any]:
    """Return what of some rules decides which parameters are in a group, and its optimizer."""
    found = [rule.get("init_args", rule) for rule in rules or ()]
    decays = ["lr_decay" in (rule.get("settings") or {}) for rule in found]
    optimizers = [(rule.get("optimizer") or {}).get("class_path") for rule in found]
    return [*zip((rule["match"] for rule in found), optimizers, decays, strict=True)]


def state_dict_mismatch(path: str, message: str, found: Differences) -> str:
    """Return why a checkpoint's weights don't fit the module, from load_state_dict's message."""
    pattern = r"size mismatch for (\S+): .*?Size\((.*?)\) from.*?Size\((.*?)\)"
    mismatches = [f"{n} is {a}, not {b}" for n, a, b in re.findall(pattern, message)]
    reason = "; ".join(mismatches[:2]) or message.strip().splitlines()[-1].strip()
    return f"the weights in {path} don't fit the model: {reason} ({_in_words(found)})"


def optimizer_mismatch(path: str, found: Differences) -> str:
    """Return why an optimizer's state doesn't fit other groups of parameters, and what would."""
    return (
        f"the optimizer's state in {path} is of other parameters than are trained now "
        f"({_in_words(found) or 'the model is another'}): this can't go on; start a new run, which "
        f"--model.weights={path} lets begin with these weights if the model has that option"
    )


def _in_words(found: Differences) -> str:
    return "; ".join(f"{key}: {stored} there, {now} now" for key, stored, now in found)
