"""MNIST by lightning-hydra-template and by pytorch/examples, against `python train.py`.

Each trains as its authors set it up, for as many epochs, on the complete MNIST and a thread each:
the template's `src/train.py` (a multilayer perceptron) against `MLP` with more units, and the
example's `mnist/main.py` (a convolutional net) against configs/mnist_fast.yaml. The first step is
taken from the prompt until a callback ends the process after it (the example: until it prints that
step's loss). The time of an epoch, with its validation and its share of the test, is that of the
whole command without the start. The accuracy is that of the test at the end: the template's on
10,000 pictures of its own split, the others' on the official ones.

The template needs hydra-core, hydra-colorlog and rootutils, on PYTHONPATH if not installed.

    python benchmarks/peers.py MNIST_ROOT --template=CHECKOUT --examples=CHECKOUT
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from training import ROOT, TRAIN
from turns import Row, hand_over, in_turns, ratio

# What the template's checkpoint has in it, torch refuses since 2.6 without this.
ENV = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
ENV["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent)])
FIRST_STEP = "--trainer.callbacks+=first_step.FirstStep"
LIKE_THE_TEMPLATE = [
    "--model=MLP",
    "--model.depth=3",
    "--model.width=128",
    "--model.optimizer=Adam",
    "--model.optimizer.lr=0.001",
    "--data=MNISTDataModule",
    "--data.dataset=MNIST",
    "--data.val_size=5000",
    "--data.batch_size=128",
]


class Contest(NamedTuple):
    """Commands of a peer and of ours: to the first step, and for all epochs."""

    peer_first: list[str]
    peer_all: list[str]
    until: str | None
    ours: list[str]


def template(checkout: Path, data: Path, epochs: int) -> Contest:
    peer = [sys.executable, str(checkout / "src/train.py"), f"paths.data_dir={data}/"]
    return Contest(
        [*peer, "+callbacks.first_step._target_=first_step.FirstStep"],
        [*peer, f"trainer.max_epochs={epochs}"],
        None,
        ["--config=empty.yaml", *LIKE_THE_TEMPLATE],
    )


def example(checkout: Path, epochs: int) -> Contest:
    peer = [sys.executable, "-u", str(checkout / "mnist/main.py"), f"--epochs={epochs}"]
    config = f"--config={ROOT / 'configs/mnist_fast.yaml'}"
    return Contest(peer, peer, r"Train Epoch: 1 \[0/", [config])


def run(command: Sequence[str], folder: Path, until: str | None = None) -> tuple[float, str]:
    """Seconds until the command has ended or printed what `until` finds, and what it printed."""
    shown = ""
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **ENV},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            shown += line
            if until and re.search(until, line):
                process.kill()
                return time.perf_counter() - start, shown
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n" + "\n".join(shown.splitlines()[-20:]))
    return time.perf_counter() - start, shown


def accuracy(shown: str) -> float:
    """The test's, in percent."""
    counted = re.findall(r"Accuracy: (\d+)/(\d+)", shown)
    if counted:
        return 100 * int(counted[-1][0]) / int(counted[-1][1])
    return 100 * float(re.findall(r"test/acc[\s│|]+([\d.]+)", shown)[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mnist", type=Path, help="folder with MNIST/raw, unpacked")
    parser.add_argument(
        "--template", type=Path, help="checkout of ashleve/lightning-hydra-template"
    )
    parser.add_argument("--examples", type=Path, help="checkout of pytorch/examples")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--times", type=int, default=2)
    args = parser.parse_args()
    data = args.mnist.resolve()
    contests = {}
    if args.template:
        contests["template"] = template(args.template.resolve(), data, args.epochs)
    if args.examples:
        contests["example"] = example(args.examples.resolve(), args.epochs)
    rows = []
    for name, contest in contests.items():
        with tempfile.TemporaryDirectory() as temporary:
            (Path(temporary) / "data").symlink_to(data)  # where the example looks: ../data
            folder = Path(temporary) / "work"
            folder.mkdir()
            (folder / "empty.yaml").write_text("{}\n")
            rows += rows_of(name, contest, folder, data, args.epochs, args.times)
    hand_over(rows)


def rows_of(
    name: str, contest: Contest, folder: Path, data: Path, epochs: int, times: int
) -> list[Row]:
    """First step, epoch and accuracy of ours and the peer's, in turns."""
    ours = [
        sys.executable,
        TRAIN,
        *contest.ours,
        f"--data.root={data}",
        "--trainer.accelerator=cpu",
    ]
    right: dict[str, list[float]] = {"ours": [], "peer": []}

    def whole(who: str, command: list[str]) -> float:
        spent, shown = run(command, folder)
        right[who].append(accuracy(shown))
        return spent

    found = in_turns(
        {
            "ours first": lambda: run([*ours, FIRST_STEP], folder)[0],
            "peer first": lambda: run(contest.peer_first, folder, contest.until)[0],
            "ours": lambda: whole("ours", [*ours, f"--trainer.max_epochs={epochs}"]),
            "peer": lambda: whole("peer", contest.peer_all),
        },
        times,
    )
    first = [found["ours first"], found["peer first"]]
    epoch = [
        [(all_ - start) / epochs for all_, start in zip(found[who], starts, strict=True)]
        for who, starts in zip(("ours", "peer"), first, strict=True)
    ]
    rows = []
    for what, pair in {"the first step": first, "an epoch": epoch}.items():
        value, text = ratio(*pair)
        here, peer = (f"{statistics.median(one):.1f} s" for one in pair)
        rows.append(Row(f"{name}: {what}", value, {"here": here, "peer": peer, "ratio": text}))
    here, peer = (statistics.mean(right[who]) for who in ("ours", "peer"))
    cells = {
        "here": f"{here:.2f} %",
        "peer": f"{peer:.2f} %",
        "ratio": f"{here - peer:+.2f} points",
    }
    return [*rows, Row(f"{name}: test accuracy after {epochs} epochs", here - peer, cells)]


if __name__ == "__main__":
    main()
