"""Every number in docs/optimizers.md is what its commands, or a formula, give."""

import math
import re
from functools import partial
from pathlib import Path

import pytest
import yaml
from torch.autograd.functional import hessian

from anneal import read_checkpoint
from examples.optimizers import curve
from examples.optimizers.curve import CurveFit
from examples.optimizers.figure import LabModule
from examples.optimizers.figures import PAGES, ROOT, commands, execute, folder_of
from examples.optimizers.functions import find
from examples.optimizers.trajectories import Trajectory, ends_in
from examples.optimizers.views import curves_of

PAGE = PAGES[0]
NUMBER = re.compile(r"(?<![\w.,])[\u2212±]?\d[\d.,]*(?:e[+-]?\d+)?(?<![.,])")
NO_PROSE = re.compile(r"```.*?```|^    .*?$|^#.*?$|\]\(.*?\)", re.DOTALL | re.MULTILINE)
MINUS = "\N{MINUS SIGN}"
CITED = re.compile(r"\([^()]*\d{4}[^()]*\)|and Vecchi \d{4}")  # (Polyak 1964)


@pytest.fixture(scope="module")
def runs():
    """All trainings of the page by their names: what is drawn of them, but not drawn."""
    found = {}
    with folder_of(PAGE), pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabModule, "on_train_end", lambda _: None)
        for words in commands(PAGE):
            if words[0] not in ("figures", "gallery"):
                assert not execute(words)
            if words[0].startswith("--config="):
                name = words[-1].removeprefix("--run_name=")
                saved = read_checkpoint(Path(f"runs/{name}/checkpoints/last.ckpt"))
                walk = saved.get("walk")
                found[name] = Trajectory(**walk) if walk else CurveFit(**saved["fit"])
        digits = {run.name: run.curve("val/loss").y for run in curves_of(["runs/sweeps/*"])}
    return found | {"digits": digits}


def facts(runs):
    """Return what the page says, each with numbers that are computed here."""

    def below(name, loss):
        """Return after how many steps the loss stays below a value; None: never."""
        above = (runs[name].losses[:, 0] >= loss).nonzero()
        last = int(above[-1]) + 1 if len(above) else 0
        return last if last < len(runs[name].path) else None

    def drop(name, value):
        """Return the first step with a learning rate below a value."""
        return next(i for i, lr in enumerate(runs[name].lrs) if lr < value)

    def along(i):
        """Return how many times as large as the gradient the velocity becomes along an axis."""
        run = runs["momentum"]
        v = -run.path[:, 0, i].diff(dim=0) / 0.05
        return float(v.abs().max() / run.gradients[:, i].abs().max())

    paths = {name: run for name, run in runs.items() if isinstance(run, Trajectory)}
    names = {**vars(math), **vars(curve), **runs, **locals(), "find": find, "hessian": hessian}
    names["x"] = {name: run.path[:, 0, 0] for name, run in paths.items()}
    names["losses"] = {name: run.losses[-1, 0] for name, run in paths.items()}
    names["ends"] = lambda name: ends_in(find(runs[name].function), runs[name].path[-1])
    names["rate"] = lambda name, value: runs[name].lrs[drop(name, value)]
    names["early"] = lambda lr: runs["digits"][f"lr={lr}"][:5].mean()  # five in an epoch
    names["late"] = lambda lr: runs["digits"][f"lr={lr}"][-10:].mean()
    claims = yaml.safe_load(Path(__file__).with_name("page.yaml").read_text())
    for claim in claims["holds"]:
        assert eval(claim, names), claim
    braces = re.compile(r"\{(.+?)(?::(\.\d[ef]))?\}")
    written = partial(braces.sub, lambda found: format(eval(found[1], names), found[2] or ""))
    return map(written, claims["says"])


def test_every_number_of_the_page_is_computed_or_a_setting(runs):
    page = PAGE.read_text()
    prose = NO_PROSE.sub("", page)
    for fact in facts(runs):
        said = fact.replace("-", MINUS) if "e-" not in fact else fact
        words = re.escape(said).replace(r"\ ", r"\s+")
        prose, n = re.subn(words, "", prose)
        assert n or said in page, said
    recipes = "".join(path.read_text() for path in (ROOT / "examples").rglob("configs/**/*.yaml"))
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
