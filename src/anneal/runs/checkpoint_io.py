"""Checkpoint files that are there as a whole or not at all."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from anneal.errors import UserError
from anneal.runs.config import FORMAT
from anneal.system import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place, to the disk, and then replace the old one.

    Lightning writes into /tmp and moves: on another file system that is a copy, which a full disk
    or a kill cuts short under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Save all of it or raise, with what was there before still there.

        Raises:
            UserError: The disk is full, or the folder can't be written.
        """
        checkpoint = {**checkpoint, "format": FORMAT}
        if "://" in str(path):  # a bucket takes whole objects only
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()  # torch's own writer hides why a disk refuses
        torch.save(checkpoint, buffer)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(Path(path), sync=True) as part:
                part.write_bytes(buffer.getbuffer())
        except OSError as e:
            raise UserError(
                f"can't save {path}: {e.strerror}; the checkpoints beside it are whole", status=1
            ) from e
