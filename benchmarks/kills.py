"""Kills small trainings at random moments, goes on, and compares with runs that were never stopped.

Each training is killed (SIGKILL to all of its processes) at moments drawn at random, half of them
or more while a checkpoint is being written, and started again with --resume=auto until it is done.
Then its weights, its metrics.csv and the batch of every step must be those of the undisturbed run,
bit for bit. Ends with status 1 if anything differs.

    python benchmarks/kills.py                  # about 20 kills
    python benchmarks/kills.py --kills=200
    python benchmarks/kills.py --points         # at each write, rename, fsync and step instead
    python benchmarks/kills.py --cells          # each way to end, place, way to go on and to count
"""

import argparse
import csv
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from PIL import Image

import anneal
import anneal.loggers.csv
from anneal.cli.entry import import_main

sys.path.append(str(Path(__file__).parents[1]))
import train

import_main()  # once, before all that is forked

TRAIN = Path(__file__).parents[1] / "train.py"
DIGITS = """
trainer:
  max_epochs: 3
  limit_train_batches: 30
  limit_val_batches: 3
  limit_test_batches: 3
  log_every_n_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: {class_path: kills.BatchLog}
checkpoint: {every_n_train_steps: 4}
model:
  class_path: MNISTConvNet
  init_args:
    width: 4
    optimizer: {class_path: SGD, init_args: {lr: 0.05, momentum: 0.9}}
    schedule: {scheduler: CosineAnnealingLR, warmup_epochs: 1}
data:
  class_path: MNISTDataModule
  init_args: {batch_size: 16, shift: 2, rotation: 10}
"""
PHOTOS = """
trainer:
  max_epochs: 3
  log_every_n_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: {class_path: kills.BatchLog}
checkpoint: {every_n_train_steps: 3}
model:
  class_path: ImageClassifier
  init_args:
    arch: resnet18
    width: 8
    optimizer: {class_path: AdamW, init_args: {lr: 0.003}}
    schedule: {scheduler: {class_path: StepLR, init_args: {step_size: 1, gamma: 0.5}}}
data:
  class_path: ImageFolderDataModule
  init_args:
    root: photos
    batch_size: 8
    train_size: 32
    val_resize: 36
    val_size: 32
    num_workers: 0
    mixup: 0.2
    augment: {class_path: torchvision.transforms.v2.TrivialAugmentWide}
"""
PLATEAU = "--model.schedule.scheduler={class_path: ReduceLROnPlateau, init_args: {patience: 0}}"
SCENARIOS = {  # configuration, flags, share of the kills
    "digits, warmup and cosine": (DIGITS, (), 6),
    "digits, plateau, bf16": (DIGITS, (PLATEAU, "--trainer.precision=bf16-mixed"), 6),
    "digits, accumulation, EMA": (
        DIGITS,
        ("--trainer.accumulate_grad_batches=4", "--trainer.callbacks+=EMA"),
        3,
    ),
    "photos, no workers": (PHOTOS, (), 3),
    "photos, 2 workers": (PHOTOS, ("--data.num_workers=2",), 3),
    "photos in a bucket": (PHOTOS, ("--data.num_workers=2", "--data.root=s3://data/photos"), 2),
    "digits, 2 processes": (DIGITS, ("--trainer.devices=2", "--trainer.strategy=ddp"), 1),
}

