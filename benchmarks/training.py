"""`python train.py` in a process of its own, and what its last lines say."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "train.py")


class Trained(NamedTuple):
    """Test accuracy, seconds of training with validation, and images per second without."""

    accuracy: float
    seconds: float
    samples_per_second: float


def trained(words: Sequence[str], threads: int = 1) -> Trained:
    """Trains on a CPU in a folder of its own, with W&B offline as for who has no account."""
    env = {
        **os.environ,
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    command = [sys.executable, TRAIN, "fit", *words, "--trainer.accelerator=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "empty.yaml").write_text("{}\n")
        process = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{' '.join(command)}:\n{process.stderr}")
    shown = process.stdout
    time = re.search(r"^time +([\d.]+) s, ([\d,]+) samples/s", shown, re.MULTILINE)
    assert time, shown
    accuracy = re.search(r"^test/acc +([\d.]+)", shown, re.MULTILINE)
    return Trained(
        float(accuracy[1]) if accuracy else float("nan"),
        float(time[1]),
        float(time[2].replace(",", "")),
    )
