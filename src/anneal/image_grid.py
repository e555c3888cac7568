"""Images with captions in a grid, in a single axes: one for each takes four times as long."""

import math
import sys
from collections.abc import Sequence

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.ft2font import FT2Font
from torch import Tensor

CELL = 1.5  # inches
TITLE = 0.5
NARROWEST = 4  # columns, for the title
MOST = 20  # names that are printed
SIDE = 0.75  # of an image, as a part of its cell
DPI = 120  # of the files


def plot_image_grid(
    title: str, images: Sequence[tuple[Tensor, str]], columns: int, fontsize: int = 8
) -> Figure:
    """Draw images (C, H, W), 0 to 255, of any size, in rows and each under its caption."""
    rows = math.ceil(len(images) / columns)
    columns = min(columns, max(len(images), NARROWEST))
    height = TITLE + CELL * rows
    figure = Figure(figsize=(CELL * columns, height))
    figure.suptitle(title, y=1 - TITLE / 2 / height, va="center")
    axes = figure.add_axes((0, 0, 1, 1 - TITLE / height), xlim=(0, columns), ylim=(rows, 0))
    axes.axis("off")
    for i, (image, caption) in enumerate(images):
        row, column = divmod(i, columns)
        longest = max(image.shape[1:])
        h, w = (SIDE * side / longest for side in image.shape[1:])
        middle, bottom = column + 0.5, row + 0.95
        pixels = image.float().round().clamp(0, 255).byte().permute(1, 2, 0).squeeze(-1).numpy()
        box = (middle - w / 2, middle + w / 2, bottom, bottom - h)
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=box)
        above = bottom - h - 0.02
        lines = "\n".join(fitted(line, 0.95 * CELL, fontsize) for line in caption.split("\n"))
        axes.text(middle, above, lines, ha="center", va="bottom", fontsize=fontsize)
    return figure


def fitted(name: str, width: float, fontsize: float) -> str:
    """Return a name as `legible` has it, without its middle if it is wider than so many inches."""
    fonts = [findfont(FontProperties(family=[f])) for f in rcParams["font.family"]]
    font = get_font(fonts)
    font.set_size(fontsize, DPI)
    whole = shown = name.replace(r"\$", "$")
    kept, most = len(whole), 64 * DPI * width
    while kept > 1:
        font.set_text(shown)
        if (now := font.get_width_height()[0]) <= most:
            break
        kept = min(kept - 1, int(kept * most / now) + 2)
        shown = f"{whole[: kept - kept // 2]}…{whole[len(whole) - kept // 2 :]}"
    return shown.replace("$", r"\$")


def legible(names: Sequence[str]) -> list[str]:
    """Return names as they can be drawn: a number stands for what no font has, and is printed.

    Fonts of the system that have missing characters are put behind matplotlib's own.
    """
    lacking = {c for name in names for c in name} - _characters(findfont(FontProperties()))
    for font in fontManager.ttflist:
        if lacking and (found := lacking & _characters(font.fname)):
            rcParams["font.family"] = [*rcParams["font.family"], font.name]
            lacking -= found
    drawn = []
    for i, name in enumerate(names):
        part = "".join(c for c in name if c not in lacking).strip()
        drawn.append((name if part == name else f"#{i} {part}".strip()).replace("$", r"\$"))
    if legend := [f"{d} = {n}" for d, n in zip(drawn, names, strict=True) if lacking & set(n)]:
        more = ", ..." if len(legend) > MOST else ""
        print(f"no font here can draw: {', '.join(legend[:MOST])}{more}", file=sys.stderr)
    return drawn


def _characters(font: str) -> set[str]:
    """Return what a font can draw in any size; the last resort draws a box for everything."""
    face = FT2Font(font)
    found = face.get_charmap() if face.scalable and "LastResort" not in font else ()
    return set(map(chr, found))
