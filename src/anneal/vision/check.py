"""Read every image of a folder, and list what is broken or odd.

Of a folder to train on, also say what training would refuse, and count and draw its classes.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from anneal.errors import UserError, command
from anneal.image_grid import legible, plot_image_grid
from anneal.runs.folder import RUNS, next_free_path
from anneal.system import text_table
from anneal.vision.decode import UnreadableImageError, decode, formats
from anneal.vision.files import ImageFiles
from anneal.vision.index import ImageFolder
from anneal.vision.layouts import Layout, base_of, split_folders
from anneal.vision.transforms import ValTransform

SMALL = 32  # pixels
LONG = 8  # times as long as wide
SHOWN, MOST, SIDE = 96, 200, 128  # images of a sheet, if there are so many classes, their pixels


def look(pictures: ImageFiles, index: int) -> tuple[str, str]:
    """Return (`broken`, reason), (`odd`, reason) or two empty strings for one image."""
    try:
        data = pictures.read(index)
        image = decode(data)
    except UnreadableImageError as e:
        return "broken", str(e)
    height, width = image.shape[1:]
    found = []
    if min(height, width) < SMALL:
        found.append(f"only {width} x {height} pixels")
    elif max(height, width) > LONG * min(height, width):
        found.append(f"{width} x {height} pixels")
    # Pillow may not know what libjpeg could read.
    with suppress(Exception), Image.open(BytesIO(data), formats=formats()) as stored:
        ending = Path(pictures.path(index)).suffix.lower()
        if Image.registered_extensions().get(ending, stored.format) != stored.format:
            found.append(f"{stored.format} by its content")
        if stored.mode not in ("RGB", "L"):
            found.append(f"mode {stored.mode}")
        if stored.getexif().get(0x0112, 1) != 1:
            found.append("rotated by EXIF")
    return ("odd", ", ".join(found)) if found else ("", "")


def check(pictures: ImageFiles) -> Iterator[tuple[str, str, str]]:
    """Yield (path, `broken` or `odd`, reason) of every image that is not as most are."""
    indices = iter(range(len(pictures)))
    with (
        ThreadPoolExecutor() as pool,  # decoding leaves Python's lock alone
        tqdm(total=len(pictures), unit=" pictures", disable=None) as bar,
    ):
        # In pieces, as map() would hold the results of a million pictures.
        while piece := list(islice(indices, 1024)):
            for i, (kind, why) in zip(piece, pool.map(partial(look, pictures), piece), strict=True):
                bar.update()
                if kind:
                    yield pictures.path(i), kind, why


def summarize(splits: dict[str, ImageFolder]) -> Figure:
    """Print what each split has of each class or number, and draw some images of each."""
    train, names = splits["train"], splits["train"].class_names
    rows = [["", *splits], ["images", *(f"{len(pictures):,}" for pictures in splits.values())]]
    cells: list[tuple[Tensor, str]] = []
    each = min(8, max(1, SHOWN // len(names)))
    for k, drawn in enumerate(legible(names)):
        of = [p.labels == k if p.labels.ndim == 1 else p.labels[:, k] for p in splits.values()]
        words = [""] * each
        if train.task == "regression":
            said = [f"{values.min():.4g} to {values.max():.4g}" for values in of]
            found = of[0].argsort()[np.linspace(0, len(train) - 1, each).astype(int)]
            words = [f"{value:.4g}" for value in of[0][found]]
        else:
            said = [f"{int(values.sum()):,}" for values in of]
            found = np.flatnonzero(of[0])[:each]
            words[0] = ", ".join(f"{n} {split}" for n, split in zip(said, splits, strict=True))
        rows.append([names[k], *said])
        if len(cells) < MOST:
            words[0] = f"{drawn}\n{words[0]}"
            indices = [*found, *[-1] * (each - len(found))]
            cells += [(thumbnail(train, i), w) for i, w in zip(indices, words, strict=True)]
    print(text_table(rows, left=1))
    targets = "targets" if len(names) > 1 else "target"
    kind = {"multilabel": "labels", "regression": targets}.get(train.task, "classes")
    title = f"{train.prefix.rstrip('/')}: {len(names)} {kind}"
    return plot_image_grid(title, cells, each * (10 // each), fontsize=7)


def thumbnail(pictures: ImageFolder, index: int) -> Tensor:
    """Return the middle of an image, or white."""
    with suppress(UnreadableImageError):
        if index >= 0:
            return ValTransform(SIDE, SIDE, "bilinear", True)(pictures.image(index))
    return torch.full((3, SIDE, SIDE), 255)


@command
def main(args: list[str] | None = None) -> int:
    """Print a line for each; the status is 1 if any is broken, 2 if training would refuse them."""
    parser = ArgumentParser(prog="python train.py check", description=__doc__)
    parser.add_argument("folder", help="a folder (with its subfolders), a file or a pattern")
    parser.add_class_arguments(Layout)
    options = parser.parse_args(args)
    layout, root = Layout.of(options), Path(options.folder)
    pictures = ImageFiles.find(options.folder)
    warnings.simplefilter("ignore")  # all there is to say of an image stands in its line
    counts: Counter[str] = Counter()
    for path, kind, why in check(pictures):
        counts[kind] += 1
        tqdm.write(f"{kind:6}  {path}: {why}")
    print(f"{len(pictures)} pictures read, {counts['broken']} broken, {counts['odd']} odd")
    try:
        figure = summarize(ImageFolder.splits(root, layout=layout))
    except UserError as e:
        listed = layout.labels or layout.label_pattern
        if listed or (root.is_dir() and split_folders(base_of(root))):
            raise
        print(f"not to train on as it is: {e}")
    else:
        RUNS.mkdir(exist_ok=True)
        figure.savefig(sheet := next_free_path(RUNS / "check.png"), dpi=120)
        print(sheet)
    return 1 if counts["broken"] else 0
