"""Checkpoint files that are there as a whole or not at all."""

import io
from contextlib import suppress
from pathlib import Path
from pickle import PicklingError
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule
from torch.serialization import get_unsafe_globals_in_checkpoint

from anneal.errors import UserError
from anneal.runs.config import FORMAT
from anneal.system import atomic_write

HYPERPARAMETERS = [c.CHECKPOINT_HYPER_PARAMS_KEY for c in (LightningModule, LightningDataModule)]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place, to the disk, and then replace the old one.

    Lightning writes into /tmp and moves: on another file system that is a copy, which a full disk
    or a kill cuts short under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Save all of it or raise, with what was there before still there.

        Hyperparameters that are no plain values are left out: the configuration stands beside them.
        """
        kept = {key: _plain(checkpoint[key]) for key in HYPERPARAMETERS if key in checkpoint}
        checkpoint = {**checkpoint, **kept, "format": FORMAT}
        if "://" in str(path):  # a bucket takes whole objects only
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = _in_memory(checkpoint)  # torch's own writer hides why a disk refuses
        if kinds := get_unsafe_globals_in_checkpoint(buffer):
            states = {**checkpoint.pop("callbacks", {}), **checkpoint}
            names = ", ".join(states.keys() - _plain(states).keys())
            raise UserError(
                f"can't save {path}: {names} holds {', '.join(kinds)}, which no resume would read: "
                "keep numbers, texts, lists, dictionaries and tensors in a state",
                status=1,
            )
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(Path(path), sync=True) as part:
                part.write_bytes(buffer.getbuffer())
        except OSError as e:
            raise UserError(
                f"can't save {path}: {e.strerror}; the checkpoints beside it are whole", status=1
            ) from e


def _in_memory(content: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return buffer


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that `torch.load(weights_only=True)` reads."""
    kept = {}
    for name, value in values.items():
        with suppress(AttributeError, TypeError, PicklingError):  # a lambda, a generator, ...
            if not get_unsafe_globals_in_checkpoint(_in_memory(value)):
                kept[name] = value
    return kept
