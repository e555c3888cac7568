"""Pictures and films of finished runs, and the commands and pictures of docs/optimizers.md."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anneal.testing import main as train
from examples.optimizers import gallery
from examples.optimizers.figures import TOUR, commands, main, render
from examples.optimizers.functions import BUILT_IN
from examples.optimizers.trajectories import Trajectory, draw, ends_in

ROOT = TOUR.parents[1]
COMMANDS = commands(TOUR)
TRAINS = [words for words in COMMANDS if words[0] == "train.py"]
LIMITS = {"file": 150_000, "folder": 2_000_000}


def colours(path):
    """How many colours stand in a picture: of an empty one, 1."""
    return len(Image.open(path).convert("RGB").getcolors(2**24))


@pytest.fixture
def runs(run):
    """A walk, one over another surface, a basin and a fit; starts more of them."""

    def start(name, config, *flags, steps=8):
        config = f"--config={ROOT / 'configs' / config}.yaml"
        run("fit", config, f"--run_name={name}", f"--data.steps={steps}", *flags)

    start("a", "surface_valley")
    start("other", "surface_descent")
    start("basins", "surface_basins", "--model.grid=6")
    start("fit", "curve_polynomial", "--trainer.max_epochs=1")
    return start


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_finished_runs_are_drawn_alone_together_and_as_films(runs, capsys):
    runs("b", "surface_valley", "--model.optimizer.momentum=0.9", steps=12)
    runs("line", "surface_lr_small", "--model.grid=12", "--model.start=null")
    for names in (["a"], ["a", "b"], ["other"], ["basins"], ["line"], ["fit"], ["fit", "fit"]):
        main([*(f"runs/{name}" for name in names), "-o", f"out/{'-'.join(names)}.png"])
        path = Path(capsys.readouterr().out.splitlines()[-1])
        assert path == Path(f"out/{'-'.join(names)}.png")
        assert colours(path) > 20
    main(["a"])  # by name, beside the picture of the run itself
    assert Path("runs/a/picture.png").is_file()
    assert Path("runs/a/picture-2.png").is_file()
    main(["a", "b", "--animate"])
    film = Image.open("runs/a/picture.gif")
    assert film.n_frames >= 13  # one for each of 12 steps and the start
    assert (frame(film, 0) != frame(film, film.n_frames - 1)).any()


def frame(film, i):
    film.seek(i)
    return np.asarray(film.convert("RGB")).copy()


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffmpeg")
def test_a_film_may_be_an_mp4(runs):
    main(["a", "--animate", "-o", "a.mp4"])
    entries = "stream=codec_name,nb_read_frames"
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", entries, "a.mp4"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "codec_name=h264" in shown
    (frames,) = (line for line in shown.splitlines() if line.startswith("nb_read_frames="))
    assert int(frames.partition("=")[2]) >= 13


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_what_can_not_be_drawn_is_said_in_a_line(runs, capsys, monkeypatch):
    monkeypatch.setattr("examples.optimizers.figures.writers.is_available", lambda name: False)
    Path("runs/other/checkpoints/last.ckpt").unlink()
    for words, message in (
        (["nothing"], "no such run"),
        (["other"], "has no checkpoints/last.ckpt"),
        (["a", "fit"], "can't be drawn"),
        (["a", "basins"], "not over one function"),
        (["fit", "--animate"], "only runs of a Surface"),
        (["basins", "--animate"], "without model.grid"),
        (["a", "--animate", "-o", "a.mp4"], "needs ffmpeg"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_an_end_belongs_to_the_minimum_it_has_reached():
    function = BUILT_IN["himmelblau"]
    points = torch.tensor([[3.0, 2.0], [3.58, -1.85], [0.0, 0.0], [3.3, 2.3]])
    assert ends_in(function, points).tolist() == [0, 3, -1, -1]


def test_a_walk_that_gets_away_is_drawn_as_well():
    far = torch.tensor([1.0, 1e9, -1e30, float("inf"), float("nan")])
    for function, dims in (("well", 1), ("valley", 2)):
        walk = Trajectory(function, "away", far[:, None, None].expand(-1, 1, dims), [0.1] * 4)
        draw([walk]).savefig("/dev/null", format="png")


# ---- the tour


def test_every_picture_of_the_tour_is_made_by_a_command_of_it():
    shown = set(re.findall(r"!\[.+?\]\((.+?)\)", TOUR.read_text()))
    made = {f"figures/{Path(words[-1]).name}" for words in COMMANDS if "-o" in words}
    made |= {f"figures/gallery-{name}.png" for name in gallery.STARTS}
    assert shown == made
    assert ["-m", "examples.optimizers.gallery"] in COMMANDS
    pictures = [TOUR.parent / name for name in shown]
    sizes = [path.stat().st_size for path in pictures]
    assert min(map(colours, pictures)) > 20
    assert max(sizes) < LIMITS["file"]
    assert sum(sizes) < LIMITS["folder"]


@pytest.mark.parametrize("words", TRAINS, ids=lambda words: words[-1])
def test_every_training_of_the_tour_is_accepted(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as e:
        train(["fit", *words[1:], "--print_config"])
    assert not e.value.code


def test_every_surface_recipe_stands_in_the_tour():
    recipes = {p.name for p in (ROOT / "configs").glob("*.yaml")}
    recipes = {name for name in recipes if name.startswith(("surface", "curve"))}
    assert recipes == {Path(words[1].partition("=")[2]).name for words in TRAINS}


def test_the_gallery_has_at_least_eleven_optimizers_on_six_surfaces():
    assert len(gallery.RATES) >= 11
    assert len(gallery.STARTS) >= 6
    assert all(len(rates) == len(gallery.STARTS) for rates in gallery.RATES.values())
    figure = gallery.draw_gallery("quadratic", steps=2)
    assert len(figure.axes) == len(gallery.RATES)


def test_a_tour_is_rendered_by_its_own_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gallery, "draw_gallery", lambda function: draw([walk_of(function)]))
    (tmp_path / "tour.md").write_text(
        f"```sh\npython train.py --config={ROOT}/configs/surface_descent.yaml --run_name=it\n"
        "python -m anneal.figures runs/it \\\n    -o figures/it.png   # with a comment\n"
        "python -m examples.optimizers.gallery saddle -o figures\n```\n"
    )
    render(tmp_path / "tour.md")
    assert colours("figures/it.png") > 20
    assert colours("figures/gallery-saddle.png") > 20
    assert not Path("runs").exists()


def walk_of(function):
    return Trajectory(function, "still", torch.ones(2, 1, 2), [0.1])
