"""A page to play with optimizers: `python train.py lab`. One HTML file that needs no network."""

import argparse
import base64
import json
from pathlib import Path

import torch

from anneal import command, make_generator
from examples.optimizers import COMMANDS
from examples.optimizers.functions import BUILT_IN

FOLDER = Path(__file__).parent / "page"
SEEDS, STEPS = 8, 1000  # of the noise that the page knows


@command
def main(args: list[str] | None = None) -> int:
    """Write the page and return the exit status."""
    parser = argparse.ArgumentParser("python train.py lab", description=COMMANDS["lab"][1])
    parser.add_argument("-o", "--output", type=Path, default=Path("lab.html"), help="the file")
    output = parser.parse_args(args).output
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(), encoding="utf-8")
    print(output)
    return 0


def page() -> str:
    """Return the page, with its style, its scripts and what they need of this project."""
    surfaces = {
        name: {"about": str(f.loss.__doc__).splitlines()[0], "view": f.view, "minima": f.minima}
        for name, f in BUILT_IN.items()
    }
    data = {"surfaces": surfaces, "noise": [noise(seed) for seed in range(SEEDS)]}
    text = (FOLDER / "lab.html").read_text(encoding="utf-8")
    for path in FOLDER.iterdir():
        text = text.replace(f"/* {path.name} */", path.read_text(encoding="utf-8"))
    return text.replace("/* data */", f"const DATA = {json.dumps(data)};")


def noise(seed: int) -> str:
    """Return what a training draws for x and y (for x alone, the first), by step, in base64."""
    rngs = [make_generator(seed, step, step, 0) for step in range(STEPS)]
    draws = torch.stack([torch.randn(2, generator=rng, dtype=torch.float64) for rng in rngs])
    return base64.b64encode(draws.numpy().tobytes()).decode()
