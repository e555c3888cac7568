"""`schedule` shows the rates that a run is going to have, without its data and without training."""

import re
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import yaml
from tiny import loader
from yours import MNISTDataModule

from anneal.commands.schedule import Preview, changes, count_batches, picture, table
from anneal.errors import UserError
from anneal.testing import logged

CONFIGS = Path(__file__).parents[2] / "configs"
FIFTY_STEPS = "--samples=3200", "--trainer.limit_train_batches=1.0"
SMALL = "--config=small.yaml"
IMAGENET = 1_281_167


def set_scheduler(name: str, **settings: object) -> list[str]:
    return [
        f"--model.schedule.scheduler={name}",
        *(f"--model.schedule.scheduler.{key}={value}" for key, value in settings.items()),
    ]


PLATEAU = set_scheduler("ReduceLROnPlateau", patience=0, threshold=0.5)
ONE_CYCLE = set_scheduler("OneCycleLR")
RUNS = {
    "step": [*set_scheduler("StepLR", step_size=1, gamma=0.1), "--model.decay_norm=false"],
    "cosine and warmup": [*set_scheduler("CosineAnnealingLR"), "--model.schedule.warmup_epochs=1"],
    "one cycle": [*ONE_CYCLE, "--model.decay_bias=false", "--model.lr_batch_size=128"],
}


def rates_of(folder: Path, steps: int) -> np.ndarray:
    """What a run has logged of the rate of each group at each step, (steps, groups)."""
    rows = logged(folder)
    columns = [c for c in rows[0] if re.fullmatch(r"lr(/\w+)?", c)]
    found = np.full((steps, len(columns)), np.nan)
    for row in rows:
        for i, column in enumerate(columns):
            if row[column]:
                found[int(row["step"]), i] = float(row[column])
    for step in range(1, steps):  # logged where it changes
        found[step] = np.where(np.isnan(found[step]), found[step - 1], found[step])
    return found


@pytest.mark.parametrize("name", RUNS)
def test_the_preview_is_what_a_run_logs_step_by_step(run, name):
    options = [
        SMALL,
        *RUNS[name],
        "--trainer.limit_train_batches=5",
        "--trainer.max_epochs=4",
        "--trainer.accumulate_grad_batches=3",
    ]
    run("fit", *options, "--trainer.logger=true", "--run_name=real")
    preview = run("schedule", *options).preview
    assert len(preview.lrs) == 4 * 2
    assert len(np.unique(preview.lrs)) > 1
    np.testing.assert_array_equal(preview.lrs, rates_of(Path("runs/real"), len(preview.lrs)))


class Eight(pl.LightningDataModule):
    """Eight batches of one sample, two to validate on."""

    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader(2)


def test_no_data_is_read_and_no_folder_is_made(run, monkeypatch):
    for method in ("prepare_data", "setup", "train_dataloader", "val_dataloader"):
        monkeypatch.setattr(MNISTDataModule, method, None)
    preview = run("schedule", SMALL, "--samples=640", "--trainer.limit_train_batches=1.0").preview
    assert preview.steps_per_epoch == 20
    assert [p.name for p in Path("runs").iterdir()] == ["schedule.png"]


@pytest.mark.parametrize("devices", ["3", "[0, 1]"])
def test_steps_of_samples_are_those_of_the_data_on_as_many_processes(run, devices):
    options = [SMALL, f"--trainer.devices={devices}", "--trainer.limit_train_batches=1.0"]
    options += ["--trainer.accelerator=gpu"] if "[" in devices else []
    of_data = run("schedule", *options).preview
    of_number = run("schedule", *options, "--samples=3600").preview
    assert of_number.steps_per_epoch == of_data.steps_per_epoch
    processes = {"3": 3, "[0, 1]": 2}[devices]
    assert of_data.steps_per_epoch == int(np.ceil(3600 / (32 * processes)))


