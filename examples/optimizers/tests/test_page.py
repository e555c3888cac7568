"""Every number in docs/optimizers.md is what its commands, or a formula, give."""

import math
import re
import shutil
from contextlib import chdir

import pytest

from anneal import read_checkpoint
from anneal.report.page import read
from anneal.runs.run import labelled
from examples.optimizers.figures import PAGE, QUIET, ROOT, commands, run_training
from examples.optimizers.fits import CurveFit
from examples.optimizers.functions import find
from examples.optimizers.points import test_points, train_points
from examples.optimizers.trajectories import Trajectory, ends_in

test_points.__test__ = False
CONFIGS = ROOT / "examples/optimizers/configs"
SWEEP = CONFIGS / "sweeps/digits_lr.yaml"
NUMBER = re.compile(r"(?<![\w.,])[\u2212±]?\d[\d.,]*(?:e[+-]?\d+)?(?<![.,])")
MINUS = "\N{MINUS SIGN}"
CITED = re.compile(r"\([^()]*\d{4}[^()]*\)|and Vecchi \d{4}")  # (Polyak 1964)


def trained(words, folder):
    """Run a training of the page and return what its last checkpoint holds to be drawn."""
    from anneal.testing import main

    with chdir(ROOT):
        main(["fit", *words, f"--trainer.default_root_dir={folder}", *QUIET])
    (name,) = (word.partition("=")[2] for word in words if word.startswith("--run_name="))
    saved = read_checkpoint(folder / name / "checkpoints/last.ckpt")
    shutil.rmtree(folder / name)
    return name, Trajectory(**saved["walk"]) if "walk" in saved else CurveFit(**saved["fit"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All trainings of the page by their names, but for the digits."""
    folder = tmp_path_factory.mktemp("runs")
    words = [words for words in commands(PAGE) if words[0].startswith("--config=")]
    return dict(trained(one, folder) for one in words)


def below(run, loss):
    """Return after how many steps the loss stays below a value; None: never."""
    above = (run.losses[:, 0] >= loss).nonzero()
    last = int(above[-1]) + 1 if len(above) else 0
    return last if last < len(run.path) else None


def facts(runs):
    """Return what the page says, each with numbers that are computed here."""
    x = {k: run.path[:, 0, 0] for k, run in runs.items() if isinstance(run, Trajectory)}
    losses = {k: runs[k].losses[-1, 0] for k in x}
    yield f"10 steps lead to -4.5 · 0.7¹⁰ = {x['descent'][10]:.3f}"
    assert abs(x["jumps"][-1]) < 1 < 10 < abs(x["diverges"][-1])
    assert runs["full_batch"].path[-1].norm() < 1e-6
    yield "within 10⁻⁶ of the minimum"
    yield f"strays by {x['mini_batch'][50:].std():.2f}"
    yield f"√(lr σ² / (a (2 - lr a))) = {math.sqrt(0.08 * 4**2 / (2 - 0.08)):.2f} for a = 1"
    ends = ends_in(find("two_wells"), runs["minima"].path[-1])
    yield f"Of 40 starts between -3 and 6, {(ends == 1).sum()} end in the local"
    for name in ("lr_small", "lr_large", "lr_schedule"):
        sign = "±" * (name == "lr_large")
        yield f"| `surface_{name}` | {sign}{abs(x[name][-1]):.2f} | {losses[name]:.2f}"
    jumping, lrs = x["lr_schedule"].abs() > 0.05, runs["lr_schedule"].lrs
    assert 1 < lrs[int(jumping.nonzero()[-1])] < 2.2  # settles as 2 / curvature is passed
    yield "2 / curvature = 2"
    for name in ("lr_step", "lr_plateau"):
        run = runs[name]
        first, second = (next(i for i, lr in enumerate(run.lrs) if lr < drop) for drop in (4, 2))
        assert x[name][second + 10 :].abs().max() < 0.01
        far = abs(x[name][second])
        yield f"to {run.lrs[first]:.2f}, x still jumps, to ±{far:.2f}"
        yield f"after the second, to {run.lrs[second]:.2f}, it soon"
    cooled = [ends_in(find("two_wells"), runs[k].path[-1]) for k in ("quenched", "annealed")]
    (deep, slow_deep), (shallow, slow_shallow) = ([(c == i).sum() for c in cooled] for i in (0, 1))
    yield f"Of 60 starts, {deep} are in the global minimum after 20 steps, and {shallow} in the"
    yield f"After 200 steps it is\n{slow_deep} and {slow_shallow}."
    yield f"its curvature is 11, so that any lr above 2/11 = {2 / 11:.2f}"
    first, second, third = (x["restarts"][i] for i in (10, 30, 70))
    yield f"The first two cycles end at x = {first:.2f} and {second:.2f}, the third at {third:.2f}."
    yield "Of the seeds 0 to 99, 96 go"  # computed in test_surface.py
    yield f"1 / (1 - momentum) = {1 / (1 - 0.9):.0f}"
    yield f"| lr 0.05 | {below(runs['small_lr'], 0.1)} |"
    yield f"| lr 0.05, momentum 0.9 | {below(runs['momentum'], 0.1)} |"
    assert below(runs["large_lr"], 0.1) is None
    yield f"ends at {losses['large_lr']:.2f} |"
    run = runs["momentum"]
    v = -run.path[:, 0].diff(dim=0) / 0.05
    along = [float(v[:, i].abs().max() / run.gradients[:, i].abs().max()) for i in (0, 1)]
    yield "becomes {:.1f} times as large as the largest gradient, along y only {:.1f}".format(
        *along
    )
    plain, momentum = (
        ends_in(find("himmelblau"), runs[f"basins_{name}"].path[-1]) for name in ("sgd", "momentum")
    )
    assert set(plain) == set(momentum) == {0, 1, 2, 3}
    assert 0.05 < (plain != momentum).mean() < 0.5
    assert runs["adam"].path[-1].abs().max() < 0.0035
    yield "within 0.003 of the minimum"
    yield f"SGD has y at {runs['sgd'].path[-1, 0, 1]:.3f} of 1"
    (rx, ry), (gx, gy) = runs["adam"].rates[0], runs["adam"].gradients[0]
    yield f"At the first step it is {rx:.3f} for x, whose gradient is {gx:.0f}, and {ry:.0f} for y"
    yield f"whose gradient is {gy:.2f}"
    (rx, ry) = runs["adam"].rates[-1]
    yield f"to {rx:.4f} and {ry:.0f} after 100 steps"
    yield f"is {find('scales').formula}: because of x, SGD must not exceed lr = {2 / 100}"
    for name, decay in (("no_decay", "0"), ("decay", "0.01")):
        fit = runs[name]
        errors = (f"{fit.error(points()):.1e}" for points in (train_points, test_points))
        yield f"| {decay} | {' | '.join(errors)} |"
    largest = (runs[name].weights[31:].abs().max() for name in ("no_decay", "decay"))
    yield "above 30 is {:.3f} without weight decay, and {:.3f} with it".format(*largest)


def test_every_number_of_the_page_is_computed_or_a_setting(runs):
    page = PAGE.read_text()
    prose = re.sub(
        r"```.*?```|^    .*?$|^#.*?$|\]\(.*?\)", "", page, flags=re.DOTALL | re.MULTILINE
    )
    table = r"\| 1e-\d \|.*|, mean of the first two epochs.*"  # of the digits: a test of its own
    prose = re.sub(table, "", prose)
    for fact in facts(runs):
        said = fact.replace("-", MINUS) if "e-" not in fact else fact
        words = re.escape(said).replace(r"\ ", r"\s+").replace(r"\n", r"\s+")
        prose, n = re.subn(words, "", prose)
        assert n or said in page, said
    recipes = "".join(path.read_text() for path in CONFIGS.rglob("*.yaml"))
    settings = {float(n) for n in re.findall(r"[\d.]*\d(?:e-?\d+)?", recipes + str(commands(PAGE)))}
    left = [n.strip(MINUS + "±").replace(",", "") for n in NUMBER.findall(CITED.sub("", prose))]
    cooled = [float(runs[name].losses[-1].mean()) for name in ("annealed", "quenched")]
    assert "mean val/loss {:.3f} after 200 steps, {:.3f} after 20".format(*cooled) in recipes
    assert not [n for n in left if float(n) not in settings | {0.0, 1.0, 2.0}]


def test_titles_say_what_is_shown_and_their_numbers_stand_in_the_text():
    drawn = [words for words in commands(PAGE) if words[0] == "figures" and words[1:]]
    text = re.sub("--title=.*", "", PAGE.read_text())
    for words in drawn:
        (title,) = (word.removeprefix("--title=") for word in words if "--title=" in word)
        assert len(title.split()) > 6
        for n in NUMBER.findall(title):
            assert n.replace("10,000", "0.005") in text, (n, title)


def test_the_best_learning_rate_on_the_digits_depends_on_the_budget(tmp_path):
    for name in ("configs", "examples", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    page, table = PAGE.read_text(), {}
    with chdir(tmp_path):
        assert not run_training(["sweep", str(SWEEP.relative_to(ROOT)), "-j", "2"])
        losses = {run.name: run.curve("val/loss").y for run in labelled(read(["runs/sweeps/*"]))}
    for name, lr in (("lr=0.01", "1e-2"), ("lr=0.001", "1e-3"), ("lr=0.0001", "1e-4")):
        table[lr] = losses[name][:8].mean(), losses[name][-8:].mean()  # four in an epoch
        (row,) = re.findall(rf"\| {lr} \| (.*) \| (.*) \|\n", page)
        assert [float(cell.strip("*")) for cell in row] == pytest.approx(table[lr], abs=0.03)
    assert table["1e-2"][0] < table["1e-3"][0] < table["1e-4"][0]
    assert table["1e-3"][1] < table["1e-2"][1] < table["1e-4"][1]
    assert 4 <= (losses["lr=0.001"] < losses["lr=0.0001"][-1]).argmax() < 8
