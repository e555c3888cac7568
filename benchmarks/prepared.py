"""What training on a prepared copy of a folder of photos costs in accuracy, and what it saves.

configs/photos_resnet18.yaml, shortened, is trained on the folder and on copies of it with smaller
pictures, newly compressed as JPEGs or raw, from the same seeds and with all threads. The difference
of the accuracies on the validation photos, after the last epoch, comes with its 95 % confidence
interval (Student's t over the pairs).

    python benchmarks/prepared.py FOLDER
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from photos_time import ROOT, ours, rows
from turns import hand_over, lead

SHORT_SIDE = 176
COPIES = {"": "--quality=90", ", raw": "--raw"}  # ends of the rows' names, and how to make them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with train/CLASS and val/CLASS")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds: an interval takes two at least")
    root = args.folder.resolve()
    seeds = range(args.seeds)
    originals = [ours(root, seed, args.epochs) for seed in seeds]
    found = []
    for end, option in COPIES.items():
        with tempfile.TemporaryDirectory() as name:
            copy = Path(name, "copy")
            options = [str(root), str(copy), f"--short_side={SHORT_SIDE}", option]
            command = [sys.executable, str(ROOT / "train.py"), "shards", *options]
            subprocess.run(command, check=True, capture_output=True)
            copies = [ours(copy, seed, args.epochs) for seed in seeds]
        gain, half = lead([a for a, _ in copies], [a for a, _ in originals])
        table = rows(
            {"copy": copies, "originals": originals}, abs(gain) - half, f"{gain:+.3f} ± {half:.3f}"
        )
        found += [replace(row, name=row.name + end) for row in table]
    hand_over(found)


if __name__ == "__main__":
    main()
