"""A page to play with optimizers: `python train.py lab`. One HTML file that needs no network."""

import argparse
import json
from pathlib import Path

import torch

from anneal import command, make_generator
from examples.optimizers import COMMANDS
from examples.optimizers.figure import written
from examples.optimizers.functions import BUILT_IN

FOLDER = Path(__file__).parent / "page"


@command
def main(args: list[str] | None = None) -> int:
    """Write the page and return the exit status."""
    parser = argparse.ArgumentParser("python train.py lab", description=COMMANDS["lab"][1])
    parser.add_argument("-o", "--output", type=Path, default="lab.html", help="file or folder")
    output = parser.parse_args(args).output
    output = output / "lab.html" if output.is_dir() else output
    with written(output):
        output.write_text(page(), encoding="utf-8")
    print(output)
    return 0


def page() -> str:
    """Return the page, with its style, its scripts and what they need of this project."""
    surfaces = {
        name: {"about": str(f.loss.__doc__).splitlines()[0], "view": f.view, "minima": f.minima}
        for name, f in BUILT_IN.items()
    }
    data = {"surfaces": surfaces, "noise": [noise(seed) for seed in range(8)]}
    text = (FOLDER / "lab.html").read_text(encoding="utf-8")
    for path in FOLDER.iterdir():
        text = text.replace(f"/* {path.name} */", path.read_text(encoding="utf-8"))
    return text.replace("/* data */", f"const DATA = {json.dumps(data)};")


def noise(seed: int, steps: int = 1000) -> list[float]:
    """Return what a training draws, step by step: for x, then for y where there is one."""
    rngs = [make_generator(seed, step, step, 0) for step in range(steps)]
    return [u for rng in rngs for u in torch.randn(2, generator=rng, dtype=torch.float64).tolist()]
