"""Run folders: their names, which one is meant, and the checkpoints in them.

runs/<recipe>-<date>-<time>-<id>/   config.yaml  metrics.csv  checkpoints/  wandb/  *.png
"""

import glob
import itertools
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryFile
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

from anneal.errors import UserError, did_you_mean, first_line, in_a_line
from anneal.runs import metrics
from anneal.runs.config import check_format, parse

RUNS = Path("runs")  # where a run is looked for by its name
LAST = "last.ckpt"
LONGEST = 200  # name of a folder, in bytes
AT_STEP = "step={}.ckpt"  # kept at a step of its schedule, whatever comes later
OWNER = "lock"  # in a folder of checkpoints outside of their run's: says which run that is
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
STAMP = re.compile(r"-\d{8}-\d{6}-[0-9a-f]{6}$")


def check_name(name: str, option: str = "--run_name") -> None:
    """Raise UserError unless a name is one that a run's folder can have, on any system."""
    if PureWindowsPath(name).name != name:
        raise UserError(f"{option}={name}: a name, not a path")
    if not name.strip(" .") or not name.isprintable() or RESERVED.fullmatch(name):
        raise UserError(f"{option}={name!r}: no folder can be called that; take another name")
    if len(name.encode()) > LONGEST:
        raise UserError(f"{option}: {len(name.encode())} bytes; at most {LONGEST}")


def recipe_of(config: Path) -> str:
    """Return a recipe's name from its file: configs/mnist.yaml, or the config.yaml of its run."""
    name = config.parent.name if config.stem == "config" else config.stem
    return STAMP.sub("", name) or "run"


# ---- which run


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run."""
    return (folder / "config.yaml").is_file()


def list_runs(root: Path) -> list[Path]:
    """Return the run folders in `root`, the newest first."""
    return [file.parent for file in newest(root.glob("*/config.yaml"))]


def find_run(root: Path, name: str | None) -> Path:
    """Return the run of a name or path, or the newest one; raise UserError if there is none."""
    runs = list_runs(root)
    if name is None:
        if not runs:
            raise UserError(f"there is no run in {root}/ yet: train one first")
        return runs[0]
    for folder in (root / name, Path(name)):
        if is_run(folder):
            return folder
    known = ", ".join(r.name for r in runs[:5]) or "none"
    raise UserError(f"--run={name}: no such run in {root}/; the newest are: {known}")


def find_runs(words: Iterable[str], root: Path = RUNS) -> tuple[list[Path], list[str]]:
    """Return the run folders that are meant, and what is wrong with the other words.

    Each word is a run's folder, its name in `root`, a folder of runs, or a pattern of these.
    """
    found: dict[Path, Path] = {}  # by where it really is: a run counts once
    wrong = []
    for word in words:
        here = Path(word).exists() or glob.glob(word)
        paths = glob.glob(word if here else str(root / word)) or [word]
        runs: list[Path] = []
        for path in sorted(map(Path, paths)):
            runs += [path] if is_run(path) else reversed(list_runs(path))
        if not runs:
            near = did_you_mean(word, [path.name for path in root.glob("*")])
            there = "no run in it" if here else f"no such run, neither here nor in {root}/{near}"
            wrong.append(f"{word}: {there}")
        found |= {run.resolve(): run for run in runs}
    return list(found.values()), wrong


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint or an exported file lies in or belongs to."""
    near = [Path(os.path.relpath(folder)) for folder in checkpoint.resolve().parents[:2]]
    return next(filter(is_run, near), None) or owner_of(checkpoint.parent)


def configs_of(run: Path) -> list[Path]:
    """Return `config.yaml`, and `config-2.yaml` and so on of its resumes, in this order."""
    return sorted(run.glob("config*.yaml"), key=lambda file: (len(file.name), file.name))


# ---- checkpoints


def checkpoints_of(run: Path) -> Path:
    """Return where a run's checkpoints lie: where its configuration, or one of a resume, says."""
    trees = [parse(file.read_text(), file) for file in configs_of(run)] or [{}]
    said = [(tree.get("checkpoint") or {}).get("dirpath") for tree in trees]
    folders = [Path(path) if path else run / "checkpoints" for path in said]
    last = newest(folder / LAST for folder in folders)
    return last[0].parent if last else folders[-1]


def owner_of(checkpoints: Path) -> Path | None:
    """Return the run that a folder of checkpoints outside of the run's own belongs to, if any."""
    with suppress(OSError, ValueError):
        owner = checkpoints / (checkpoints / OWNER).read_text()
        return Path(os.path.relpath(owner)) if is_run(owner) and owner != checkpoints else None
    return None


def last_of(run: Path) -> Path | None:
    """Return the `last.ckpt` of a run; None: none yet. Raise UserError if it must have had one."""
    if (last := checkpoints_of(run) / LAST).is_file():
        return last
    epochs = metrics.of_run(run).values("epoch") or [0.0]
    if (trained := max(epochs) - epochs[0]) >= 1:  # it may have begun within another run
        raise UserError(
            f"{run} has trained {trained:.0f} epochs, and there is no {last} to resume from: "
            "put it back, or start a run of another name"
        )
    return None


