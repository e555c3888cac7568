"""Photos per second in training by torchvision's reference script, against `python train.py`.

Both read the same few photos with one worker, cut 96 px out of them and train on one thread. Ours
trains as configs/photos_resnet18.yaml, without its smaller pictures in the first epochs: with its
own narrow network, and with the script's whole ResNet-18 and no augmentation but crop and flip, as
the script has. The script's time is that which it prints for its last epoch; ours, all epochs.

    python benchmarks/photos.py FOLDER --vision=CHECKOUT
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from photos_time import CONFIG
from training import trained
from turns import Row, hand_over, in_turns, ratio

SIZE, BATCH, EPOCHS = 96, 64, 2
SAME = ["--model.width=64", "--data.augment=null", "--data.scale=[0.08, 1.0]"]


def few(source: Path, folder: Path, n: int) -> int:
    """Links to `n` training and a few validation photos of each class; how many to train on."""
    count = 0
    for split, most in (("train", n), ("val", 5)):
        for name in sorted(path.name for path in (source / split).iterdir()):
            (folder / split / name).mkdir(parents=True)
            for photo in sorted((source / split / name).iterdir())[:most]:
                (folder / split / name / photo.name).symlink_to(photo.resolve())
                count += split == "train"
    return count


def reference(checkout: Path, root: Path, photos: int) -> float:
    """Photos per second of the script in its last epoch."""
    command = [
        *(sys.executable, "train.py", f"--data-path={root}", "--model=resnet18", "--device=cpu"),
        *(f"--batch-size={BATCH}", "--workers=1", f"--epochs={EPOCHS}", "--output-dir="),
        *(f"--train-crop-size={SIZE}", "--val-resize-size=144", "--val-crop-size=128"),
    ]
    shown = subprocess.run(
        command,
        cwd=checkout / "references/classification",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    *_, last = re.findall(r"Epoch: \[\d+\] Total time: (\d+):(\d+):(\d+)", shown)
    hours, minutes, seconds = map(int, last)
    return photos / (3600 * hours + 60 * minutes + seconds)


def ours(root: Path, words: list[str]) -> float:
    """Photos per second of the command line."""
    more = [
        f"--data.root={root}",
        "--data.progressive=null",
        "--data.num_workers=1",
        f"--trainer.max_epochs={EPOCHS}",
    ]
    return trained([f"--config={CONFIG}", *words, *more]).samples_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with train/CLASS and val/CLASS")
    parser.add_argument("--vision", type=Path, required=True, help="checkout of pytorch/vision")
    parser.add_argument("--photos", type=int, default=40, help="of each class, to train on")
    parser.add_argument("--times", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        n = few(args.folder, root, args.photos)
        found = in_turns(
            {
                "peer": lambda: reference(args.vision.resolve(), root, n),
                "recipe": lambda: ours(root, []),
                "same": lambda: ours(root, SAME),
            },
            args.times,
        )
    rows = []
    names = {"recipe": "the recipe's narrow network", "same": "the script's network"}
    for way, name in names.items():
        value, text = ratio(found[way], found["peer"])
        here, peer = (f"{statistics.median(found[who]):.0f} photos/s" for who in (way, "peer"))
        rows.append(Row(name, value, {"here": here, "peer": peer, "ratio": text}))
    hand_over(rows)


if __name__ == "__main__":
    main()
