"""Damaged pictures, digit files, configurations and checkpoints, through the whole command line.

Cuts and flips bits of good files at random and has them trained on, predicted and checked, each in
a process forked from a warm one. A good end is exit status 0, or 1 or 2 after a line that begins
with `error:` (or `broken` of `anneal.vision.check`), within two minutes and 2 GB, no traceback.
Anything else is listed, and the files kept.

    python benchmarks/fuzz.py                # 40 files
    python benchmarks/fuzz.py --files=200
"""

import argparse
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import torch
from PIL import Image

import anneal
from anneal.cli.entry import import_main
from anneal.vision.check import main as check

sys.path.append(str(Path(__file__).parents[1]))
import train

import_main()  # once, before all that is forked

CONFIGS = Path(__file__).parents[1] / "configs"
QUICK = (
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=1.0",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)
PHOTOS = (
    f"--config={CONFIGS / 'photos_resnet18.yaml'}",
    "--model.width=8",
    "--data.root=photos",
    "--data.num_workers=0",
    "--data.batch_size=4",
    "--data.progressive=null",
    "--data.train_size=32",
    "--data.val_resize=32",
    "--data.val_size=32",
    "--trainer.precision=32-true",
    "--trainer.check_val_every_n_epoch=1",
    *QUICK,
)
DIGITS = (f"--config={CONFIGS / 'mnist_mlp.yaml'}", "--model.width=8", *QUICK)


def damage(data: bytes) -> bytes:
    """Cut, bits flipped, bytes overwritten, left out or doubled."""
    kind, at = random.randrange(5), random.randrange(max(1, len(data)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(random.choice((1, 10, 100))):
            flipped[random.randrange(len(data))] ^= 1 << random.randrange(8)
        return bytes(flipped)
    part = random.randbytes(random.choice((1, 16, 500)))
    if kind == 2:
        return data[:at] + part + data[at + len(part) :]
    if kind == 3:
        return data[:at] + data[at + len(part) :]
    return data[:at] + data[at // 2 :]


def bad_picture() -> tuple[str, bytes]:
    """Ending and content of a damaged one, or of one that unpacks to gigabytes."""
    if random.random() < 0.1:
        chunks = [b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)]
        chunks += [b"IDAT" + compress(bytes(1 << 20)), b"IEND"]
        parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", crc32(c)) for c in chunks]
        return "png", b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    kind = random.choice(("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"))
    file = BytesIO()
    noise().save(file, kind)
    return random.choice((kind.lower(), "jpg")), damage(file.getvalue())


def noise() -> Image.Image:
    rng = np.random.default_rng(random.randrange(9999))
    return Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8))


def picture(folder: Path) -> list[str]:
    """A bad picture among good ones, in training or validation."""
    for split, n in (("train", 6), ("val", 2)):
        for name in ("a", "b"):
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(n):
                noise().save(folder / "photos" / split / name / f"{i}.jpg")
    ending, data = bad_picture()
    split = random.choice(("train", "val"))
    (folder / "photos" / split / "a" / f"0.{ending}").write_bytes(data)
    return ["fit", *PHOTOS, f"--data.broken={random.choice(('raise', 'skip'))}"]


def loose_pictures(folder: Path) -> list[str]:
    """Bad pictures beside a good one, to predict or to check."""
    (folder / "new").mkdir()
    noise().save(folder / "new" / "good.jpg")
    for i in range(3):
        ending, data = bad_picture()
        (folder / "new" / f"{i}.{ending}").write_bytes(data)
    if random.random() < 0.5:
        return ["check", "new"]
    shutil.copytree(GOOD, folder / "runs")
    return ["predict", "--ckpt_path=last", "--run=good", "--data.predict_path=new"]


def digits(folder: Path) -> list[str]:
    """MNIST's files with one of them damaged, or with a header that lies."""
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(random.randrange(9999))
    for part, n in (("train", 60), ("t10k", 20)):
        for kind, shape in (("images-idx3", (n, 28, 28)), ("labels-idx1", (n,))):
            header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            values = rng.integers(0, 10, shape, np.uint8)
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + values.tobytes())
    file = random.choice(sorted(raw.iterdir()))
    data = file.read_bytes()
    if random.random() < 0.5:
        lie = random.choice((0, 1, 59, 61, 2**31, 2**32 - 1))
        file.write_bytes(data[:4] + struct.pack(">I", lie) + data[8:])
    else:
        file.write_bytes(damage(data[: random.choice((16, len(data)))]))
    return ["fit", *DIGITS, "--data.dataset=MNIST", "--data.root=data", "--data.val_size=10"]


def configuration(folder: Path) -> list[str]:
    """A damaged YAML file."""
    text = (CONFIGS / "mnist_plateau.yaml").read_bytes()
    (folder / "config.yaml").write_bytes(damage(text))
    return ["fit", "--config=config.yaml", *QUICK]


def checkpoint(folder: Path) -> list[str]:
    """A damaged checkpoint, to go on from or to test."""
    path = folder / "runs" / "good" / "checkpoints" / "last.ckpt"
    shutil.copytree(GOOD, folder / "runs")
    path.write_bytes(damage(path.read_bytes()))
    command = random.choice(("fit", "test"))
    more = ["--trainer.max_epochs=2"] if command == "fit" else []
    return [command, "--ckpt_path=last", "--run=good", *more]


TOLD = ("error:", "broken")
KINDS: list[Callable[[Path], list[str]]] = [
    picture, loose_pictures, digits, configuration, checkpoint
]  # fmt: skip
GOOD = Path()


def run(folder: Path, words: list[str]) -> tuple[int, float, int]:
    """Exit status (-9: it hung), seconds and kilobytes of a command."""
    began = time.monotonic()
    if not (pid := os.fork()):
        os.setsid()
        os.chdir(folder)
        log = os.open("log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
        sys.argv = ["train.py", *words]
        status = 99  # an exception that nobody expected
        try:
            if words[0] == "check":
                status = check(words[1:])
            else:
                anneal.main(train.fit, train.PACKAGES, words)
                status = 0
        except SystemExit as e:
            status = int(e.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - began, usage.ru_maxrss
        if time.monotonic() - began > 120:
            os.killpg(pid, 9)
        time.sleep(0.01)


def main() -> None:
    global GOOD
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.set_num_threads(1)
    os.environ |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    home = Path(tempfile.mkdtemp())
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    status, _, _ = run(home, ["fit", *DIGITS, "--run_name=good"])
    assert status == 0, (home / "log").read_text()
    GOOD = home / "runs"
    counts: dict[str, list[int]] = {}
    bad = 0
    for i in range(args.files):
        folder = home / str(i)
        folder.mkdir()
        make = KINDS[i % len(KINDS)]
        words = make(folder)
        status, seconds, kilobytes = run(folder, words)
        log = (folder / "log").read_text(errors="replace")
        told = status in (1, 2) and any(x.startswith(TOLD) for x in log.splitlines())
        good = (status == 0 or told) and "Traceback" not in log and kilobytes < 2 << 20
        counts.setdefault(make.__name__, [0, 0, 0])[0 if not good else 1 if told else 2] += 1
        if good:
            shutil.rmtree(folder)
        else:
            bad += 1
            end = "\n    ".join(log.strip().splitlines()[-3:])
            print(f"{folder}: status {status}, {seconds:.0f} s, {kilobytes >> 10} MB\n    {end}")
    for name, (wrong, refused, passed) in counts.items():
        print(f"{name:14} {refused:4} refused in a line, {passed:4} passed, {wrong:4} wrong")
    if not bad:
        shutil.rmtree(home)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
