"""Whether a run can go on from a checkpoint, and what a person reads when it can't."""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from lightning.pytorch import Trainer

from anneal.errors import UserError

ADAMW = (None, "torch.optim.AdamW")  # None is what a Classifier makes AdamW of
Differences = list[tuple[str, Any, Any]]


def nothing_left(checkpoint: dict[str, Any], trainer: Trainer) -> str:
    """That a checkpoint has done all that the trainer is to do; an empty string if it hasn't."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    line = "has done {} of {} {}: nothing is left. To train on, raise --trainer.{}."
    epochs, max_epochs = progress["processed"], trainer.max_epochs
    if max_epochs not in (None, -1) and epochs >= max_epochs:
        return line.format(epochs, max_epochs, "epochs", "max_epochs")
    steps, max_steps = checkpoint["global_step"], trainer.max_steps
    if max_steps != -1 and steps >= max_steps:
        return line.format(steps, max_steps, "steps", "max_steps")
    return ""


def differences(stored: str | None, now: str) -> Differences:
    """Keys of the model that differ between two configurations in YAML: (key, stored, now).

    None as the stored one, of a checkpoint that was not saved by the command line, has none.
    """
    if stored is None:
        return []
    a, b = (dict(_leaves(yaml.safe_load(text)["model"], "model")) for text in (stored, now))
    return [(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)]


def check_optimizer(found: Differences) -> None:
    """Raises UserError if the optimizer's stored state doesn't fit the optimizer asked for."""
    for key, stored, now in found:
        same = stored in ADAMW and now in ADAMW
        if key.endswith(("optimizer.class_path", "decay_norm", "decay_bias")) and not same:
            raise UserError(
                f"{key}: {stored} in the checkpoint, {now} now: the optimizer's state doesn't "
                "fit, so this can't go on; start a new run for it"
            )


def state_dict_mismatch(path: str, message: str, found: Differences) -> str:
    """Why a checkpoint's weights don't fit the module, from torch's message.

    Args:
        path: The checkpoint.
        message: That of load_state_dict's RuntimeError.
        found: The differences in configuration, which are the likely cause.
    """
    pattern = r"size mismatch for (\S+): .*?Size\((.*?)\) from.*?Size\((.*?)\)"
    mismatches = [f"{n} is {a}, not {b}" for n, a, b in re.findall(pattern, message)]
    reason = "; ".join(mismatches[:2]) or message.strip().splitlines()[-1].strip()
    changed = "; ".join(f"{key}: {stored} there, {now} now" for key, stored, now in found)
    return f"the weights in {path} don't fit the model: {reason} ({changed})"


def _leaves(tree: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries, under their keys as one types them."""
    if not isinstance(tree, dict):
        yield key, tree
        return
    for name, value in tree.items():
        yield from _leaves(value, key if name == "init_args" else f"{key}.{name}")
