"""Small pictures of a colour for each class, in the folders that the tests train on."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"n01": (200, 40, 40), "n02": (40, 200, 40), "n03": (40, 40, 200)}


def picture(color=(200, 40, 40), seed=0, size=(40, 32)) -> Image.Image:
    """Of one colour with noise, and a light bar along its top."""
    noise = np.random.default_rng(seed).integers(-25, 26, (size[1], size[0], 3))
    pixels = np.clip(np.array(color) + noise, 0, 255)
    pixels[: size[1] // 5] = np.minimum(pixels[: size[1] // 5] + 50, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, options.pop("format", "JPEG"), **{"quality": 90, **options})
    return path


def encoded(image: Image.Image, image_format="JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def folder(root: Path, train=8, val=4, colors=COLORS) -> Path:
    """Class folders in train and val."""
    for split, n in (("train", train), ("val", val)):
        for number, (name, color) in enumerate(colors.items()):
            for i in range(n):
                image = picture(color, seed=1000 * number + i + 500 * (split == "val"))
                save(image, root / split / name / f"{name}_{i:03d}.JPEG")
    return root
