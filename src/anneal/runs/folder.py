"""Run folders: their names, which one is meant, and the checkpoints in them.

runs/<recipe>-<date>-<time>-<id>/   config.yaml  metrics.csv  checkpoints/  wandb/  *.png
"""

import os
import re
import secrets
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch

from anneal.errors import UserError

LAST = "last.ckpt"
STAMP = re.compile(r"-\d{8}-\d{6}-[0-9a-f]{6}$")


def new_name(recipe: str) -> str:
    """A name that no other run has, also not one started in the same second."""
    return f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def recipe_of(config: Path) -> str:
    """The recipe's name from its file: `mnist` from configs/mnist.yaml or a run's config.yaml."""
    name = config.parent.name if config.stem == "config" else config.stem
    return STAMP.sub("", name) or "run"


def list_runs(root: Path) -> list[Path]:
    """Run folders in `root`, the newest first."""
    return [p.parent for p in sorted(root.glob("*/config.yaml"), key=_started, reverse=True)]


def find_run(root: Path, name: str | None) -> Path:
    """The run called `name` (or the folder of that path), or the newest one.

    Raises:
        UserError: There is none.
    """
    runs = list_runs(root)
    if name is None:
        if not runs:
            raise UserError(f"there is no run in {root}/ yet: train one first")
        return runs[0]
    for folder in (root / name, Path(name)):
        if (folder / "config.yaml").is_file():
            return folder
    known = ", ".join(r.name for r in runs[:5]) or "none"
    raise UserError(f"--run={name}: no such run in {root}/; the newest are: {known}")


def find_checkpoint(root: Path, ckpt_path: str, run: str | None) -> Path:
    """The file that `best`, `last` or a path means.

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
    """Everything in a checkpoint, its tensors left on disk.

    Raises:
        UserError: It is damaged; the newest good one beside it is named.
    """
    try:
        if not is_zipfile(path):  # of another file torch has much to say
            raise ValueError("not as torch saves")
        checkpoint = _load(path, mmap=True)
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
            raise ValueError("no weights in it")
        return checkpoint
    except Exception as e:  # a damaged file ends in one of a dozen types
        good = [p for p in _newest(path.parent.glob("*.ckpt")) if p != path and _loads(p)]
        hint = f"; a good one is {good[0]}" if good else ""
        reason = str(e).strip().splitlines()[0][:120] if str(e).strip() else type(e).__name__
        raise UserError(f"{path} is damaged, cut or no checkpoint ({reason}){hint}") from e


def check_lightning_checkpoint(checkpoint: dict[str, Any], path: Path, fits: bool) -> None:
    """Raises UserError if a checkpoint is not what Lightning saves, or not enough to go on from."""
    needed = ["epoch", "global_step", "loops", "pytorch-lightning_version"]
    needed += ["optimizer_states", "lr_schedulers"] * fits
    if missing := [key for key in needed if key not in checkpoint]:
        what = "to train on from" if fits else "of Lightning"
        raise UserError(f"{path} is no checkpoint {what}: it holds weights, but no {missing[0]}")


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint or an exported file lies in, if it lies in one."""
    near = [Path(os.path.relpath(folder)) for folder in checkpoint.resolve().parents[:2]]
    return next((folder for folder in near if (folder / "config.yaml").is_file()), None)


def choose_folder(
    root: Path,
    checkpoint: Path | None,
    run_name: str | None,
    recipe: str,
    fits: bool = True,
    resumes: bool = False,
) -> tuple[Path, bool]:
    """Where a command writes, and whether that is a training that goes on.

    A run goes on from its `last.ckpt` in its own folder; all else starts a new one.

    Args:
        root: The folder of runs.
        checkpoint: The one that the command starts from.
        run_name: Name of the new folder; None: one of its own.
        recipe: What such a name begins with; an empty string: with that of the checkpoint's run.
        fits: Whether the command trains.
        resumes: Whether the run called `run_name` goes on if it is there.

    Raises:
        UserError: The folder is taken.
    """
    own = run_of(checkpoint) if checkpoint else None
    goes_on = bool(own and checkpoint.name == LAST and (not run_name or resumes))  # type: ignore[union-attr]
    if own and (goes_on or not fits):
        return own, goes_on
    if not run_name:
        return root / new_name(recipe or (recipe_of(own / "config.yaml") if own else "run")), False
    if Path(run_name).name != run_name:
        raise UserError(f"--run_name={run_name}: a name, not a path")
    folder = root / run_name
    goes_on = resumes and folder.exists()  # before its first checkpoint
    if folder.exists() and not goes_on:
        raise UserError(f"--run_name={run_name}: {folder} is there already")
    return folder, goes_on


def check_writable(root: Path) -> None:
    """Makes the folder of runs; raises UserError if nothing can be written into it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=root).close()
    except OSError as e:
        raise UserError(f"can't write the run's folder into {root}: {e.strerror}") from e


def next_free_path(path: Path) -> Path:
    """`path`, or with -2, -3, ... before the ending if that is taken: nothing is overwritten."""
    candidate, n = path, 1
    while candidate.exists():
        n += 1
        candidate = path.with_stem(f"{path.stem}-{n}")
    return candidate


def _started(config: Path) -> float:
    return config.stat().st_mtime


def _newest(paths: Any) -> list[Path]:
    return sorted((p for p in paths if p.is_file()), key=lambda p: p.stat().st_mtime, reverse=True)


def _best(folder: Path) -> Path | None:
    """As the last checkpoint remembers it; the newest `best-` file if it was gone meanwhile."""
    files = _newest(folder.glob("best-*.ckpt"))
    if len(files) > 1 and (folder / LAST).is_file():
        for state in read_checkpoint(folder / LAST)["callbacks"].values():
            name = state.get("best_model_path") if isinstance(state, dict) else None
            if name and (best := folder / str(name)) in files:
                return best
    return files[0] if files else None


def _load(path: Path, mmap: bool) -> Any:
    # torch.save stores; a few KB that are compressed can unpack to any size.
    with suppress(BadZipFile), ZipFile(path) as file:
        if any(entry.compress_type != ZIP_STORED for entry in file.infolist()):
            raise ValueError("it is compressed")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _loads(path: Path) -> bool:
    try:
        return "state_dict" in _load(path, mmap=False)
    except Exception:
        return False
