"""Figures of finished runs: `python train.py figures RUN ...`.

Without a run, all figures of docs/optimizers.md, by the commands on that page.
"""

import argparse
import io
import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from anneal import UserError, checkpoints_of, command, find_run, next_free_path, read_checkpoint
from examples.optimizers import COMMANDS, fits, gallery, trajectories, views
from examples.optimizers.figure import save

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "optimizers.md"
SHOWN = [*views.VIEWS, "weights", *views.CURVES]
QUIET = [
    f"--trainer.{key}=false" for key in ("logger", "enable_progress_bar", "enable_model_summary")
]


@command
def main(args: list[str] | None = None) -> int:
    """Run the command `figures` and return its exit status."""
    about = f"{COMMANDS['figures'][1]}; without a run, all figures of docs/optimizers.md."
    parser = argparse.ArgumentParser("python train.py figures", description=about)
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folder or name of a run of a Surface or a Curve"
    )
    parser.add_argument("-o", "--output", type=Path, help="by default the first run's figure.png")
    parser.add_argument("--animate", action="store_true", help="write an animation, a GIF")
    parser.add_argument("--title", default="", help="what the figure shows, written above it")
    parser.add_argument("--show", choices=SHOWN, help="another view of them")
    options = parser.parse_args(args)
    if not options.runs and vars(options) != vars(parser.parse_args([])):
        raise UserError("figures: options are of a figure of runs: name a RUN, or leave them out")
    try:
        if options.runs:
            print(draw(**vars(options)))
        else:
            render(PAGE)
    except OSError as e:
        raise UserError(f"can't write {e.filename or options.output}: {e.strerror or e}") from e
    return 0


def draw(runs: list[str], output: Path | None, animate: bool, title: str, show: str | None) -> Path:
    """Draw finished runs into one figure by the command's options, and return its file."""
    if show in views.CURVES:
        path = output or Path(f"{show}.png")
        save(views.CURVES[show](views.curves_of(runs), title), path)
        return path
    folders = [find_run(Path("runs"), name) for name in runs]
    path = output or next_free_path(folders[0] / f"figure{'.gif' if animate else '.png'}")
    files = [checkpoints_of(folder) / "last.ckpt" for folder in folders]
    for file in files:
        if not file.is_file():
            raise UserError(f"there is no {file}, which holds what is drawn")
    saved = [read_checkpoint(file) for file in files]
    path.parent.mkdir(parents=True, exist_ok=True)
    if all("fit" in one for one in saved) and not animate and show in (None, "weights"):
        made = [fits.CurveFit(**one["fit"]) for one in saved]
        save((fits.draw_weights if show else fits.draw)(made, title), path)
        return path
    key = trajectories.CHECKPOINT_KEY
    if not all(key in one for one in saved) or show == "weights":
        one = "a Surface can be animated" if animate else "one kind, Surface or Curve, can be drawn"
        raise UserError(f"{', '.join(runs)} can't be drawn: only runs of {one}")
    done = [trajectories.Trajectory(**one[key]) for one in saved]
    starts = {trajectory.path.shape[1] for trajectory in done}
    if len({trajectory.function for trajectory in done}) > 1 or len(starts) > 1:
        raise UserError(f"{', '.join(runs)}: not over one function from one start or one grid")
    if (animate or show) and starts != {1}:
        raise UserError("an animation or a view has one start: train without model.grid")
    if animate:
        trajectories.animate(done, title, path)
    else:
        save(views.draw(show, done, title) if show else trajectories.draw(done, title), path)
    return path


def commands(page: Path) -> list[list[str]]:
    """Return the commands of train.py in a Markdown file, as words after that name, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[2:] for words in found if words[:2] == ["python", "train.py"]]


def render(page: Path) -> None:
    """Run all commands of a Markdown file in this process, its runs in a temporary folder.

    What they print is shown only if one fails.
    """
    said = io.StringIO()
    logging.disable(logging.WARNING)
    with folder_of(page), redirect_stdout(said), redirect_stderr(said):
        tools: dict[str, Callable[[list[str]], int]] = {"gallery": gallery.main, "figures": main}
        status = 0
        for words in commands(page):
            if words != ["figures"]:  # this command itself
                tool = tools.get(words[0])
                status = status or (tool(words[1:]) if tool else run_training(words))
    logging.disable(logging.NOTSET)
    if status:
        print(said.getvalue(), file=sys.stderr)
        sys.exit(status)


@contextmanager
def folder_of(page: Path) -> Iterator[None]:
    """Go into a temporary folder where the commands of a page find what they name."""
    with TemporaryDirectory() as folder, chdir(folder):
        for name in ("configs", "examples", "train.py"):
            Path(name).symlink_to(ROOT / name)
        Path("docs").symlink_to(page.parent)
        yield


def run_training(words: list[str]) -> int:
    """Train by the words of a command line, in this process, and return its exit status."""
    import train
    from anneal import main

    try:
        main(train.fit, train.PACKAGES, words if words[0] == "sweep" else ["fit", *words, *QUIET])
    except SystemExit as e:
        return int(e.code or 0)
    return 0
