"""`python train.py` in a process of its own, and what its last lines say."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "train.py")
sys.path += [str(ROOT), str(ROOT / "tests/engine")]
import yours  # noqa: E402, F401  the project's classes, whatever the package is called


class Trained(NamedTuple):
    """What a training has come to.

    Attributes:
        accuracy: Of the test, or of the last validation if there is none.
        seconds: Of the training, with validation.
        samples_per_second: Without validation.
        command: Seconds from the prompt to the end, with the start and the test.
    """

    accuracy: float
    seconds: float
    samples_per_second: float
    command: float


def trained(words: Sequence[str], threads: int = 1, accelerator: str = "cpu") -> Trained:
    """Trains in a folder of its own, with W&B offline as for who has no account."""
    env = {
        **os.environ,
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    command = [sys.executable, TRAIN, "fit", *words, f"--trainer.accelerator={accelerator}"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "empty.yaml").write_text("{}\n")
        start = time.perf_counter()
        process = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        whole = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{' '.join(command)}:\n{process.stderr}")
    shown = process.stdout
    seconds = re.search(r"^time +([\d.]+) s, ([\d,]+) samples/s", shown, re.MULTILINE)
    accuracy = re.findall(r"^(?:last val|test)/acc +([\d.]+)", shown, re.MULTILINE)
    assert seconds, shown
    return Trained(
        float(accuracy[-1]) if accuracy else float("nan"),
        float(seconds[1]),
        float(seconds[2].replace(",", "")),
        whole,
    )
