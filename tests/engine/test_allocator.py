"""What a training on the CPU frees stays with the process."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource
import sys
sys.path.insert(0, ROOT)
import torch
from anneal.testing import main

def faults():
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        kept = [torch.ones(2**22) for _ in range(8)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
main(["fit", "--trainer.fast_dev_run=true"])
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
def test_a_step_takes_the_memory_that_the_step_before_has_freed(tmp_path):
    # From a fixed start: without it glibc's own threshold moves with what has been freed.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", f"ROOT = {root!r}\n{PROGRAM}"]
    shown = subprocess.run(
        command, cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    ).stdout
    before, after = map(int, shown.splitlines()[-1].split())
    assert before > 1000  # of the 32,768 pages of 4 KiB
    assert after < 100
