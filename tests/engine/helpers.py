"""What the tests of the engine share: a small recipe, and what makes them fast and sure."""

import re
import time
from pathlib import Path

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


def idle_time() -> float:
    """Seconds on a clock that stands still while anything on this machine waits for a core.

    A limit on it is one on the time that an idle machine takes. Where the system does not tell, it
    is the time.
    """
    pressure = Path("/proc/pressure/cpu")
    waited = re.search(r"some .*total=(\d+)", pressure.read_text()) if pressure.exists() else None
    return time.monotonic() - (int(waited[1]) / 1e6 if waited else 0)


def is_alive(pid: int) -> bool:
    """Whether a process runs, one that has ended and is not yet waited for left out."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
