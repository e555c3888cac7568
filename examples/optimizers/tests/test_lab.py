"""The page to play with computes what a training computes, and can be used in all its ways."""

import shlex
import shutil

import pytest
import torch
from lightning.pytorch import Trainer

import train
from anneal import main
from examples.optimizers import lab
from examples.optimizers.functions import BUILT_IN

RATES = {"SGD": 0.01, "Momentum": 0.001, "Nesterov": 0.001, "Adagrad": 1, "Adadelta": 10}
RATES |= dict.fromkeys(["RMSprop", "Rprop", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"], 0.05)
SCHEDULES = ["constant", "StepLR", "ReduceLROnPlateau", "CosineAnnealingLR"]
SCHEDULES += ["CosineAnnealingWarmRestarts", "LinearLR", "OneCycleLR", "WSD"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Open the page on a phone; nothing may be fetched or go wrong."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, ["chromium", "google-chrome"])), None)
    if browser is None:
        pytest.skip("no chromium on the PATH")
    path = tmp_path_factory.mktemp("lab") / "new/lab.html"
    assert lab.main(["-o", str(path)]) == 0
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 390, "height": 844})
        wrong = []
        page.on("pageerror", lambda error: wrong.append(error))
        page.on("request", lambda request: wrong.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert {*wrong} == {path.as_uri()}
        chromium.close()


def test_all_of_the_page_is_compared(page):
    names = page.evaluate("[OPTIMIZERS, SCHEDULES, SURFACES].map(Object.keys)")
    assert names == [list(RATES), SCHEDULES, list(BUILT_IN)]


@pytest.mark.parametrize("optimizer", RATES)
def test_a_path_of_the_page_is_that_of_the_command_beside_it(optimizer, page, run):
    i = list(RATES).index(optimizer)
    schedule = SCHEDULES[i % len(SCHEDULES)]
    words = f"{optimizer},lr:{RATES[optimizer]},weight_decay:0.01,schedule:{schedule}"
    page.evaluate(
        f"load('surface={list(BUILT_IN)[i % len(BUILT_IN)]}&start=1.3,-0.7&steps=1000"
        f"&noise={i % 2 / 2}&seed={i % 2}&run={words},warmup_steps:{i % 3 * 7}'); compute()"
    )
    command = shlex.split(page.text_content("#command"))
    assert command[:2] == ["python", "train.py"]
    command[2] = command[2].replace("examples/", f"{lab.FOLDER.parents[1]}/")
    if schedule == "ReduceLROnPlateau":
        model = run("fit", *command[2:], "--trainer.logger=false").model
    else:  # without all that takes time
        models = []

        def fit(run):
            """Train as little as is needed."""
            models.append(run.model)
            trainer = Trainer(accelerator="cpu", max_epochs=1, barebones=True, precision="64-true")
            trainer.fit(run.model, run.data)

        main(fit, train.PACKAGES, ["fit", *command[2:]])
        (model,) = models
    there, here = model.trajectory(), page.evaluate("results[0]")
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(torch.tensor(here["path"]).double(), there.path[:, 0], **close)
    torch.testing.assert_close(here["lrs"], there.lrs, **close)


def test_it_is_used_by_keyboard_on_a_phone_without_delay_and_kept_in_a_link(page):
    page.evaluate("load('surface=beale&start=1,1&steps=1000' + '&run=Adam,lr:0.1'.repeat(6))")
    spent = (
        "() => { const t = performance.now(); compute(); update(); return performance.now() - t }"
    )
    assert min(page.evaluate(spent) for _ in range(10)) < 100  # milliseconds
    page.focus("#surface")
    page.keyboard.press("ArrowRight")
    page.focus("#set-lr")
    page.keyboard.press("ArrowLeft")
    state = page.evaluate("[world, runs]")
    assert state[0]["start"] == [1.18, 1]
    assert state[1][0]["lr"] < 0.1 == state[1][1]["lr"]
    page.wait_for_url("**beale**")
    page.reload()
    assert page.evaluate("[world, runs]") == state
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
