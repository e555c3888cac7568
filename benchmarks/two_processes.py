"""Images per second of two processes with a thread each, against one process with one thread.

Both train configs/mnist.yaml with batches of 64 a process; two processes average their gradients
over gloo at every step. Needs two cores that have nothing else to do.

    python benchmarks/two_processes.py
"""

import argparse
import statistics

from training import ROOT, trained
from turns import Row, hand_over, in_turns, ratio


def speed(devices: int) -> float:
    """Images per second of all processes."""
    config = f"--config={ROOT / 'configs/mnist.yaml'}"
    words = [config, "--trainer.max_epochs=3", f"--trainer.devices={devices}"]
    return trained(words, threads=1).samples_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    found = in_turns({"one": lambda: speed(1), "two": lambda: speed(2)}, args.times)
    value, text = ratio(found["two"], found["one"])
    one, two = (f"{statistics.median(found[name]):,.0f} images/s" for name in ("one", "two"))
    hand_over([Row("two processes", value, {"here": two, "one process": one, "ratio": text})])


if __name__ == "__main__":
    main()
