"""The page computes what torch computes, and is used by keyboard, on a phone, through a link."""

import shlex
import shutil

import pytest
from lightning.pytorch import Trainer
from numpy.testing import assert_allclose

import train
from examples.optimizers import lab


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Open the page on a phone; nothing may be fetched or go wrong."""
    browser = shutil.which("chromium") or pytest.skip("no chromium on the PATH")
    path = tmp_path_factory.mktemp("lab") / "new/lab.html"
    lab.main(["-o", str(path)])
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(300_000)
        events = []
        page.on("pageerror", lambda error: events.append(error))
        page.on("request", lambda request: events.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert {*events} == {path.as_uri()}


@pytest.mark.parametrize("i", range(13))
def test_a_path_is_that_of_the_command_beside_it(i, page, run, tmp_path, monkeypatch):
    names = page.evaluate("[OPTIMIZERS, SCHEDULES, SURFACES].map(Object.keys)")
    assert [len(kinds) for kinds in names] == [13, 8, len(lab.BUILT_IN)]  # each has its turn
    optimizer, schedule, surface = (kinds[i % len(kinds)] for kinds in names)
    words = f"{optimizer},lr:0.05,weight_decay:0.01,schedule:{schedule},warmup_steps:{i % 3 * 7}"
    world = f"{surface=!s}&start=1.3,-0.7&steps=1000&noise={i % 2 / 2}&seed={i % 2}"
    here = page.evaluate(f"load('{world}&run={words}'); compute(); results[0]")

    def fit(run):
        """Train, without all that takes time where nothing needs it."""
        bare = Trainer(accelerator="cpu", max_epochs=1, barebones=True, precision="64-true")
        (run.trainer if "Plateau" in schedule else bare).fit(run.model, run.data)

    monkeypatch.setattr(train, "fit", fit)
    (tmp_path / "examples").symlink_to(lab.FOLDER.parents[1])
    words = shlex.split(page.text_content("#command"))[2:]
    there = run("fit", *words, "--trainer.logger=false").model.trajectory()
    assert_allclose(here["path"], there.path[:, 0], rtol=1e-6, atol=1e-6)
    assert_allclose(here["lrs"], there.lrs, rtol=1e-6)


def test_it_is_used_by_keyboard_on_a_phone_and_kept_in_a_link(page):
    page.evaluate("load('surface=beale&start=1,1&steps=1000' + '&run=Adam,lr:0.1'.repeat(6))")
    page.press("#surface", "ArrowRight")
    page.press("#set-lr", "ArrowLeft")
    world, runs = state = page.evaluate("[world, runs]")
    assert [world["start"], runs[0]["lr"], runs[1]["lr"]] == [[1.18, 1], 0.097, 0.1]
    page.wait_for_url("**start=1.18,1**lr:0.097**")
    page.reload()
    assert page.evaluate("[world, runs]") == state
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_redraw_of_six_paths_of_a_thousand_steps_is_no_visible_delay(page):
    page.evaluate("load('surface=beale&start=1,1.1&steps=1000' + '&run=Adam,lr:0.1'.repeat(6))")
    times = page.evaluate("""Array.from({ length: 20 }, (_, i) => {
      const begun = performance.now();
      runs[0].lr = 0.1 + i / 100;
      results = [];
      update();
      return performance.now() - begun;
    })""")
    assert min(times) < 100  # ms; of others than the fastest, other processes took a part
