"""What training on a prepared copy of a folder of photos costs in accuracy, and what it saves.

configs/photos_resnet18.yaml, shortened, is trained on the folder and on shards of it, made with
smaller and newly compressed pictures, from the same seeds and with all threads. The difference of
the accuracies on the validation photos, after the last epoch, comes with its 95 % confidence
interval (Student's t over the pairs).

    python benchmarks/prepared.py FOLDER
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from photos_time import ours, rows
from turns import hand_over, lead

SHORT_SIDE, QUALITY = 176, 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with train/CLASS and val/CLASS")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds: an interval takes two at least")
    root = args.folder.resolve()
    with tempfile.TemporaryDirectory() as name:
        shards = Path(name, "shards")
        options = [f"--short_side={SHORT_SIDE}", f"--quality={QUALITY}"]
        command = [sys.executable, "-m", "anneal.vision.shards", str(root), str(shards), *options]
        subprocess.run(command, check=True, capture_output=True)
        pairs = [
            (ours(shards, seed, args.epochs), ours(root, seed, args.epochs))
            for seed in range(args.seeds)
        ]
    copy, originals = map(list, zip(*pairs, strict=True))
    gain, half = lead([a for a, _ in copy], [a for a, _ in originals])
    ways = {"copy": copy, "originals": originals}
    hand_over(rows(ways, abs(gain) - half, f"{gain:+.3f} ± {half:.3f}"))


if __name__ == "__main__":
    main()
