"""The small recipe that the tests of the engine train, and what they wait for."""

import io
import time
from collections.abc import Callable
from typing import Any

from PIL import Image

SMALL = """
trainer:
  max_epochs: 2
  limit_train_batches: 4
  limit_val_batches: 2
  limit_test_batches: 2
  log_every_n_steps: 2
  accelerator: cpu
  logger: false
model:
  class_path: MLP
  init_args:
    width: 8
    depth: 1
    optimizer:
      class_path: SGD
      init_args: {lr: 0.1, momentum: 0.9}
data:
  class_path: MNISTDataModule
  init_args: {batch_size: 32, shift: 1, rotation: 5}
"""


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until a condition holds; after so many seconds the test fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def encoded(image: Image.Image, image_format: str = "JPEG", **options: Any) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()
