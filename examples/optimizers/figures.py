"""Pictures of finished runs.

Without a run, all pictures of docs/optimizers.md, by the commands that stand there.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.animation import writers

from anneal.cli.imports import cli
from anneal.errors import UserError, command
from anneal.runs import folder as runs
from examples.optimizers import fits, gallery
from examples.optimizers import trajectories as walks
from examples.optimizers.saving import save

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "optimizers.md"
PACKAGES = ["examples.optimizers"]
QUIET = [
    f"--trainer.{key}=false" for key in ("logger", "enable_progress_bar", "enable_model_summary")
]


@command
def main(args: list[str] | None = None) -> int:
    """Runs one command; the exit status."""
    parser = argparse.ArgumentParser("python -m examples.optimizers.figures", description=__doc__)
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folder or name of a run of a Surface or a Curve; several are drawn over each other",
    )
    parser.add_argument("-o", "--output", type=Path, help="by default the first run's picture.png")
    parser.add_argument(
        "--animate", action="store_true", help="make a film, GIF or, if OUTPUT ends so, MP4"
    )
    options = parser.parse_args(args)
    if options.runs:
        print(draw(options.runs, options.output, options.animate))
    else:
        render(TOUR)
    return 0


def draw(names: list[str], output: Path | None = None, animate: bool = False) -> Path:
    """Draws finished runs, all over the same function or all fits of the curve.

    Args:
        names: Folders, or names of folders in runs/.
        output: What to write; None: picture.png or .gif in the first run's folder.
        animate: Whether to make a film.

    Raises:
        UserError: They can't be drawn, or not together, or there is no ffmpeg for an MP4.
    """
    folders = [runs.find_run(Path("runs"), name) for name in names]
    path = output or runs.next_free_path(folders[0] / f"picture{'.gif' if animate else '.png'}")
    saved = [_last(folder) for folder in folders]
    path.parent.mkdir(parents=True, exist_ok=True)
    if all("fit" in one for one in saved) and not animate:
        save(fits.draw([fits.CurveFit(**one["fit"]) for one in saved]), path)
        return path
    if not all("walk" in one for one in saved):
        only = "only runs of a Surface make a film" if animate else "some are of a Surface or Curve"
        raise UserError(f"{', '.join(names)} can't be drawn: {only}")
    ways = [walks.Trajectory(**one["walk"]) for one in saved]
    starts = {way.path.shape[1] for way in ways}
    if len({way.function for way in ways}) > 1 or len(starts) > 1:
        raise UserError(f"{', '.join(names)}: not over one function from one start or one grid")
    if not animate:
        save(walks.draw(ways), path)
        return path
    if starts != {1}:
        raise UserError("a film is of walks from one start: train without model.grid")
    writer = "ffmpeg" if path.suffix == ".mp4" else "pillow"
    if not writers.is_available(writer):
        raise UserError(f"{path}: an MP4 needs ffmpeg, which is not there; make a .gif")
    walks.film(ways).save(path, writer=writer, fps=12, dpi=80)
    return path


def _last(folder: Path) -> dict[str, Any]:
    path = folder / "checkpoints" / runs.LAST
    if not path.is_file():
        raise UserError(f"{folder} has no checkpoints/{runs.LAST}, which holds what is drawn")
    return runs.read_checkpoint(path)


def commands(tour: Path) -> list[list[str]]:
    """The commands in a Markdown file that train and draw, as words, in their order."""
    blocks = re.findall(r"```sh\n(.*?)```", tour.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("python ")]


def render(tour: Path) -> None:
    """Runs all commands of a Markdown file in this process, its runs in a folder for the time."""
    with TemporaryDirectory() as folder:
        for words in commands(tour):
            words = [re.sub("^runs/", f"{folder}/", word) for word in words]
            if words[0] == "train.py":
                cli.main(
                    PACKAGES, ["fit", *words[1:], f"--trainer.default_root_dir={folder}", *QUIET]
                )
            elif words[:2] == ["-m", "examples.optimizers.gallery"]:
                gallery.main(words[2:])
            elif (
                words[:2] == ["-m", "examples.optimizers.figures"]
                and words[2:]
                and (status := main(words[2:]))
            ):
                sys.exit(status)


if __name__ == "__main__":
    sys.exit(main())
