"""Figures of finished runs: `python train.py figures RUN ...`.

Without a run, all figures of docs/optimizers.md, by the commands on that page.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anneal import UserError, checkpoints_of, command, find_run, next_free_path, read_checkpoint
from examples.optimizers import COMMANDS, fits, gallery, trajectories
from examples.optimizers.figure import save

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
QUIET = [
    f"--trainer.{key}=false" for key in ("logger", "enable_progress_bar", "enable_model_summary")
]


@command
def main(args: list[str] | None = None) -> int:
    """Run the command `figures` and return its exit status."""
    about = f"{COMMANDS['figures'][1]}; without a run, all figures of docs/optimizers.md."
    parser = argparse.ArgumentParser("python train.py figures", description=about)
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folder or name of a run of a Surface or a Curve; several go into one figure",
    )
    parser.add_argument("-o", "--output", type=Path, help="by default the first run's figure.png")
    parser.add_argument(
        "--animate", action="store_true", help="write an animation: a GIF, or what OUTPUT ends in"
    )
    options = parser.parse_args(args)
    if options.runs:
        print(draw(options.runs, options.output, options.animate))
    else:
        render(PAGE)
    return 0


def draw(names: list[str], output: Path | None = None, animate: bool = False) -> Path:
    """Draw finished runs, all of them over the same function or all of them polynomial fits.

    Args:
        names: Folders, or names of folders in runs/.
        output: The file to write; None: figure.png or .gif in the first run's folder.
        animate: Whether to write an animation.

    Returns:
        The file that was written.

    Raises:
        UserError: They can't be drawn, or not together, or there is no ffmpeg for an MP4.
    """
    folders = [find_run(Path("runs"), name) for name in names]
    path = output or next_free_path(folders[0] / f"figure{'.gif' if animate else '.png'}")
    saved = [_last(folder) for folder in folders]
    path.parent.mkdir(parents=True, exist_ok=True)
    if all("fit" in one for one in saved) and not animate:
        save(fits.draw([fits.CurveFit(**one["fit"]) for one in saved]), path)
        return path
    key = trajectories.CHECKPOINT_KEY
    if not all(key in one for one in saved):
        one = "a Surface can be animated" if animate else "one kind, Surface or Curve, can be drawn"
        raise UserError(f"{', '.join(names)} can't be drawn: only runs of {one}")
    done = [trajectories.Trajectory(**one[key]) for one in saved]
    starts = {trajectory.path.shape[1] for trajectory in done}
    if len({trajectory.function for trajectory in done}) > 1 or len(starts) > 1:
        raise UserError(f"{', '.join(names)}: not over one function from one start or one grid")
    if not animate:
        save(trajectories.draw(done), path)
        return path
    if starts != {1}:
        raise UserError("an animation starts from one point: train without model.grid")
    _write(done, path)
    return path


def _write(done: list[trajectories.Trajectory], path: Path) -> None:
    from matplotlib.animation import writers

    writer = "ffmpeg" if path.suffix == ".mp4" else "pillow"
    if not writers.is_available(writer):
        raise UserError(f"{path}: an MP4 needs ffmpeg, which is not there; make a .gif")
    trajectories.animate(done).save(path, writer=writer, fps=12, dpi=80)


def _last(folder: Path) -> dict[str, Any]:
    path = checkpoints_of(folder) / "last.ckpt"
    if not path.is_file():
        raise UserError(f"there is no {path}, which holds what is drawn")
    return read_checkpoint(path)


def commands(page: Path) -> list[list[str]]:
    """Return the commands of train.py in a Markdown file, as words after that name, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[2:] for words in found if words[:2] == ["python", "train.py"]]


def render(page: Path) -> None:
    """Run all commands of a Markdown file in this process, its runs in a temporary folder."""
    with TemporaryDirectory() as folder:
        for words in commands(page):
            words = [re.sub("^runs/", f"{folder}/", word) for word in words]
            status = 0
            if words[0] == "gallery":
                status = gallery.main(words[1:])
            elif words[0] != "figures":
                run_training([*words, f"--trainer.default_root_dir={folder}", *QUIET])
            elif words[1:]:  # not this command itself
                status = main(words[1:])
            if status:
                sys.exit(status)


def run_training(words: list[str]) -> None:
    """Train by the words of a command line, in this process."""
    import train
    from anneal import main

    main(train.fit, train.PACKAGES, ["fit", *words])
