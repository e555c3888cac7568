"""A callback that ends a training's process after its first step; it imports nothing more."""

import os
from typing import Any

from lightning.pytorch import Callback


class FirstStep(Callback):
    """Ends the process after it."""

    def on_train_batch_end(self, *args: Any) -> None:
        os._exit(0)
