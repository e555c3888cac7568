"""Run folders: their names, which one is meant, and the checkpoints in them.

runs/<recipe>-<date>-<time>-<id>/   config.yaml  metrics.csv  checkpoints/  wandb/  *.png
"""

import glob
import os
import re
import secrets
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

from anneal.errors import UserError, did_you_mean
from anneal.runs.config import check_format

RUNS = Path("runs")  # where a run is looked for by its name
LAST = "last.ckpt"
STAMP = re.compile(r"-\d{8}-\d{6}-[0-9a-f]{6}$")


def new_name(recipe: str) -> str:
    """Return a name that no other run has, not even one started in the same second."""
    return f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


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
    configs = [file for file in root.glob("*/config.yaml") if file.is_file()]
    return [file.parent for file in _newest(configs)]


def find_run(root: Path, name: str | None) -> Path:
    """Return the run called `name` (or the folder of that path), or the newest one.

    Raises:
        UserError: There is none.
    """
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

    Args:
        words: Each a run's folder, its name in `root`, a folder of runs, or a pattern of these.
        root: The folder of runs.
    """
    found: dict[Path, Path] = {}  # by where it really is: a run counts once
    wrong = []
    for word in words:
        here = Path(word).exists() or glob.glob(word)
        paths = [Path(p) for p in glob.glob(word if here else str(root / word))] or [Path(word)]
        runs = [
            run
            for path in sorted(paths)
            for run in ([path] if is_run(path) else reversed(list_runs(path)))
        ]
        if not runs:
            near = did_you_mean(word, [path.name for path in root.glob("*")])
            there = "no run in it" if here else f"no such run, neither here nor in {root}/{near}"
            wrong.append(f"{word}: {there}")
        found |= {run.resolve(): run for run in runs}
    return list(found.values()), wrong


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint or an exported file lies in, if it does."""
    near = [Path(os.path.relpath(folder)) for folder in checkpoint.resolve().parents[:2]]
    return next(filter(is_run, near), None)


# ---- checkpoints


def find_checkpoint(root: Path, ckpt_path: str, run: str | None) -> Path:
    """Return the file that `best`, `last` or a path means.

    Args:
        root: The folder of runs.
        ckpt_path: `best`, `last` or a path.
        run: Name of a run for `best` and `last`; None: the newest.

    Raises:
        UserError: It isn't there.
    """
    if ckpt_path not in ("best", "last"):
        if not Path(ckpt_path).is_file():
            raise UserError(f"--ckpt_path={ckpt_path}: no such file (or say best or last)")
        return Path(ckpt_path)
    folder = find_run(root, run) / "checkpoints"
    path = folder / LAST if ckpt_path == "last" else _best(folder)
    if path is None or not path.is_file():
        others = ", ".join(sorted(p.name for p in folder.glob("*.ckpt"))) or "no checkpoint"
        raise UserError(
            f"--ckpt_path={ckpt_path}: not in {folder}, where there is {others}; --run=NAME is for "
            "another run"
        )
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return everything in a checkpoint, its tensors left on disk.

    Raises:
        UserError: It is damaged, and the newest good one beside it is named; or its format is
            newer than what is known here.
    """
    try:
        if not is_zipfile(path):  # of another file torch has much to say
            raise ValueError("not as torch saves")
        checkpoint = _load(path, mmap=True)
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
            raise ValueError("no weights in it")
    except Exception as e:  # a damaged file ends in one of a dozen types
        good = [p for p in _newest(path.parent.glob("*.ckpt")) if p != path and _loads(p)]
        hint = f"; a good one is {good[0]}" if good else ""
        reason = str(e).strip().splitlines()[0][:120] if str(e).strip() else type(e).__name__
        raise UserError(f"{path} is damaged, cut or no checkpoint ({reason}){hint}") from e
    check_format(checkpoint.get("format", 1), path)
    return checkpoint


def check_lightning_checkpoint(checkpoint: dict[str, Any], path: Path, fits: bool) -> None:
    """Raise UserError if a checkpoint is not one of Lightning, or not enough to resume from."""
    needed = ["epoch", "global_step", "loops", "pytorch-lightning_version"]
    needed += ["optimizer_states", "lr_schedulers"] * fits
    if missing := [key for key in needed if key not in checkpoint]:
        what = "to train on from" if fits else "of Lightning"
        raise UserError(f"{path} is no checkpoint {what}: it holds weights, but no {missing[0]}")


def _newest(paths: Iterable[Path]) -> list[Path]:
    return sorted((p for p in paths if p.is_file()), key=lambda p: p.stat().st_mtime, reverse=True)


def _best(folder: Path) -> Path | None:
    """Return the best one that the last remembers; the newest `best-` file if that is gone."""
    files = _newest(folder.glob("best-*.ckpt"))
    if len(files) > 1 and (folder / LAST).is_file():
        for state in read_checkpoint(folder / LAST)["callbacks"].values():
            name = state.get("best_model_path") if isinstance(state, dict) else None
            if name and (best := folder / str(name)) in files:
                return best
    return files[0] if files else None


def _load(path: Path, mmap: bool) -> Any:
    import torch  # takes seconds, and most of this file needs none

    with ZipFile(path) as file:
        # torch.save stores; a few KB that are compressed can unpack to any size.
        if any(entry.compress_type != ZIP_STORED for entry in file.infolist()):
            raise ValueError("it is compressed")
        if damaged := file.testzip():  # torch itself looks at no checksum
            raise ValueError(f"{damaged} is not what was written")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _loads(path: Path) -> bool:
    try:
        return "state_dict" in _load(path, mmap=False)
    except Exception:
        return False


# ---- where a command writes


def choose_folder(
    root: Path,
    checkpoint: Path | None,
    run_name: str | None,
    recipe: str,
    fits: bool = True,
    resumes: bool = False,
) -> tuple[Path, bool]:
    """Return where a command writes, and whether that is a training that resumes.

    A run resumes from its `last.ckpt` in its own folder; all else starts a new one.

    Args:
        root: The folder of runs.
        checkpoint: The one that the command starts from.
        run_name: Name of the new folder; None: a generated one.
        recipe: What such a name begins with; an empty string: with that of the checkpoint's run.
        fits: Whether the command trains.
        resumes: Whether the run called `run_name` resumes if it is there.

    Raises:
        UserError: The folder is taken.
    """
    own = run_of(checkpoint) if checkpoint else None
    resuming = bool(own and checkpoint.name == LAST and (not run_name or resumes))  # type: ignore[union-attr]
    if own and (resuming or not fits):
        return own, resuming
    if not run_name:
        return root / new_name(recipe or (recipe_of(own / "config.yaml") if own else "run")), False
    if Path(run_name).name != run_name:
        raise UserError(f"--run_name={run_name}: a name, not a path")
    folder = root / run_name
    resuming = resumes and folder.exists()  # before its first checkpoint
    if folder.exists() and not resuming:
        raise UserError(f"--run_name={run_name}: {folder} is there already")
    return folder, resuming


def check_writable(root: Path) -> None:
    """Make the folder of runs; raise UserError if nothing can be written into it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=root).close()
    except OSError as e:
        raise UserError(f"can't write the run's folder into {root}: {e.strerror}") from e


def next_free_path(path: Path) -> Path:
    """Return `path`, or with -2, -3, ... before the ending if it exists: nothing is overwritten."""
    candidate, n = path, 1
    while candidate.exists():
        n += 1
        candidate = path.with_stem(f"{path.stem}-{n}")
    return candidate