# A bucket on loopback that holds the photos in chunks of a few pictures.
BUCKET = """
import logging, sys
from pathlib import Path
import boto3
from moto.server import ThreadedMotoServer
from anneal.vision import shards

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
shards.CHUNK = 20_000
assert shards.main(["photos", "shards", "--num_workers=0"]) == 0
s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server.get_host_and_port()[1]}")
s3.create_bucket(Bucket="data")
for path in Path("shards").rglob("*.*"):
    s3.upload_file(str(path), "data", f"photos/{path.relative_to('shards')}")
print("port", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
MOST = 10  # kills of one training


class BatchLog(Callback):
    """Writes a line with step, place in the accumulation and content of every batch."""

    hit = staticmethod(lambda: None)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        images = batch[0].float()
        content = f"{images.double().sum():.9e} {images.std():.9e}"
        line = f"{trainer.current_epoch} {batch_idx} {content}"
        with open(Path(trainer.default_root_dir) / f"batches-{trainer.global_rank}", "a") as file:
            file.write(f"{line}\n")
        self.hit()


class Points:
    """Counts the writes, renames, removals, fsyncs, lines and steps of a training, and ends it.

    Args:
        folder: Under which the files are that count.
        last: The one at which it is killed; 0: none, and their number is put into `points`.
    """

    def __init__(self, folder: Path, last: int) -> None:
        self.folder, self.last, self.count = str(folder), last, 0
        sys.addaudithook(self._audit)
        self._fsync, os.fsync = os.fsync, self._counted(os.fsync)
        anneal.loggers.csv._write = self._counted(anneal.loggers.csv._write)
        BatchLog.hit = self.hit

    def hit(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.hit()
            return function(*args)

        return call

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and (str(args[1])[:1] in "wax" or "+" in str(args[1]))
        if (writes or event in ("os.rename", "os.remove", "os.mkdir", "os.truncate")) and str(
            args[0]
        ).startswith(self.folder):
            self.hit()


def start(folder: Path, args: list[str], point: int | None = None) -> int:
    """A training in a process group of its own, forked from this process; its number.

    Args:
        folder: Where it runs.
        args: Its command line.
        point: See `Points`; None: these are not counted.
    """
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(folder)
    log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [str(TRAIN), *args]
    points = None if point is None else Points(folder, point)
    status = 1
    try:
        anneal.main(train.fit, train.PACKAGES, args)
        status = 0
    except SystemExit as e:
        status = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        if points:
            (folder / "points").write_text(str(points.count))
        os._exit(status)


def wait(pid: int) -> int:
    """The exit status of a process when it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def end(pid: int) -> int | None:
    """The exit status if the process has ended."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def tail(folder: Path) -> str:
    return "\n".join((folder / "log").read_text().splitlines()[-20:])


def whole(folder: Path, args: list[str]) -> float:
    """Seconds of the run that nobody stops."""
    began = time.monotonic()
    pid = start(folder, [*args, "--run_name=whole"])
    while (status := end(pid)) is None:
        time.sleep(0.01)
    if status:
        raise SystemExit(f"the undisturbed run ended with {status}:\n{folder}:\n{tail(folder)}")
    return time.monotonic() - began


def killed(run: Path, args: list[str], kills: int, longest: float) -> tuple[int, int]:
    """Kills a training at most so many times, then lets it end: kills, kills in a save."""
    done = in_save = 0
    folder = run.parents[1]
    part = run / "checkpoints" / ".last.ckpt.part"
    while True:
        pid = start(folder, [*args, f"--run_name={run.name}", "--resume=auto"])
        deadline = time.monotonic() + random.uniform(0, longest)
        wants_save = random.random() < 0.5
        while (status := end(pid)) is None:
            saving = part.exists()
            if done < kills and time.monotonic() > deadline and (saving or not wants_save):
                with suppress(ProcessLookupError):  # not yet in a group of its own
                    os.killpg(pid, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                done, in_save = done + 1, in_save + saving
                break
            time.sleep(0 if wants_save else 0.005)
        if status is not None:
            if status:
                raise SystemExit(f"a resumed run ended with {status}:\n{folder}:\n{tail(folder)}")
            return done, in_save


def every_point(folder: Path, args: list[str], every: int) -> tuple[int, list[str]]:
    """Ends a training at its points and goes on: how many were tried, and what then differs."""
    if wait(start(folder, [*args, "--run_name=counted"], 0)):
        raise SystemExit(f"the training that counts them has failed:\n{tail(folder)}")
    points = range(1, int((folder / "points").read_text()) + 1, every)
    found: list[str] = []
    for point in points:
        name = f"--run_name=killed-{point}"
        wait(start(folder, [*args, name], point))
        run = folder / "runs" / f"killed-{point}"
        if status := wait(start(folder, [*args, name, "--resume=auto"])):
            found.append(f"point {point}: status {status}:\n{tail(folder)}")
        elif different := differences(folder / "runs" / "whole", run):
            found.append(f"point {point}: {', '.join(different)}")
        if not found:
            shutil.rmtree(run)
    return len(points), found


def every_cell() -> None:
    """Try each cell of the tests' table."""
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "engine"))
    os.environ["PYTHONPATH"] += os.pathsep + sys.path[-1]
    import cells

    logging.disable(logging.INFO)
    folder = Path(tempfile.mkdtemp())
    wrong = 0
    tried = [cell for cell in cells.every() if not cells.impossible(cell)]
    for cell in tried:
        if found := cells.disturb(folder, cell):
            wrong += 1
            print("-".join(cell), *found, sep="\n  ", flush=True)
        shutil.rmtree(folder / "runs" / "-".join(cell), ignore_errors=True)
    impossible = len(cells.every()) - len(tried)
    print(f"{len(tried)} cells ({impossible} more are impossible): {wrong or 'nothing'} differ")
    sys.exit(bool(wrong))


