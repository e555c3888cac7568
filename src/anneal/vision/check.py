"""Read every image of a folder, and list what is broken or odd.

Of a folder to train on, also say what training would refuse: its layout, its classes.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from anneal.errors import command
from anneal.vision.decode import UnreadableImageError, decode, formats
from anneal.vision.files import ImageFiles
from anneal.vision.layouts import Layout, base_of, scan

SMALL = 32  # pixels
LONG = 8  # times as long as wide


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


@command
def main(args: list[str] | None = None) -> int:
    """Print a line for each; the status is 1 if any is broken, 2 if training would refuse them."""
    parser = argparse.ArgumentParser(prog="python train.py check", description=__doc__)
    parser.add_argument("folder", help="a folder (with its subfolders), a file or a pattern")
    folder = parser.parse_args(args).folder
    pictures = ImageFiles.find(folder)
    warnings.simplefilter("ignore")  # all there is to say of an image stands in its line
    counts: Counter[str] = Counter()
    for path, kind, why in check(pictures):
        counts[kind] += 1
        tqdm.write(f"{kind:6}  {path}: {why}")
    print(f"{len(pictures)} pictures read, {counts['broken']} broken, {counts['odd']} odd")
    if (base_of(root := Path(folder)) / "train").is_dir():
        scan(root, Layout())
    return 1 if counts["broken"] else 0
