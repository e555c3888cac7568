"""Figures and animations of finished runs, the commands and figures of docs/optimizers.md."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
import yaml
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image, ImageSequence

from examples.optimizers import COMMANDS, course, figures, gallery
from examples.optimizers.figure import COLOURS, HEIGHT, MARKS, looks_like, save, styled
from examples.optimizers.figures import PAGES, ROOT, commands, main, render
from examples.optimizers.functions import BUILT_IN
from examples.optimizers.trajectories import Trajectory, draw, ends_in

AFFINE, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BILINEAR
CONFIGS = Path(__file__).parents[1] / "configs"
LINE = torch.linspace(-9, 0, 30)
CASES = yaml.safe_load(Path(__file__).with_name("cases.yaml").read_text())
DOCS = [*PAGES, ROOT / "docs" / "ladder.md"]
TEXT = "".join(page.read_text() for page in DOCS)
COMMANDS_THERE = [words for page in DOCS for words in commands(page)]


def shades(path):
    """Return the number of shades of grey in an image: of an empty one, 1."""
    return np.count_nonzero(Image.open(path).convert("L").histogram())


@pytest.fixture
def runs(run):
    """Train surfaces, a grid of starts and a curve; return what trains more."""

    def start(name, config, *flags, steps=8):
        config = f"--config={CONFIGS / config}.yaml"
        run("fit", config, f"--run_name={name}", f"--data.steps={steps}", *flags)

    start("a", "surface_valley")
    start("other", "surface_descent")
    start("basins", "surface_basins", "--model.grid=6")
    start("fit", "curve_polynomial", "--trainer.max_epochs=1")
    return start


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_finished_runs_are_drawn_alone_together_and_as_animations(runs, capsys, monkeypatch):
    def save_labelled(figure, path):
        for axes in figure.axes:  # each axis has its name, or shares one that has
            assert any(one.get_xlabel() for one in axes.get_shared_x_axes().get_siblings(axes))
            assert any(one.get_ylabel() for one in axes.get_shared_y_axes().get_siblings(axes))
        save(figure, path)

    monkeypatch.setattr(figures, "save", save_labelled)
    runs("b", "surface_valley", "--model.optimizer.momentum=0.9", steps=12)
    runs("falls", "surface_valley", "--model.schedule.scheduler=CosineAnnealingLR")
    runs("line", "surface_lr_small", "--model.grid=12", "--model.start=null")
    runs("edge", "edge_of_stability", "--trainer.callbacks.every_n_steps=3")
    for words in CASES["drawn"]:
        main([*words.split(), "-o", "out/it.png"])
        assert capsys.readouterr().out.splitlines()[-1] == "out/it.png"
        assert shades("out/it.png") > 20
        Path("out/it.png").unlink()
    main(["a"])  # by name, beside the figure of the training itself
    assert Path("runs/a/figure-2.png").is_file()
    main(["a", "b", "--animate"])
    frames = ImageSequence.all_frames(Image.open("runs/a/figure.gif"))
    assert len(frames) >= 13  # one for each of 12 steps and the start
    first, last = (np.asarray(frame.convert("RGB")) for frame in (frames[0], frames[-1]))
    assert (first != last).any()
    for colour in ("white", *COLOURS[:2], MARKS["global minimum"]["mfc"]):
        assert (np.abs(last - 255 * np.array(to_rgb(colour))).max(-1) < 2).sum() > 20, colour


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_what_can_not_be_drawn_read_or_written_is_said_in_a_line(runs, capsys):
    Path("runs/other/checkpoints/last.ckpt").unlink()
    Path("answers.yaml").mkdir()
    for line, message in CASES["commands"]:
        name, *words = line.split()
        assert resolve_name(COMMANDS[name][0])(words) == 2, line
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_an_end_belongs_to_the_minimum_it_has_reached():
    function = BUILT_IN["himmelblau"]
    points = torch.tensor([[3.0, 2.0], [3.58, -1.85], [0.0, 0.0], [3.3, 2.3]])
    assert ends_in(function, points).tolist() == [0, 3, -1, -1]


@styled
def figure_of(xs=LINE, label="it", function="valley", dims=2, starts=1, **settings):
    path = xs[:, None, None].expand(-1, starts, dims)
    return draw([Trajectory(function, label, path, [0.1] * (len(xs) - 1))], **settings)


def test_a_figure_is_the_same_bytes_twice_with_the_colours_it_was_drawn_in(tmp_path):
    for name in ("a.png", "b.png"):
        save(figure_of(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    image = Image.open(tmp_path / "a.png")
    assert image.mode == "RGB"
    found = [colour for n, colour in image.getcolors(2**24) if n > 3000]
    shades = HEIGHT(np.linspace(0, 1, 14), bytes=True)[:, :3].astype(int)
    for colour in found:
        assert np.abs(shades - colour).max(1).min() <= 1 or min(colour) > 250, colour


def test_a_figure_is_written_again_only_if_a_person_sees_a_difference(tmp_path):
    path = tmp_path / "it.png"
    save(figure_of(title="lr 0.17"), path)
    image = Image.open(path).convert("RGB")
    smooth = image.transform(image.size, AFFINE, (1, 0, 0.3, 0, 1, 0.1), BILINEAR)
    assert (np.asarray(smooth) != np.asarray(image)).any()
    assert looks_like(smooth, path)
    assert not looks_like(image.point(lambda shade: max(0, shade - 3)), path)  # another palette
    smooth.save(path)
    before = path.read_bytes()
    save(figure_of(title="lr 0.17"), path)
    assert path.read_bytes() == before
    save(figure_of(title="lr 0.18"), path)
    assert path.read_bytes() != before


def test_no_text_of_a_figure_is_cut_off_also_where_a_trajectory_diverges_and_in_the_gallery():
    assert len(gallery.STARTS) >= 6
    twelve = gallery.draw_gallery("quadratic", steps=2)
    assert len(twelve.axes) == len(gallery.RATES) >= 11
    long = "A learning rate that is said in many words " * 4
    many = figure_of(function="two_wells", dims=1, starts=9)
    far = torch.tensor([1.0, 1e9, -1e30, float("inf"), float("nan")])
    diverged = figure_of(far), figure_of(far, function="well", dims=1)
    wide = figure_of(label=long, title=long), figure_of(title="W" * 40)
    for figure in (twelve, many, *diverged, *wide):
        figure.savefig("/dev/null", format="png")
        for text in figure.findobj(Text):
            box = text.get_window_extent()
            assert len(text.get_text()) < 12 or (box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1), text


def test_every_figure_of_a_page_is_made_by_a_command_of_it():
    shown = set(re.findall(r"!\[.+?\]\((.+?)\)", TEXT))
    files = [words[words.index("-o") + 1] for words in COMMANDS_THERE if "-o" in words]
    made = {f"figures/{Path(file).name}" for file in files}
    made |= {f"figures/gallery-{name}.png" for name in gallery.STARTS}
    assert shown == made
    assert ["gallery"] in COMMANDS_THERE
    images = [ROOT / "docs" / name for name in shown]
    sizes = [path.stat().st_size for path in images]
    assert min(map(shades, images)) > 20
    assert max(sizes) < 400_000
    assert sum(sizes) < 4_000_000


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_recipe_says_what_it_shows_how_to_run_it_and_what_comes_out(config):
    header, _ = config.read_text().split("\n\n", 1)
    assert all(line.startswith("#") for line in header.splitlines())
    assert re.search(r"(?s)Expect: .*\d.*Time: .*\d s\b", header)
    (run,) = re.findall("Run: +python train.py (.+)", header)
    assert str(config.relative_to(ROOT)) in run
    words = shlex.split(run)
    assert words in [there[: len(words)] for there in COMMANDS_THERE]


def test_a_page_is_rendered_by_its_own_commands_in_silence(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gallery, "draw_gallery", lambda function: figure_of(function=function))
    (tmp_path / "page.md").write_text(
        f"```sh\npython train.py --config={CONFIGS}/surface_descent.yaml --run_name=it\n"
        "python train.py figures runs/it \\\n    -o docs/figures/it.png   # with a comment\n"
        "python train.py gallery saddle -o docs/figures\npython train.py figures\n```\n"
    )
    (tmp_path / "figures").mkdir()
    render(tmp_path / "page.md")
    assert capfd.readouterr() == ("", "")
    assert shades("figures/it.png") > 20
    assert shades("figures/gallery-saddle.png") > 20
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_its_help(name, capsys):
    target, about = COMMANDS[name]
    with pytest.raises(SystemExit) as e:
        resolve_name(target)(["--help"])
    assert e.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python train.py {name} ")
    assert about in said


def test_what_the_commands_leave_where_they_are_called_is_not_for_git():
    left = {"/lab.html", f"/{course.ANSWERS}", "*.pt2", "*.onnx", "/data", "/runs", ".venv"}
    assert left <= {*(ROOT / ".gitignore").read_text().split()}  # no slash: links too


def test_classes_of_the_lab_are_known_by_short_name_and_importing_them_is_light():
    """What a training of digits pays for the lab being there: no pyplot, no animation."""
    import train

    assert "examples.optimizers" in train.PACKAGES
    names = ", ".join(p.stem for p in (ROOT / "examples/optimizers").glob("[a-z]*.py"))
    code = f"""if True:
        import sys
        import examples.optimizers  # where the commands are named
        assert "torch" not in sys.modules
        import matplotlib.figure, torch, torchmetrics
        before = set(sys.modules)
        from examples.optimizers import {names}
        heavy = {{"matplotlib.pyplot", "matplotlib.animation", "pandas", "scipy"}}
        assert not heavy & (set(sys.modules) - before)
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
