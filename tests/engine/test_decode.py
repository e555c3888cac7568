import io
import os
import sys
from contextlib import suppress
from functools import cache
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anneal import testing as photos
from anneal.vision import check
from anneal.vision.decode import UnreadableImageError, decode, formats
from anneal.vision.files import MAX_BYTES, read_file


def as_pillow(data: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_has_the_pixels_that_pillow_gives(subsampling, progressive):
    options = {"quality": 90, "subsampling": subsampling, "progressive": progressive}
    data = photos.encoded(photos.picture(size=(123, 77)), **options)
    assert torch.equal(decode(data), as_pillow(data))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "RGB"])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_every_mode_and_format_becomes_rgb(mode, image_format):
    image = photos.picture().convert(mode)
    try:
        data = photos.encoded(image, image_format)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"Pillow writes no {image_format} of mode {mode}")
    decoded = decode(data)
    assert decoded.shape == (3, 32, 40)
    assert decoded.dtype == torch.uint8
    red, green, blue = decoded.float().mean((1, 2)).tolist()
    if mode in ("RGB", "RGBA", "P", "CMYK"):
        assert red > green + 50
        assert red > blue + 50
    else:
        assert red == pytest.approx(green, abs=2)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_and_not_clipped(image_format):
    ramp = np.tile(np.linspace(0, 65535, 96).astype(np.uint16), (8, 1))
    decoded = decode(photos.encoded(Image.fromarray(ramp), image_format)).float()
    assert decoded.mean() == pytest.approx(127.5, abs=1)
    assert torch.allclose(decoded[0, 0], torch.linspace(0, 255, 96), atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_over_black(mode):
    hidden = Image.new("LA", (40, 32), (255, 0))
    hidden.paste((200, 255), (0, 0, 20, 32))
    image = hidden.convert("RGBA").quantize(4) if mode == "P" else hidden.convert(mode)
    decoded = decode(photos.encoded(image, "PNG"))
    assert decoded[:, :, :20].unique().tolist() == [200]
    assert decoded[:, :, 20:].unique().tolist() == [0]


def test_megabytes_of_text_in_a_png_are_no_reason_to_refuse_it():
    text = PngInfo()
    text.add_text("workflow", "x" * 5_000_000, zip=True)
    assert decode(photos.encoded(photos.picture(), "PNG", pnginfo=text)).shape == (3, 32, 40)


def test_a_plug_in_of_pillow_is_used(monkeypatch):
    heif = ModuleType("pillow_heif")
    heif.register_heif_opener = lambda: Image.register_open("HEIF", Image.OPEN["PNG"][0])
    monkeypatch.setitem(sys.modules, "pillow_heif", heif)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert "HEIF" in formats.__wrapped__()
    assert "EPS" not in formats()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_the_bar_is_on_top_whatever_the_camera_did(orientation, image_format):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = photos.picture(size=(50, 40))
    if orientation in undo:
        image = image.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(photos.encoded(image, image_format, exif=exif)).float()
    assert decoded.shape == (3, 40, 50)
    assert decoded[:, :7].mean() > decoded[:, 9:].mean() + 30


@cache
def broken() -> dict[str, bytes]:
    whole = photos.encoded(photos.picture(size=(320, 240)), quality=90)
    png = photos.encoded(photos.picture(size=(320, 240)), "PNG")
    bomb = photos.encoded(Image.new("1", (14000, 14000), 1), "PNG")
    return {
        "cut": whole[: len(whole) * 6 // 10],
        "cut png": png[: len(png) // 2],
        "only a header": whole[:300],
        "empty": b"",
        "a page": b"<!doctype html><title>not found</title>\n",
        "a bomb": bomb,
        "a smaller bomb": photos.encoded(Image.new("1", (11000, 10000), 1), "PNG"),
        "a JPEG of many scans": whole[:2] + b"\xff\xda\0\2" * 100 + whole[2:],
        "a program for Ghostscript": photos.encoded(photos.picture(), "EPS"),
        "integers of 32 bits": photos.encoded(
            Image.fromarray(np.arange(1280, dtype=np.int32).reshape(32, 40)), "TIFF"
        ),
        "floats": photos.encoded(photos.picture().convert("F"), "TIFF"),
    }


@pytest.mark.parametrize("kind", broken())
def test_a_broken_picture_is_one_kind_of_error(kind):
    with pytest.raises(UnreadableImageError) as e:
        decode(broken()[kind])
    assert str(e.value)
    assert "0x" not in str(e.value)
    assert not str(e.value).endswith(".")  # it stands within a sentence


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("a JPEG of many scans", r"a JPEG of \d+ scans, more than"),
        ("a program for Ghostscript", "cannot identify image file"),
        ("integers of 32 bits", "its pixels are 32-bit integers of unknown range"),
        ("floats", "its pixels are floating-point numbers of unknown range"),
    ],
)
def test_what_takes_long_or_runs_a_program_is_refused_for_that(kind, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode(broken()[kind])


def test_no_damage_ends_in_anything_but_a_picture_or_that_error():
    rng = np.random.default_rng(0)
    for image_format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF"):
        whole = np.frombuffer(photos.encoded(photos.picture(), image_format), np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[rng.integers(len(data), size=3)] ^= rng.integers(1, 256, 3).astype(np.uint8)
            with suppress(UnreadableImageError):
                assert decode(data[: rng.integers(len(data) // 2, len(data))].tobytes()).ndim == 3


def test_a_pipe_or_a_huge_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for name in ("pipe.jpg", "huge.jpg"):
        with pytest.raises(UnreadableImageError):
            read_file(tmp_path / name)


def test_check_lists_what_is_broken_and_odd(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos.image_folder(tmp_path)
    (tmp_path / "train/n01/page.JPEG").write_text("<!doctype html>")
    (tmp_path / "train/n01/._twin.JPEG").write_bytes(b"\0\5\x16\7")
    (tmp_path / "train/n01/gone.JPEG").symlink_to("/nonexistent.JPEG")
    photos.save(photos.picture(), tmp_path / "train/n02/really.JPEG", format="PNG")
    photos.save(photos.picture(size=(900, 3)), tmp_path / "val/n02/thin.JPEG")
    assert check.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "40 pictures read, 2 broken, 2 odd"
    assert [line.split()[0] for line in lines[:4]] == ["broken", "broken", "odd", "odd"]
    assert any("really.JPEG: PNG by its content" in line for line in lines)
    (tmp_path / "train/n01/page.JPEG").unlink()
    (tmp_path / "train/n01/gone.JPEG").unlink()
    assert check.main([str(tmp_path)]) == 0
    assert check.main([str(tmp_path / "nothing")]) == 2


def test_check_says_what_training_would_refuse(tmp_path, capsys):
    photos.image_folder(tmp_path)
    (tmp_path / "val/n02").rename(tmp_path / "val/N02")
    assert check.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"error: {tmp_path}/val/N02: no class of that name")
