"""Decoding of images of any kind to RGB, the same for training, validation and prediction."""

import warnings
from contextlib import suppress
from functools import cache
from importlib import import_module
from io import BytesIO

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

MAX_PIXELS = 100_000_000  # 300 MB decoded; a few KB on disk can unpack to any size
MAX_SCANS = 64  # of a JPEG, usually 10; each goes over all pixels again
COMMON = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# Pillow has Ghostscript run an EPS, knows no pixels of some, and unpacks FITS to any size.
REFUSED = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "FITS"}
# Image generators write megabytes of text into a PNG.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
EXIF = b"Exif\0\0"
APPLICATION = {bytes([marker]) for marker in (*range(0xE0, 0xF0), 0xFE)}  # and comments


class UnreadableImageError(Exception):
    """Reason why an image can't be read."""


@cache
def formats() -> tuple[str, ...]:
    """Return what is read: all that Pillow and its plug-ins open, but for `REFUSED`."""
    with suppress(ImportError):  # where it is installed, HEIC is read
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    return (*COMMON, *(name for name in Image.OPEN if name not in REFUSED.union(COMMON)))


def decode(data: bytes) -> Tensor:
    """Return an RGB image, (3, H, W) uint8, its channels last in memory.

    Grey is repeated, CMYK and palettes are converted, what is transparent lies over black, 16 bits
    are scaled to 8, and EXIF's rotation is applied. A plain JPEG takes simplejpeg's way, which
    gives the same pixels as Pillow's in half the time.

    Raises:
        UnreadableImageError: It is cut, no image, or larger than MAX_PIXELS.
    """
    is_jpeg = data.startswith(b"\xff\xd8")
    if is_jpeg and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise UnreadableImageError(f"a JPEG of {scans} scans, more than {MAX_SCANS}")
    if is_jpeg and not _has_exif(data):
        # What libjpeg only warns of, Pillow knows to tell: cut or readable all the same.
        with suppress(ValueError):
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            if colorspace in ("YCbCr", "RGB", "Gray"):
                _check_size(width, height)
                return torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
    return torch.from_numpy(np.array(_open(data))).permute(2, 0, 1)


def _open(data: bytes) -> Image.Image:
    """Return any image that Pillow reads, in RGB."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bombs are refused below, odd EXIF does not matter
            image: Image.Image = Image.open(BytesIO(data), formats=formats())
            _check_size(*image.size)
            # Of integers only these say their range: Pillow brings it to 16 bits.
            if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
                kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
                raise UnreadableImageError(f"its pixels are {kind} of unknown range")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
                return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
            return image.convert("RGB")
    except UnreadableImageError:
        raise
    except Exception as e:  # Pillow's formats raise a dozen types
        reason = "empty" if not data else str(e).split(" <_io")[0] or type(e).__name__
        raise UnreadableImageError(reason.rstrip(".")) from e


def _has_exif(data: bytes) -> bool:
    """Return whether a JPEG has EXIF among the segments it begins with."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] in APPLICATION:
        if data.startswith(EXIF, at + 4):
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
