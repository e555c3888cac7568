"""`lr_find` finds a rate at which the loss falls, and leaves everything as it was."""

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tiny import Tiny, loader
from torch import nn

from anneal import testing as photos
from anneal.cli.trainer import SEARCH
from anneal.commands.lr_find import Search, lr_find, picture
from anneal.errors import UserError
from anneal.optim.configure import configure_optimizers
from anneal.optim.groups import Rule
from anneal.optim.schedule import Schedule
from anneal.optim.torch_schedulers import CosineAnnealingLR

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SMALL = "--config=small.yaml"


class Numbers(pl.LightningDataModule):
    """Eight batches of one sample."""

    batch_size = 1

    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader(2)


class Recording(torch.optim.SGD):
    """SGD that notes the rates each step is really taken with."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.taken = taken
        self.taken.clear()

    def step(self, closure=None):
        self.taken.append([group["lr"] for group in self.param_groups])
        return super().step(closure)


taken: list[list[float]] = []


def found(module: pl.LightningModule, **options) -> Search:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(accelerator="cpu", **quiet, **SEARCH)
    run = SimpleNamespace(trainer=trainer, model=module, data=Numbers(), folder=Path())
    with patch("anneal.commands.lr_find.report") as report:
        lr_find(run, **options)
    return report.call_args.args[0]


def suggestion(shown: str) -> float:
    (lr,) = re.findall(r"^--model\.optimizer\.lr=(\S+)$", shown, re.MULTILINE)
    return float(lr)


def test_weights_are_left_as_they_were_and_no_file_but_the_picture(run, capsys):
    before = run("schedule", SMALL, "--output=../schedule.png").model.state_dict()
    short = ["--trainer.max_epochs=1", "--trainer.accumulate_grad_batches=2"]
    cli = run("lr_find", SMALL, "--num_training=40", *short)
    after = cli.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    files = sorted(str(p) for p in Path().rglob("*") if p.is_file())
    assert files == ["runs/lr_find.png", "small.yaml"]
    assert 1e-4 < suggestion(capsys.readouterr().out) < 10


def test_the_suggestion_is_an_override_that_trains(run, capsys):
    run("lr_find", SMALL, "--num_training=40", "--output=found.png")
    lr = suggestion(capsys.readouterr().out)
    cli = run("fit", SMALL, f"--model.optimizer.lr={lr}")
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == lr
    assert Path("found.png").stat().st_size > 5_000


def test_photos_are_searched_too(run, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    photos.image_folder(Path("photos"))
    run(
        "lr_find",
        f"--config={CONFIGS}/imagenet_resnet18_2015.yaml",
        "--trainer.precision=32-true",
        "--trainer.accelerator=cpu",
        "--model.width=8",
        "--model.small_stem=true",
        "--data.root=photos",
        "--data.train_size=32",
        "--data.batch_size=8",
        "--data.num_workers=0",
        "--num_training=40",
    )
    assert suggestion(capsys.readouterr().out) > 0


@pytest.mark.parametrize("recipe", ["surface_valley", "curve_polynomial"])
def test_surfaces_are_searched_too(run, capsys, recipe):
    run("lr_find", f"--config={ROOT}/examples/optimizers/configs/{recipe}.yaml")
    assert 1e-3 < suggestion(capsys.readouterr().out) < 1
    assert not list(Path().rglob("figure*.png"))  # of what is no training


def test_the_module_keeps_its_optimizer_and_its_schedule():
    optimizer, schedule = partial(torch.optim.SGD, lr=0.3), Schedule(CosineAnnealingLR)
    module = Tiny(optimizer, schedule)
    weights = {name: w.clone() for name, w in module.state_dict().items()}
    found(module, num_training=20)
    assert module.optimizer is optimizer
    assert module.configure_optimizers.__func__ is Tiny.configure_optimizers
    assert all(torch.equal(w, module.state_dict()[name]) for name, w in weights.items())


@pytest.mark.parametrize("scheduler", [None, CosineAnnealingLR])
def test_groups_keep_their_ratios_and_no_schedule_interferes(scheduler):
    class Two(Tiny):
        def configure_optimizers(self):
            return configure_optimizers(
                self,
                self.optimizer,
                Schedule(scheduler, warmup_steps=3),
                lr_batch_size=4,
                rules=[Rule({"depth": 0}, settings={"lr_factor": 0.1})],
            )

    torch.manual_seed(0)  # one sample a step: from other weights the loss may blow up
    module = Two(partial(Recording, lr=0.7), net=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    result = found(module, num_training=20, min_lr=1e-5, max_lr=1e-2)
    head, body = np.array(taken).T
    np.testing.assert_allclose(head, result.lrs / 4)  # a step has one sample, lr is for four
    np.testing.assert_allclose(body, head / 10)
    assert result.lrs[0] == 1e-5
    assert np.isclose(result.lrs[-1], 1e-2)
    assert (np.diff(result.lrs) > 0).all()


def test_a_loss_that_stays_is_seen_to_stay():
    class Constant(Tiny):
        def training_step(self, batch, batch_idx):
            return 0 * super().training_step(batch, batch_idx) + 3

    np.testing.assert_allclose(found(Constant(), num_training=20).losses, 3, rtol=1e-5)


def test_it_goes_on_past_the_end_of_an_epoch_without_validation():
    class Validated(Tiny):
        def validation_step(self, batch, batch_idx):
            raise AssertionError

    assert len(found(Validated(), num_training=30, early_stop_threshold=None).lrs) == 30


def curve(noise: float = 0.0) -> Search:
    """A loss that falls fastest over the logarithm of the rate at 0.01."""
    lrs = np.logspace(-6, 1, 100)
    losses = 2 - 1 / (1 + np.exp(-2 * (np.log10(lrs) + 2)))
    losses += np.random.default_rng(0).normal(0, noise, 100)
    return Search(lrs, losses, "SGD")


@pytest.mark.parametrize("noise", [0, 3e-3])
def test_the_suggestion_is_where_the_loss_falls_fastest_also_with_noise(noise):
    search = curve(noise)
    assert 1 / 3 < search.lrs[search.best] / 0.01 < 3


def test_the_picture_marks_the_suggestion():
    search = curve()
    (axes,) = picture(search).axes
    _, point, _ = axes.lines
    assert point.get_xdata()[0] == search.lrs[search.best]
    assert "lr = 0.01" in axes.get_legend().get_texts()[0].get_text()
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 0.0}, "min_lr"),
        ({"min_lr": 1.0, "max_lr": 0.1}, "max_lr"),
        ({"num_training": 5}, "num_training=5: must be at least"),
    ],
)
def test_values_that_make_no_sense_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        found(Tiny(), **options)


def test_a_module_without_an_optimizer_to_set_is_refused():
    module = Tiny()
    del module.optimizer
    with pytest.raises(UserError, match="Tiny takes no `optimizer`"):
        found(module)


def test_a_loss_that_blows_up_at_once_or_never_falls_is_one_line(run, capsys):
    for flags, message in (
        (["--min_lr=1e8", "--max_lr=1e9"], "lower --min_lr"),
        (["--trainer.fast_dev_run=true"], "fast_dev_run"),
    ):
        with pytest.raises(SystemExit):
            run("lr_find", SMALL, *flags)
        assert message in capsys.readouterr().err.splitlines()[-1]
    rising = Search(np.logspace(-6, 0, 50), np.linspace(1, 2, 50), "SGD")
    with pytest.raises(UserError, match="does not fall at any rate"):
        assert rising.best
