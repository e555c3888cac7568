"""The page computes what torch computes, and is used by keyboard, on a phone, through a link."""

import shlex
import shutil

import pytest
from lightning.pytorch import Trainer
from numpy.testing import assert_allclose

from anneal import main
from anneal.testing import QUIET
from examples.optimizers import lab


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Open the page on a phone; nothing may be fetched or go wrong."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not (browser := shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no chromium on the PATH")
    path = tmp_path_factory.mktemp("lab") / "new/lab.html"
    lab.main(["-o", str(path)])
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 390, "height": 844})
        events = []
        page.on("pageerror", lambda error: events.append(error))
        page.on("request", lambda request: events.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert {*events} == {path.as_uri()}


@pytest.mark.parametrize("i", range(12))
def test_a_path_is_that_of_the_command_beside_it(i, page, tmp_path, monkeypatch):
    names = page.evaluate("[OPTIMIZERS, SCHEDULES, SURFACES].map(Object.keys)")
    assert [len(kinds) for kinds in names] == [12, 8, len(lab.BUILT_IN)]  # each has its turn
    optimizer, schedule, surface = (kinds[i % len(kinds)] for kinds in names)
    run = f"{optimizer},lr:0.05,weight_decay:0.01,schedule:{schedule},warmup_steps:{i % 3 * 7}"
    world = f"{surface=!s}&start=1.3,-0.7&steps=1000&noise={i % 2 / 2}&seed={i % 2}"
    here = page.evaluate(f"load('{world}&run={run}'); compute(); results[0]")

    def fit(run):
        """Train, without all that takes time where nothing needs it."""
        bare = Trainer(accelerator="cpu", max_epochs=1, barebones=True, precision="64-true")
        (run.trainer if "Plateau" in schedule else bare).fit(run.model, run.data)

    words = shlex.split(page.text_content("#command"))[2:]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(lab.FOLDER.parents[1])
    ran = main(fit, ["examples.optimizers"], ["fit", *words, *QUIET, "--trainer.logger=false"])
    there = ran.model.trajectory()
    assert_allclose(here["path"], there.path[:, 0], rtol=1e-6, atol=1e-6)
    assert_allclose(here["lrs"], there.lrs, rtol=1e-6)


def test_it_is_used_by_keyboard_on_a_phone_and_kept_in_a_link(page):
    page.evaluate("load('surface=beale&start=1,1&steps=1000' + '&run=Adam,lr:0.1'.repeat(6))")
    page.focus("#surface")
    page.keyboard.press("ArrowRight")
    page.focus("#set-lr")
    page.keyboard.press("ArrowLeft")
    world, runs = state = page.evaluate("[world, runs]")
    assert world["start"] == [1.18, 1]
    assert runs[0]["lr"] < 0.1 == runs[1]["lr"]
    page.wait_for_url("**beale**")
    page.reload()
    assert page.evaluate("[world, runs]") == state
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
