"""Images with captions in a grid, in a single axes: one for each takes four times as long."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

CELL = 1.5  # inches
TITLE = 0.5
NARROWEST = 4  # columns, for the title
SIDE = 0.75  # of an image, as a part of its cell


def plot_image_grid(
    title: str, images: Sequence[tuple[Tensor, str]], columns: int, fontsize: int = 8
) -> Figure:
    """Draw images in rows, each under its caption.

    Args:
        title: The title above them all.
        images: (image, caption) each; images (C, H, W), 0 to 255, of any size.
        columns: Images in a row.
        fontsize: Size of the captions, in points.
    """
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
        axes.text(middle, above, caption, ha="center", va="bottom", fontsize=fontsize)
    return figure
