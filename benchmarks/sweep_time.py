"""Time of a sweep of short trials over that of as many command lines.

    python benchmarks/sweep_time.py
    python benchmarks/sweep_time.py --trials=4

Each trains an MLP for an epoch on the digits; one after the other both times, on one thread.
"""

import argparse
import os
import shutil
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from training import ROOT, TRAIN
from turns import Row, hand_over, in_turns, ratio, seconds

WORDS = ["--config", str(ROOT / "configs/mnist_mlp.yaml"), "--trainer.max_epochs=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--times", type=int, default=2)
    args = parser.parse_args()
    trials = args.trials
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    seeds = list(range(trials))
    content = {
        "program": TRAIN,
        "method": "grid",
        "metric": {"name": "val/acc", "goal": "maximize"},
        "command": ["${env}", "${interpreter}", "${program}", *WORDS, "${args}"],
        "parameters": {"seed_everything": {"values": seeds}},
    }
    with TemporaryDirectory() as folder:
        (Path(folder) / "sweep.yaml").write_text(yaml.safe_dump(content))
        sweep = [sys.executable, "-m", "anneal.sweep", "sweep.yaml"]
        typed = [[sys.executable, TRAIN, *WORDS, f"--seed_everything={seed}"] for seed in seeds]

        def swept() -> float:
            shutil.rmtree(Path(folder) / "runs", ignore_errors=True)  # or it has nothing to do
            return seconds(sweep, folder)

        ways = {"sweep": swept, "typed": lambda: sum(seconds(words, folder) for words in typed)}
        found = in_turns(ways, args.times)
    value, text = ratio(found["sweep"], found["typed"])
    here, peer = (f"{statistics.median(found[way]):.1f} s" for way in ways)
    cells = {"sweep": here, "command lines": peer, "ratio": text}
    hand_over([Row(f"{trials} trials", value, cells)])


if __name__ == "__main__":
    main()