def test_imagenet_is_previewed_without_imagenet(run, capsys):
    recipe = f"--config={CONFIGS}/imagenet_resnet18_2015.yaml"
    eight = ["--trainer.accelerator=gpu", "--trainer.devices=8", f"--samples={IMAGENET}"]
    preview = run("schedule", recipe, *eight).preview
    steps = np.arange(90 * 5005)
    expected = 0.1 * 0.1 ** (steps // (30 * 5005))
    np.testing.assert_allclose(preview.lrs[:, 0], expected, rtol=1e-12)
    shown = capsys.readouterr().out
    assert re.search(r"drop +150,150 +30 +0.01\n", shown)
    assert re.search(r"drop +300,300 +60 +0.001\n", shown)


def test_rates_of_body_and_head_are_told_apart_and_scaled(run, capsys):
    run(
        "schedule",
        f"--config={CONFIGS}/imagenet_resnet18_2015.yaml",
        f"--samples={10 * 4 * 32}",
        "--model.width=8",
        "--model.body_lr_factor=0.1",
        "--trainer.accumulate_grad_batches=4",  # 4 x 32 of the 256 samples that lr is for
    )
    shown = capsys.readouterr().out
    assert re.search(r"^ +step +epoch +lr body +lr head\n", shown, re.MULTILINE)
    assert re.search(r"^first +0 +0 +0.005 +0.05\n", shown, re.MULTILINE)
    assert re.search(r"^drop +300 +30 +0.0005 +0.005\n", shown, re.MULTILINE)


def error_of(run, capsys, *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        run("schedule", *args)
    assert e.value.code == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("error:")]
    return line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([f"--config={CONFIGS}/imagenet_resnet50_2015.yaml"], "--samples=N"),
        ([SMALL, "--trainer.max_epochs=-1"], "no end"),
        ([SMALL, "--compare=nowhere.yaml"], "nowhere.yaml"),
        ([SMALL, "--compare=--model.optimizer.lt=1"], "--model.optimizer.lt"),
    ],
)
def test_what_can_not_be_previewed_is_one_line(run, capsys, args, message):
    assert message in error_of(run, capsys, *args)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"samples": 0}, "--samples=0: must be at least 1"),
        ({"samples": 9}, "Eight has no batch_size"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(numbers, message):
    with pytest.raises(UserError, match=message):
        count_batches(pl.Trainer(accelerator="cpu", logger=False), Eight(), **numbers)


def test_a_schedule_that_keeps_checkpoints_says_at_which_steps(run, capsys):
    run("schedule", SMALL, *set_scheduler("WSD", branches=2), *FIFTY_STEPS)
    shown = capsys.readouterr().out
    total = int(re.search(r"(\d+) steps$", shown, re.MULTILINE)[1])
    assert re.search(rf"decay begins +{total * 8 // 10} ", shown)
    assert f"of the steps {total * 4 // 10}, {total * 8 // 10}\n" in shown


def test_a_plateau_without_a_metric_is_drawn_flat_and_says_so(run, capsys):
    preview = run("schedule", SMALL, *PLATEAU).preview
    assert set(preview.lrs[1:, 0]) == {0.1}
    assert "only a training knows" in capsys.readouterr().out


# ---- what is shown


def of(lrs: list[float], warmup: int = 0) -> Preview:
    rates = np.array(lrs)[:, None]
    return Preview(rates, [""], [], 4, warmup, "", [])


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (of([1.0] * 8), ["first 0", "last 7"]),
        (of([1.0] * 4 + [0.1] * 4 + [0.01] * 4), ["first 0", "drop 4", "drop 8", "last 11"]),
        (of([0.0, 0.5, 1.0, 0.6, 0.2], 2), ["first 0", "warmup ends 2", "last 4"]),
        (of([0.1, 0.5, 1.0, 0.6, 0.2]), ["first 0", "peak 2", "last 4"]),
        (of([1, 0.5, 0.1, 1, 0.5, 0.1]), ["first 0", "low 2", "peak 3", "last 5"]),
        (of([1, 1, 0.5, 0.5, 1, 1]), ["first 0", "drop 2", "rise 4", "last 5"]),
        (of([0.5, 0.5 + 1e-15, 0.5, 0.5]), ["first 0", "last 3"]),
        (of([0.0, 0.0]), ["first 0", "last 1"]),
        (of([1, 1, 1, 0.6, 0.2]), ["first 0", "decay begins 2", "last 4"]),
    ],
)
def test_changes_are_named(shown, expected):
    assert [f"{c.name} {c.step}" for c in changes(shown)] == expected


def test_the_table_has_steps_epochs_and_rates():
    lines = table(of([0.1, 0.5, 1.0, 0.6, 0.2]))
    assert [line.split() for line in lines.splitlines()] == [
        ["step", "epoch", "lr"],
        ["first", "0", "0", "0.1"],
        ["peak", "2", "0.5", "1"],
        ["last", "4", "1", "0.2"],
    ]


def test_a_long_table_is_cut_in_its_middle():
    lines = table(of(np.repeat(np.arange(100.0, 0, -1), 2).tolist())).splitlines()
    names = [line.split()[0] for line in lines[1:]]
    assert names == ["first", *["drop"] * 10, "…", *["drop"] * 3, "last"]
    assert "… 86 more" in lines[12]  # of 101 changes


def test_several_configurations_stand_in_one_picture(run, capsys):
    other = yaml.safe_load(Path("small.yaml").read_text())
    other["trainer"]["max_epochs"] = 3
    other["model"]["init_args"]["schedule"] = {"scheduler": "OneCycleLR"}
    Path("other.yaml").write_text(yaml.safe_dump(other))
    run(
        "schedule",
        SMALL,
        "--compare=other.yaml --model.optimizer.lr=0.3",
        "--compare=--trainer.limit_train_batches=2",
        "--model.optimizer.momentum=0.8",
        "--output=three.png",
    )
    shown = capsys.readouterr().out
    names = ["small", "other --model.optimizer.lr=0.3", "small --trainer.limit_train_batches=2"]
    for name in names:
        assert f"\n{name}: " in shown
    assert re.search(r"peak +3 +0.75 +0.29\d*\n", shown)
    assert Path("three.png").stat().st_size > 10_000
    assert not Path("runs").exists()


def test_a_picture_has_a_panel_for_what_there_is_to_see():
    ladder, cycle = of([1.0] * 4 + [0.1] * 4), of([0.1, 1.0, 0.1])
    (axes,) = picture({"ladder": ladder}).axes
    assert axes.get_yscale() == "log"
    assert axes.child_axes[0].get_xlabel() == "optimizer steps"
    (x, y) = axes.lines[0].get_data()
    np.testing.assert_array_equal(x, np.arange(8) / 4)
    np.testing.assert_array_equal(y, ladder.lrs[:, 0])
    (rates,) = picture({"cycle": cycle}).axes
    assert rates.get_yscale() == "linear"
    shorter = Preview(**{**vars(cycle), "steps_per_epoch": 3})
    panels = picture({"a": cycle, "b": shorter}).axes
    assert [p.get_xlabel() for p in panels] == ["epochs", "optimizer steps"]
    assert [t.get_text() for t in panels[0].get_legend().get_texts()] == ["a", "b"]
