"""Classes of the user's choice, Lightning's and their own: one rule for all, and one line."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers import SMALL
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
)
from test_cli import fails, only_run
from test_fit import SHORT, objects
from yours import MLP

import anneal
from anneal import UserError
from anneal import testing as photos
from anneal.callbacks.checkpoint import Checkpoint
from anneal.cli.values import LEAST, SHARES, check_range
from anneal.runs.metrics import direction
from anneal.tasks.try_images import try_images
from anneal.testing import main

FIT = ("fit", "--config=small.yaml")
ADD = "--trainer.callbacks"
SCHEDULER = "--model.schedule.scheduler"
STEPS = "--trainer.limit_train_batches=2"


def added(name: str, **options: object) -> list[str]:
    """Return the flags that add a callback."""
    return [f"{ADD}+={name}", *(f"{ADD}.{key}={value}" for key, value in options.items())]


def of(cli, kind: type) -> list:
    return [c for c in cli.trainer.callbacks if isinstance(c, kind)]


# ---- which direction is the better one


@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
@pytest.mark.parametrize(("monitor", "mode"), [("val/acc", "max"), ("val/loss", "min")])
def test_the_mode_of_a_callback_follows_its_metric(run, name, monitor, mode):
    cli = run(*FIT, STEPS, *added(name, monitor=monitor))
    found = [c for c in cli.trainer.callbacks if type(c).__name__ == name]
    assert [c.mode for c in found] == [mode]
    config = yaml.safe_load((only_run() / "config.yaml").read_text())
    assert config["trainer"]["callbacks"][0]["init_args"]["mode"] == mode


def test_a_rising_accuracy_does_not_end_a_training(run):
    stop = added("EarlyStopping", monitor="val/acc", patience=1, min_delta=-1)
    assert run(*FIT, "--trainer.max_epochs=3", *stop).trainer.global_step == 12


@pytest.mark.parametrize(
    "flags",
    [
        ["--checkpoint.monitor=val/acc", "--checkpoint.mode=min"],
        added("EarlyStopping", monitor="val/acc", mode="min"),
        added("ModelCheckpoint", monitor="val/acc", mode="min"),
        [
            f"{SCHEDULER}=ReduceLROnPlateau",
            f"{SCHEDULER}.mode=min",
            "--model.schedule.monitor=val/acc",
        ],
    ],
)
def test_a_mode_that_contradicts_its_metric_is_refused(run, capsys, flags):
    line = fails(run, capsys, *FIT, *flags)
    assert "val/acc is better when it is higher, and mode=min watches for the opposite" in line
    assert not list(Path().rglob("*.ckpt"))


def test_a_metric_whose_name_says_nothing_needs_a_mode(run, capsys):
    monitor = added("EarlyStopping", monitor="val/kappa")
    assert "Its name doesn't say: give `mode`" in fails(run, capsys, *FIT, *monitor)
    assert direction("val/kappa", "max") == "max"


def test_from_python_a_contradiction_is_refused_too(run):
    with pytest.raises(UserError, match="EarlyStopping: val/acc is better when it is higher"):
        anneal.fit(*objects(), callbacks=[EarlyStopping("val/acc")], **SHORT)


# ---- why a run has ended


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            added("EarlyStopping", monitor="val/acc", stopping_threshold=0.01),
            r"in epoch 0: Stopping threshold reached: val/acc = .* > 0.01\n",
        ),
        (
            added("EarlyStopping", monitor="val/loss", patience=1, min_delta=9),
            r"in epoch 1: Monitored metric val/loss did not improve in the last 1 records",
        ),
        (["--trainer.max_steps=5"], "after max_steps=5\n"),
        (["--trainer.max_time=00:00:00:01"], r"in epoch \d+: max_time is over\n"),
        (added("tiny.Stop"), "in epoch 0: a callback or the module has set should_stop\n"),
    ],
)
def test_the_summary_says_why_a_run_has_ended(run, capsys, flags, reason):
    run(*FIT, "--trainer.max_epochs=10000", "--trainer.limit_test_batches=1", *flags)
    assert re.search(rf"^ended +{reason}", capsys.readouterr().out, re.MULTILINE)


def test_a_run_that_had_all_its_epochs_needs_no_reason(run, capsys):
    run(*FIT, STEPS)
    assert "\nended" not in capsys.readouterr().out


def test_a_patience_that_is_typed_on_a_resume_wins(run, capsys):
    stop = added("EarlyStopping", monitor="val/loss", patience=1, min_delta=9)
    run(*FIT, "--trainer.max_epochs=4", *stop)
    assert "\nended" in capsys.readouterr().out
    cli = run("fit", "--ckpt_path=last", f"{ADD}.patience=9")
    assert cli.trainer.global_step == 16
    assert "\nended" not in capsys.readouterr().out


# ---- callbacks and loggers beside the run's own


def test_a_second_checkpoint_lies_in_the_runs_folder_and_ours_is_summed_up(run, capsys):
    cli = run(*FIT, STEPS, *added("ModelCheckpoint", monitor="val/loss"))
    (folder,) = {path.parent for path in Path().rglob("*.ckpt")}
    assert folder == only_run() / "checkpoints"
    assert len(of(cli, ModelCheckpoint)) == 2
    assert isinstance(cli.trainer.checkpoint_callback, Checkpoint)
    assert re.search(r"^best val/acc +0\.\d+ +best-epoch", capsys.readouterr().out, re.MULTILINE)


def test_a_second_checkpoint_from_python_lies_there_too(run):
    anneal.fit(*objects(), callbacks=[ModelCheckpoint()], **SHORT)
    assert {path.parent for path in Path().rglob("*.ckpt")} == {only_run() / "checkpoints"}


@pytest.mark.parametrize("name", ["LearningRateMonitor", "TQDMProgressBar", "RichProgressBar"])
def test_a_callback_takes_the_place_of_the_runs_own(run, name):
    cli = main([*FIT, STEPS, "--trainer.logger=true", f"{ADD}={name}"])
    assert len(of(cli, LearningRateMonitor)) == len(of(cli, ProgressBar)) == 1
    assert type(of(cli, LearningRateMonitor)[0]).__module__ == "anneal.callbacks.lr_monitor"


LOGGERS = {
    "=CSVLogger": ["CSVLogger"],
    "+=CSVLogger": ["CSVLogger", "WandbLogger"],
    "=WandbLogger": ["CSVLogger", "WandbLogger"],
    "=lightning.pytorch.loggers.CSVLogger": ["CSVLogger", "CSVLogger"],
    "+=lightning.pytorch.loggers.CSVLogger": ["CSVLogger", "WandbLogger", "CSVLogger"],
}


@pytest.mark.parametrize("flag", LOGGERS)
def test_a_logger_stands_beside_the_runs_own_or_in_its_place(run, flag):
    Path("small.yaml").write_text(SMALL.replace("logger: false", "logger: null"))
    cli = run(*FIT, STEPS, f"--trainer.logger{flag}", "--wandb.tags+=a", "--wandb.tags+=b")
    assert [type(logger).__name__ for logger in cli.trainer.loggers] == LOGGERS[flag]
    for logger in cli.trainer.loggers:
        assert Path(str(logger.save_dir)) == only_run()
    for logger in cli.loggers:
        if type(logger).__name__ == "WandbLogger" and "+" in flag:
            assert logger._wandb_init["tags"] == ["a", "b"]
    run("fit", f"--config={only_run()}/config.yaml")
    first, second = Path("runs").iterdir()
    assert (first / "config.yaml").read_text() == (second / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--trainer.max_epochs+=3", "+= adds to a list, and this is an int"),
        ("--model.mean+=0.5", "a number for each channel"),  # of the default and this one
    ],
)
def test_what_is_added_goes_to_the_default_of_a_list(run, capsys, flag, message):
    assert message in fails(run, capsys, *FIT, flag)


# ---- what a class refuses


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (added("EarlyStopping", monitor="val/acc", mode="foo"), r"EarlyStopping\(monitor='val/acc'"
         r", mode='foo'\): `mode` can be min, max, got foo"),
        (added("ModelCheckpoint", save_top_k=-5), r"ModelCheckpoint\(save_top_k=-5\): Invalid"),
        (added("tiny.Refuses"), r"Refuses\(\): KeyError\('in init'\) \(\S+tiny.py:\d+\)"),
        (added("tiny.Refuses", where="setup"), r"Refuses\(where='setup'\): KeyError\('in set"),
        (added("BackboneFinetuning"), r"BackboneFinetuning\(.*\): 'MLP' object has no attribute"),
        (["--model.optimizer=SparseAdam"], r"SparseAdam\(.*\): SparseAdam does not support dense"),
        (["--model.optimizer.lr=-1"], "optimizer: SGD: Invalid learning rate: -1.0"),
        ([f"{SCHEDULER}=ReduceLROnPlateau", f"{SCHEDULER}.factor=3"],
         "schedule.scheduler: ReduceLROnPlateau: Factor should be < 1.0"),
        (["--model.optimizer=Muon", "--model=SoftmaxRegression"],
         "optimizer: Muon is for weights between"),
        ([f"{SCHEDULER}=OneCycleLR", f"{SCHEDULER}.max_lr=0.1", "--model.lr_batch_size=8"],
         "schedule.scheduler.max_lr=0.1 takes the place of the optimizer's lr"),
        (["--model.lr_batch_size=-5"], ".*lr_batch_size=-5 must be at least 1"),
        (["--model=tiny.Choice"], "Choice.configure_optimizers returns no optimizer"),
        (["--model=tiny.Choice", "--model.lr=-1"],
         r"Choice\(lr=-1.0\): Invalid learning rate: -1.0 \(\S+tiny.py:\d+\)"),
        (["--trainer.strategy=fsdp2", *added("EMA")], "EMA averages whole weights"),
        (["--trainer.strategy=fsdp2", *added("EMAWeightAveraging")], "EMAWeightAveraging averages"),
        (["--run_name=" + 300 * "x"], "--run_name: 300 bytes; at most 200"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.LightningModule.configure_optimizers. returned .None.")
def test_a_class_that_refuses_its_arguments_is_one_line(run, capsys, flags, line):
    found = fails(run, capsys, *FIT, *flags)
    assert re.match(f"error: {line}", found)
    assert "Subtypes" not in found
    assert not list(Path().rglob("*.ckpt"))


def test_what_a_class_raises_while_it_trains_keeps_its_traceback(run):
    with pytest.raises(KeyError, match="in on_train_batch_end"):
        run(*FIT, *added("tiny.Refuses", where="on_train_batch_end"))


@pytest.mark.parametrize("command", ["schedule", "lr_find"])
def test_a_figure_without_a_format_is_one_line(run, capsys, command):
    line = fails(run, capsys, command, *FIT[1:], "--output=x.foo")
    assert "--output=x.foo: Format 'foo' is not supported (supported formats: " in line


# ---- numbers


@pytest.mark.parametrize("name", [*LEAST, *sorted(SHARES)])
def test_a_number_that_makes_no_sense_is_refused_by_its_range(name):
    for wrong in (-2, [1, -2], float("nan"), *([1.5] if name in SHARES else [])):
        with pytest.raises(UserError, match="must be"):
            check_range(name, wrong)
    for right in (1, [1], "norm", None, *([0.5] if name in SHARES else [7])):
        assert check_range(name, right) is right


@pytest.mark.parametrize(
    "flags",
    [
        [f"{SCHEDULER}=StepLR", f"{SCHEDULER}.step_size=-1"],
        [f"{SCHEDULER}=StepLR", f"{SCHEDULER}.step_size=0"],
        [f"{SCHEDULER}=ReduceLROnPlateau", f"{SCHEDULER}.patience=-1"],
        [f"{SCHEDULER}=CyclicLR", f"{SCHEDULER}.base_lr=0", f"{SCHEDULER}.step_size_up=0"],
        [f"{SCHEDULER}=CosineAnnealingLR", f"{SCHEDULER}.eta_min=-1"],
        [f"{SCHEDULER}=OneCycleLR", f"{SCHEDULER}.div_factor=0"],
        [f"{SCHEDULER}=MultiStepLR", f"{SCHEDULER}.milestones=[3,-1]"],
        added("EarlyStopping", monitor="val/acc", patience=-1),
        added("EMA", update_every_n_steps=0),
        added("EMA", decay=1.5),
        added("EMAWeightAveraging", decay=-0.1),
        ["--trainer.val_check_interval=0"],
        ["--trainer.val_check_interval=0.0"],
        ["--trainer.check_val_every_n_epoch=0"],
        ["--trainer.num_sanity_val_steps=-5"],
        ["--progress_bar.refresh_rate=-1"],
        ["--model.top_k=0"],
        ["--model.std=[0]"],
        ["--data=ImageFolderDataModule", "--data.augment=RandomErasing", "--data.augment.p=2"],
    ],
)
def test_a_number_that_makes_no_sense_is_one_line(run, capsys, flags):
    assert re.search(r"must be (at least|more than) -?\d", fails(run, capsys, *FIT, *flags))


def test_from_python_the_trainers_numbers_have_the_same_ranges(run):
    with pytest.raises(UserError, match=r"trainer.val_check_interval: must be more than 0, got 0"):
        anneal.fit(*objects(), **SHORT, val_check_interval=0)


# ---- networks and images that don't go together


class Patches(MLP):
    """A network with a mistake in its own code, and one that torch finds."""

    def __init__(self, raises: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.raises = raises

    def forward(self, images):
        if self.raises:
            raise RuntimeError("a bug")
        return super().forward(images)


@pytest.mark.parametrize("name", ["MLP", "MNISTConvNet", "test_chosen.Patches"])
def test_a_network_that_takes_no_images_of_that_shape_is_one_line(
    run, tmp_path, monkeypatch, capsys, name
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos.image_folder(tmp_path / "data", train=4, val=2)
    data = "{class_path: ImageFolderDataModule, init_args: {root: data, batch_size: 4, "
    data += "num_workers: 0, train_size: 24, val_resize: 28, val_size: 24}}"
    Path("photos.yaml").write_text(f"data: {data}")
    more = ["--model.raises=false"] if "." in name else []
    args = ("--config=photos.yaml", f"--model={name}", "--model.num_classes=3", *more)
    line = fails(run, capsys, *FIT, *args)
    assert re.search(rf"{name.rpartition('.')[2]} can't take images of 3 x 24 x 24: \w", line)


def test_a_mistake_in_the_code_of_a_network_keeps_its_traceback(run):
    with pytest.raises(RuntimeError, match="a bug"):
        run(*FIT, "--model=test_chosen.Patches")


class Noisy(MLP):
    """A network that draws random numbers."""

    def forward(self, images):
        return super().forward(images) + torch.rand(())


def test_the_look_at_the_images_changes_nothing():
    net = Noisy(width=8, depth=1)
    net.net[0].eval()
    state, modes = torch.get_rng_state(), [m.training for m in net.modules()]
    try_images(net, type("Data", (), {"image_shape": (1, 28, 28)}))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in net.modules()] == modes
