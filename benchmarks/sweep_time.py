"""Time of a sweep of short trials over that of as many command lines.

    python benchmarks/sweep_time.py
    python benchmarks/sweep_time.py --trials=4

Each trains an MLP for an epoch on the digits; one after the other both times, on one thread.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

ROOT = Path(__file__).parents[1]
WORDS = ["--config", str(ROOT / "configs/mnist_mlp.yaml"), "--trainer.max_epochs=1"]


def seconds(commands: list[list[str]], folder: str) -> float:
    """Of running some commands, one after the other."""
    began = time.monotonic()
    for command in commands:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    trials = parser.parse_args().trials
    train = str(ROOT / "train.py")
    seeds = list(range(trials))
    content = {
        "program": train,
        "method": "grid",
        "metric": {"name": "val/acc", "goal": "maximize"},
        "command": ["${env}", "${interpreter}", "${program}", *WORDS, "${args}"],
        "parameters": {"seed_everything": {"values": seeds}},
    }
    with TemporaryDirectory() as folder:
        (Path(folder) / "sweep.yaml").write_text(yaml.safe_dump(content))
        swept = seconds([[sys.executable, "-m", "anneal.sweep", "sweep.yaml"]], folder)
        typed = seconds(
            [[sys.executable, train, *WORDS, f"--seed_everything={seed}"] for seed in seeds], folder
        )
    print(f"{trials} trials: {swept:.1f} s in a sweep, {typed:.1f} s as command lines", end="")
    print(f", ratio {swept / typed:.2f}")


if __name__ == "__main__":
    main()
