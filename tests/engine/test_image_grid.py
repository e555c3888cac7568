"""Names of classes in figures: each is another one, and none is an empty box."""

import itertools
import sys
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont

from anneal import image_grid
from anneal.image_grid import fitted, legible, plot_image_grid
from anneal.tasks.kinds import Classification
from anneal.tasks.test_report import draw_confusion, draw_top_losses

TOP = (1.0, torch.tensor(0), torch.tensor(3), torch.zeros(1, 8, 8))


@pytest.fixture(autouse=True)
def fonts(monkeypatch):
    """The fonts that matplotlib brings, whatever this machine has."""
    own = [f for f in image_grid.fontManager.ttflist if "mpl-data" in f.fname]
    monkeypatch.setattr(image_grid.fontManager, "ttflist", own)
    with mpl.rc_context():
        yield


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def drawn(text: str) -> np.ndarray:
    figure = Figure(figsize=(3, 1))
    figure.text(0.1, 0.5, text)
    return pixels(figure)


def test_names_that_no_font_has_are_numbers_and_the_line_says_which(capsys):
    names = ["猫", "犬", "🐦 bird", "caf\udce9", "Käse", "line\nbreak"]
    sys.stderr.reconfigure(errors="backslashreplace")  # as the command line does
    shown = legible(names)
    assert shown == ["#0", "#1", "#2 bird", "#3 caf", "Käse", "#5 linebreak"]
    said = capsys.readouterr().err
    assert said.startswith("no font here can draw: #0 = 猫, #1 = 犬, #2 bird = 🐦 bird, #3 caf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a missing glyph
        assert len({drawn(name).tobytes() for name in shown}) == len(names)
        pixels(draw_confusion(torch.eye(6, dtype=torch.int64), shown))
        pixels(draw_top_losses([TOP], Classification(), shown))


def test_a_font_of_the_system_is_used(monkeypatch, capsys):
    has = image_grid._characters
    stix = next(f for f in image_grid.fontManager.ttflist if f.name == "STIXGeneral")
    only = next(c for c in sorted(has(stix.fname) - has(findfont(FontProperties()))) if ord(c) > 99)
    assert legible([only, "a"]) == [only, "a"]
    assert mpl.rcParams["font.family"][1:] == ["STIXGeneral"]
    assert capsys.readouterr().err == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawn(only).tobytes() != drawn("").tobytes()


@pytest.mark.parametrize("name", ["$5", "$5 to $9", "$$", r"\alpha$x_", "a_b^c", "50 %", "{x}"])
def test_a_name_is_no_formula(name):
    plain = drawn(legible([name])[0])
    mpl.rcParams["text.parse_math"] = False
    assert np.array_equal(plain, drawn(name))


NAMES = ["a name of forty letters is longer than it", "W" * 40, "i" * 40, "$" * 40, "猫" * 40]


@pytest.mark.parametrize("name", NAMES)
def test_a_long_name_keeps_both_ends_and_its_width(name):
    short = fitted(legible([name])[0], 1.4, 8)
    figure = Figure(figsize=(9, 1), dpi=image_grid.DPI)
    FigureCanvasAgg(figure).draw()
    box = figure.text(0, 0, short, fontsize=8).get_window_extent()
    assert box.width / figure.dpi <= 1.45
    if "…" in short:
        first, _, last = short.replace("\\", "").partition("…")
        assert name.startswith(first)
        assert name.endswith(last)
        assert box.width / figure.dpi > 1


def test_captions_keep_within_their_cells():
    images = [(torch.zeros(1, 8, 8), f"{name}\n50%") for name in legible(NAMES[:2] * 4)]
    figure = plot_image_grid("", images, 8)
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