def differences(a: Path, b: Path) -> list[str]:
    """What is not the same in two runs."""
    found = []
    states = [torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (a, b)]
    weights = [s["state_dict"] for s in states]
    if not all(torch.equal(t, weights[1][k]) for k, t in weights[0].items()):
        found.append("weights")
    if repr(states[0]["optimizer_states"]) != repr(states[1]["optimizer_states"]):
        found.append("optimizer")
    if lines(a) != lines(b):
        found.append("metrics.csv")
    for rank in sorted(p.name for p in a.glob("batches-*")):
        expected = (a / rank).read_text().splitlines()
        if dict.fromkeys(expected) != dict.fromkeys(sorted_batches(b / rank, expected)):
            found.append(rank)
    for path in (b / "checkpoints").glob("*.ckpt"):
        torch.load(path, weights_only=True)
    return found


def sorted_batches(path: Path, expected: list[str]) -> list[str]:
    """The batches of all starts, each once, in the order of the undisturbed run."""
    place = {line: i for i, line in enumerate(expected)}
    return sorted(set(path.read_text().splitlines()), key=lambda line: place.get(line, -1))


def lines(run: Path) -> list[dict[str, str]]:
    """metrics.csv without times, and without the test after the training: a run that was killed
    in it has nothing left to go on with."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    training = [row for row in rows if not row.get("test/loss")]
    return [
        {k: v for k, v in row.items() if v and k not in ("time", "data/wait")} for row in training
    ]


def make_photos(root: Path) -> None:
    """Two classes of noise: 80 pictures to train on, 16 to validate."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 40), ("val", 8)):
        for c in range(2):
            (root / split / f"class{c}").mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 128, (48, 48, 3), np.uint8) + np.uint8(100 * c)
                Image.fromarray(pixels).save(root / split / f"class{c}" / f"{i}.jpg")


@contextmanager
def bucket(folder: Path) -> Iterator[None]:
    """Serves the photos of a folder at s3://data/photos, to trainings started meanwhile."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "what"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", BUCKET], cwd=folder, **pipes) as server:
        port = next(line.split()[1] for line in server.stdout if line.startswith("port"))
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        yield
        server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="in all")
    parser.add_argument("--points", action="store_true", help="at each point of short epochs")
    parser.add_argument("--every", type=int, default=1, help="only each so many-th of the points")
    parser.add_argument("--cells", action="store_true", help="the table of tests/engine/cells.py")
    parser.add_argument("--only", default="", help="scenarios with this in their name")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.set_num_threads(1)
    os.environ |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    if args.cells:
        every_cell()
    chosen = {name: s for name, s in SCENARIOS.items() if args.only in name}
    shares = sum(share for _, _, share in chosen.values())
    failed = False
    for name, (config, flags, share) in chosen.items():
        folder = Path(tempfile.mkdtemp())
        (folder / "small.yaml").write_text(config)
        if config is PHOTOS:
            make_photos(folder / "photos")
            os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        command = ["fit", "--config=small.yaml", *flags]
        command += ["--trainer.limit_train_batches=4"] * args.points
        kills = max(1, round(args.kills * share / shares))
        done = in_save = trainings = 0
        found: list[str] = []
        with bucket(folder) if "bucket" in name else nullcontext():
            seconds = whole(folder, command)
            if args.points:
                points, found = every_point(folder, command, args.every)
            while done < kills and not found and not args.points:
                run = folder / "runs" / f"killed-{trainings}"
                most = min(MOST, kills - done)
                counts = killed(run, command, most, seconds / 2)
                done, in_save, trainings = done + counts[0], in_save + counts[1], trainings + 1
                found = differences(folder / "runs" / "whole", run)
        result = f"{', '.join(found)} DIFFER: see {folder}" if found else "nothing differs"
        tried = f"{done:4} kills of {trainings:3} trainings, {in_save:4} in a save"
        if args.points:
            tried = f"{points:4} points"
        print(f"{name:28} {tried}: {result}", flush=True)
        failed = failed or bool(found)
        if not found:
            shutil.rmtree(folder)
    sys.exit(failed)


if __name__ == "__main__":
    # The classes of this file by the name that the configurations have, not as __main__.
    sys.modules["kills"] = sys.modules["__main__"]
    BatchLog.__module__ = "kills"
    main()
