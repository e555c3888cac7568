"""Checkpoint files that are there as a whole or not at all."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from anneal.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and then takes the place of the old one.

    Lightning writes into /tmp and moves: on another file system that is a copy, which a full disk
    or a kill cuts short under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Saves all of it or raises, with what was there before still there.

        Raises:
            UserError: The disk is full, or the folder can't be written.
        """
        if "://" in str(path):  # a bucket takes whole objects only
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()  # torch's own writer hides why a disk refuses
        torch.save(checkpoint, buffer)
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.part")  # one, however often a save is killed
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as e:
            unfinished.unlink(missing_ok=True)
            raise UserError(
                f"can't save {path}: {e.strerror}; the checkpoints beside it are whole", status=1
            ) from e