def find_checkpoint(root: Path, ckpt_path: str, run: str | None) -> Path:
    """Return the file that a path means, or `best` or `last` of a run (None: of the newest)."""
    if ckpt_path not in ("best", "last"):
        if not Path(ckpt_path).is_file():
            raise UserError(f"--ckpt_path={ckpt_path}: no such file (or say best or last)")
        return Path(ckpt_path)
    folder = checkpoints_of(find_run(root, run))
    path = folder / LAST if ckpt_path == "last" else _best(folder)
    if path is None or not path.is_file():
        others = ", ".join(sorted(p.name for p in folder.glob("*.ckpt"))) or "no checkpoint"
        there = f"not in {folder}, where there is {others}"
        raise UserError(f"--ckpt_path={ckpt_path}: {there}; --run=NAME is for another run")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return everything in a checkpoint, its tensors left on disk.

    The weights alone, as torchvision saves a network's, are its `state_dict`.

    Raises:
        UserError: It can't be read, and the newest good one beside it is named; or it is too new.
    """
    try:
        checkpoint = _load(path)
        if isinstance(checkpoint, dict) and "state_dict" not in checkpoint:
            state = checkpoint.get("model", checkpoint)
            if isinstance(state, dict) and any(hasattr(v, "shape") for v in state.values()):
                checkpoint = {"state_dict": state}
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
            raise ValueError("no weights in it")
    except Exception as e:  # a damaged file ends in one of a dozen types
        others = (p for p in newest(path.parent.glob("*.ckpt")) if p != path)
        hint = next((f"; a good one is {p}" for p in others if _loads(p)), "")
        wrong = "can't be read" if isinstance(e, OSError) else "is damaged, cut or no checkpoint"
        raise UserError(f"{path} {wrong} ({first_line(e)[:120]}){hint}") from e
    check_format(checkpoint.get("format", 1), path)
    return checkpoint


def check_lightning_checkpoint(checkpoint: dict[str, Any], path: Path, fits: bool) -> None:
    """Raise UserError if a checkpoint is not one of Lightning, or not enough to resume from."""
    needed = ["epoch", "global_step", "loops", "pytorch-lightning_version"]
    needed += ["optimizer_states", "lr_schedulers"] * fits
    if missing := [key for key in needed if key not in checkpoint]:
        what = "to train on from" if fits else "of Lightning"
        raise UserError(f"{path} is no checkpoint {what}: it holds weights, but no {missing[0]}")


def newest(paths: Iterable[Path]) -> list[Path]:
    """Return those that are files, the newest first."""
    return sorted((p for p in paths if p.is_file()), key=lambda p: p.stat().st_mtime, reverse=True)


def _best(folder: Path) -> Path | None:
    """Return the best one that the last remembers; the newest `best-` file if that is gone."""
    files = newest(folder.glob("best-*.ckpt"))
    if len(files) > 1 and (folder / LAST).is_file():
        for state in read_checkpoint(folder / LAST)["callbacks"].values():
            name = state.get("best_model_path") if isinstance(state, dict) else None
            if name and (best := folder / str(name)) in files:
                return best
    return files[0] if files else None


def _load(path: Path) -> Any:
    import torch  # takes seconds, and most of this file needs none

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if zipped := is_zipfile(path):
        with ZipFile(path) as file:
            # torch.save stores; a few KB that are compressed can unpack to any size.
            if any(entry.compress_type != ZIP_STORED for entry in file.infolist()):
                raise ValueError("it is compressed")
            if damaged := file.testzip():  # torch itself looks at no checksum
                raise ValueError(f"{damaged} is not what was written")
    elif path.open("rb").read(1) != b"\x80":  # a pickle, as before torch 1.6
        raise ValueError("not as torch saves")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _loads(path: Path) -> bool:
    with suppress(Exception):
        return "state_dict" in _load(path)
    return False


# ---- where a command writes


def new_folder(root: Path, run_name: str | None, recipe: str) -> Path:
    """Return a new run's folder, by its name or its recipe's; raise UserError if it is taken."""
    # Two may start in the same second.
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    folder = root / (run_name or f"{recipe}-{stamp}")
    if folder.is_file() or any(p.name != "wandb" for p in folder.glob("*")):  # a failed start's
        raise UserError(f"--run_name={run_name}: {folder} is there already")
    return folder


def check_writable(folder: Path, what: str = "the run's folder into ") -> None:
    """Make a folder; raise UserError if nothing can be written into it."""
    with in_a_line(f"can't write {what}{folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def next_free_path(path: Path) -> Path:
    """Return `path`, or with -2, -3, ... before the ending if it exists: nothing is overwritten."""
    others = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))
    return next(p for p in itertools.chain([path], others) if not p.exists())
