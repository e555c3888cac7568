"""Figures of finished runs: `python train.py figures RUN ...`.

Without a run, all figures of docs/optimizers.md and docs/sharpness.md, by the commands there.
"""

import argparse
import io
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anneal import UserError, checkpoints_of, command, find_run, next_free_path, read_checkpoint
from examples.optimizers import COMMANDS, curve, trajectories, views
from examples.optimizers.curve import CurveFit
from examples.optimizers.figure import OFF, save, styled, written
from examples.optimizers.trajectories import CHECKPOINT_KEY, Trajectory

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / name for name in ("optimizers.md", "sharpness.md")]
# What --show can be, of runs of a Curve and of a Surface.
STILL: dict[str | None, Any] = {None: curve.draw, "weights": curve.draw_weights}
WALKS: dict[Any, Any] = {None: trajectories.draw, **views.VIEWS}
SHOWN = [*views.VIEWS, *views.CURVES, "weights", "sharpness"]
QUIET = [f"--trainer.{key}=false" for key in OFF]


@command
def main(args: list[str] | None = None) -> int:
    """Run the command `figures` and return its exit status."""
    about = f"{COMMANDS['figures'][1]}; without a run, all figures of docs."
    parser = argparse.ArgumentParser("python train.py figures", description=about)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder or name of a run of the lab")
    parser.add_argument("-o", "--output", type=Path, help="by default the first run's figure.png")
    parser.add_argument("--animate", action="store_true", help="write an animation, a GIF")
    parser.add_argument("--title", default="", help="what the figure shows, written above it")
    parser.add_argument("--show", choices=SHOWN, help="another view of them")
    options = parser.parse_args(args)
    if not options.runs and vars(options) != vars(parser.parse_args([])):
        raise UserError("figures: options are of a figure of runs: name a RUN, or leave them out")
    if options.runs:
        print(draw(**vars(options)))
    else:
        for page in PAGES:
            render(page)
    return 0


@styled
def draw(runs: list[str], output: Path | None, animate: bool, title: str, show: str | None) -> Path:
    """Draw finished runs into one figure by the command's options, and return its file."""
    if show in views.CURVES:
        view, needed = views.CURVES[show]
        path = output or Path(f"{show}.png")
        save(view(views.curves_of(runs, *needed), title), path)
        return path
    folders = [find_run(Path("runs"), name) for name in runs]
    path = output or next_free_path(folders[0] / f"figure{'.gif' if animate else '.png'}")
    files = [checkpoints_of(folder) / "last.ckpt" for folder in folders]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"there is no {missing[0]}, which holds what is drawn")
    saved = [read_checkpoint(file) for file in files]
    measured = [one["callbacks"].get("Sharpness", {}).get("measured") for one in saved]
    if show == "sharpness" and all(measured):
        save(views.draw_sharpness([folder.name for folder in folders], measured, title), path)
    elif show in STILL and not animate and all("fit" in one for one in saved):
        save(STILL[show]([CurveFit(**one["fit"]) for one in saved], title), path)
    elif show in WALKS and all(CHECKPOINT_KEY in one for one in saved):
        done = [Trajectory(**one[CHECKPOINT_KEY]) for one in saved]
        views.check(done, "animation" if animate else show)
        if animate:
            with written(path):
                trajectories.animate(done, title, path)
        else:
            save(WALKS[show](done, title), path)
    else:
        kinds = "of a Surface; of a Curve (without --animate); with a Sharpness (--show=sharpness)"
        raise UserError(f"{', '.join(runs)} can't be drawn so: only runs {kinds}")
    return path


def commands(page: Path) -> list[list[str]]:
    """Return the commands of train.py in a page's blocks of `sh`, as words after that name."""
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
        done = (execute(words) for words in commands(page) if words != ["figures"])  # not itself
        status = next(filter(None, done), 0)  # ends at the first that fails
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


def execute(words: list[str]) -> int:
    """Run a command of train.py in this process, and return its exit status."""
    import train
    from anneal import main

    try:
        main(train.fit, train.PACKAGES, ["fit", *words, *QUIET] if words[0][0] == "-" else words)
    except SystemExit as e:
        return int(e.code or 0)
    return 0
