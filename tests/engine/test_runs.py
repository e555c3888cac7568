"""A run's folder is read back, also one of an older release, and never found half written."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Timer
from yours import PACKAGE

from anneal.errors import UserError
from anneal.runs import metrics
from anneal.runs.config import FORMAT, current_name, flatten, parse
from anneal.runs.drops import drops
from anneal.runs.folder import (
    check_lightning_checkpoint,
    check_writable,
    find_checkpoint,
    find_run,
    last_of,
    read_checkpoint,
    recipe_of,
)
from anneal.runs.resume import differences, is_tested, nothing_left, stop_of, stopped_early
from anneal.system import atomic_write
from anneal.testing import main

TRAIN_ON = "to train on from: it holds weights, but no optimizer_states"
# As `--print_config` wrote it before the engine and the project lay apart, much shortened.
OLD = """
seed_everything: 0
trainer:
  callbacks:
  - class_path: anneal.callbacks.ema.EMA
    init_args: {decay: 0.99}
model:
  class_path: anneal.modules.mnist.MNISTConvNet
  init_args:
    width: 8
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {lr: 0.01}
    schedule:
      scheduler:
        class_path: anneal.schedulers.CosineAnnealingLR
        init_args: {T_max: null}
      monitor: val/loss
data:
  class_path: anneal.data.mnist.MNISTDataModule
  init_args: {dataset: digits}
"""


# ---- configuration


def test_a_configuration_of_an_older_release_has_todays_class_names():
    tree = parse(OLD, "config.yaml")
    assert tree["model"]["class_path"] == "MNISTConvNet"
    assert tree["data"]["class_path"] == "MNISTDataModule"
    arguments = tree["model"]["init_args"]
    assert arguments["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert arguments["schedule"]["scheduler"]["class_path"] == "CosineAnnealingLR"
    assert tree["trainer"]["callbacks"][0]["class_path"] == "anneal.callbacks.ema.EMA"
    assert parse(yaml.safe_dump(tree), "config.yaml") == tree


def test_a_configuration_of_an_older_release_trains(run, tmp_path):
    config = yaml.safe_dump(parse(OLD, "config.yaml"))
    (tmp_path / "old.yaml").write_text(config)
    small = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.logger=false"]
    main(["fit", "--config=old.yaml", *small, "--trainer.accelerator=cpu", "--run_name=old"])
    assert (tmp_path / "runs/old/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("anneal.data.imagenet.ImageFolderDataModule", "ImageFolderDataModule"),
        ("anneal.data.imagenet.Progressive", "ProgressiveResizing"),
        ("anneal.modules.surface.Surface", "Surface"),
        ("anneal.data.points.Steps", "Steps"),
        ("anneal.callbacks.picture.Picture", "TrainingFigure"),
        ("anneal.callbacks.ema.EMA", "EMA"),
        ("anneal.sharding.FullyShard", "FullyShard"),
        (f"{PACKAGE}.models.digits.MLP", "MLP"),
        ("lightning.pytorch.callbacks.EarlyStopping", "EarlyStopping"),
        ("MLP", "MLP"),
    ],
)
def test_old_names_are_found(old, new):
    path = current_name(old)
    assert path.rpartition(".")[2] == new
    assert not path.startswith(("anneal.data.", "anneal.modules."))


def test_keys_are_those_one_types():
    flat = dict(flatten(yaml.safe_load(OLD)))
    assert flat["model.optimizer.class_path"] == "torch.optim.AdamW"
    assert flat["model.optimizer.lr"] == 0.01
    assert flat["model.schedule.scheduler.T_max"] is None
    assert not any("init_args" in key for key in flat)


def test_a_resume_compares_with_todays_names():
    now = yaml.safe_load(OLD) | {"format": FORMAT}
    now["model"] |= {"class_path": "MNISTConvNet"}
    now["model"]["init_args"]["width"] = 16
    assert differences(OLD, yaml.safe_dump(now)) == [("model.width", 8, 16)]
    with pytest.raises(UserError, match=r"^the checkpoint has no settings"):
        differences("3", OLD)


@pytest.mark.parametrize(
    ("text", "what"), [("a: [", "is no YAML: line "), ("3", "has no settings, such as")]
)
def test_what_is_no_configuration_is_named(text, what):
    with pytest.raises(UserError, match=f"config.yaml {what}"):
        parse(text, "config.yaml")


def test_a_path_that_is_no_utf_8_is_read_back():
    assert parse(r'root: "caf\uDCE9"', "config.yaml") == {"root": os.fsdecode(b"caf\xe9")}


def test_a_run_that_is_not_there_is_named_with_the_newest(tmp_path):
    with pytest.raises(UserError, match=r"there is no run in .*/ yet: train one first$"):
        find_run(tmp_path, None)
    with pytest.raises(UserError, match=r"^--run=x: no such run in .*/; the newest are: none$"):
        find_run(tmp_path, "x")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/config.yaml").write_text("{}")
    assert find_run(tmp_path, None) == find_run(tmp_path, "a") == tmp_path / "a"
    with pytest.raises(UserError, match=r"the newest are: a$"):
        find_run(tmp_path, "x")
    assert last_of(tmp_path / "a") is None
    (tmp_path / "a/metrics.csv").write_text("step,epoch\n0,0\n3,1\n")
    with pytest.raises(
        UserError, match=r"a has trained 1 epochs, .* from: put it back, or start a"
    ):
        last_of(tmp_path / "a")


def test_weights_alone_are_not_enough_to_train_on_from():
    key = {"epoch": 1, "global_step": 1, "loops": {}, "pytorch-lightning_version": "2"}
    check_lightning_checkpoint(key, Path("x"), fits=False)
    for stored, fits, what in (({}, False, "of Lightning: .* epoch"), (key, True, TRAIN_ON)):
        with pytest.raises(UserError, match=f"^x is no checkpoint {what}$"):
            check_lightning_checkpoint(stored, Path("x"), fits)


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(tmp_path):
    folder = tmp_path / "a/checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "a/config.yaml").write_text("{}")
    where = "--ckpt_path=best: not in .*a/checkpoints, where there is"
    with pytest.raises(UserError, match=f"^{where} no checkpoint; --run=NAME is for another run"):
        find_checkpoint(tmp_path, "best", None)
    for name in ("z.ckpt", "last.ckpt", "text"):
        (folder / name).touch()
    assert find_checkpoint(tmp_path, "last", None) == folder / "last.ckpt"
    with pytest.raises(UserError, match=f"^{where} last.ckpt, z.ckpt; "):
        find_checkpoint(tmp_path, "best", "a")
    with pytest.raises(UserError, match=r"^--ckpt_path=LAST: no such file \(or say best or last\)"):
        find_checkpoint(tmp_path, "LAST", None)


def test_what_is_left_of_a_run_is_counted_in_epochs_steps_or_time():
    timer = Timer(timedelta(seconds=5))
    trainer = SimpleNamespace(max_epochs=2, max_steps=-1, callbacks=[timer])
    epochs = {"epoch_progress": {"current": {"processed": 1}}}
    spent = {timer.state_key: {"time_elapsed": {"train": 3.0}}}
    stored = {"global_step": 8, "loops": {"fit_loop": epochs}, "callbacks": spent}
    done = "has done {}: nothing is left. To train on, raise --trainer.{}."
    assert nothing_left(stored, trainer) == ""
    spent[timer.state_key]["time_elapsed"]["train"] = 6.0
    assert nothing_left(stored, trainer) == done.format("6 of 5 seconds", "max_time")
    trainer.max_steps = 8
    assert nothing_left(stored, trainer) == done.format("8 of 8 steps", "max_steps")
    stored["position"] = {"validation_is_due": True}
    assert nothing_left(stored, trainer) == ""
    stored["position"]["epoch"] = 2
    assert nothing_left(stored, trainer) == done.format("2 of 2 epochs", "max_epochs")
    trainer.max_epochs = -1
    assert nothing_left(stored, trainer) == ""


def test_a_run_that_was_told_to_stop_has_nothing_left_once_it_made_the_least_it_must():
    least = {"min_epochs": None, "min_steps": None}
    trainer = SimpleNamespace(callbacks=[], should_stop=True, current_epoch=3, **least)
    config = "trainer: {callbacks: null}"
    epochs = {"epoch_progress": {"current": {"processed": 2}}}
    stored = {"stopped": stop_of(trainer, config), "global_step": 8, "loops": {"fit_loop": epochs}}
    assert stopped_early(stored, trainer, config) == (
        "stopped early at epoch 3 (a callback or the module has set should_stop): nothing is left. "
        "To train on, change --trainer.callbacks, or start a new run from it with --run_name."
    )
    assert stopped_early(stored, trainer, "trainer: {callbacks: [Stop]}") == ""
    for name, value in (("min_epochs", 3), ("min_steps", 9)):
        setattr(trainer, name, value)
        assert stopped_early(stored, trainer, config) == ""
        setattr(trainer, name, None)
    timer = Timer(timedelta(0))
    assert stop_of(SimpleNamespace(callbacks=[timer], should_stop=True), config) is None


def test_a_run_is_tested_if_its_last_step_is(tmp_path):
    assert not is_tested(tmp_path, 5)
    (tmp_path / "metrics.csv").write_text("step,test/acc\n3,\n4,0.5\n5,\n")
    assert [is_tested(tmp_path, step) for step in (4, 5, 6)] == [False, True, False]


def test_a_rate_that_falls_again_within_an_epoch_slopes_unless_by_the_same_factor():
    epochs = np.array([0.0, 1, 2])
    assert drops(np.array([1, 0.5, 0.1]), 2 * epochs) == [1, 2]
    assert drops(np.array([1, 0.5, 0.1]), epochs) == []
    assert drops(np.array([1, 0.5, 0.25]), epochs) == [1, 2]
    assert drops(np.array([1, 0.81, 0.5]), 2 * epochs) == [2]


# ---- format


def test_a_newer_format_is_refused_in_a_line(tmp_path):
    assert parse(f"format: {FORMAT}\na: 1\n", "config.yaml") == {"a": 1}
    with pytest.raises(UserError, match=r"config.yaml: format 2 is newer than 1"):
        parse(f"format: {FORMAT + 1}\na: 1\n", "config.yaml")
    torch.save({"state_dict": {}, "format": FORMAT + 1}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last.ckpt: format 2 is newer than 1"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_checkpoint_names_its_format_and_its_class_in_plain_values(trained_runs):
    stored = read_checkpoint(trained_runs / "digits/checkpoints/last.ckpt")
    assert stored["format"] == FORMAT
    assert stored["model_class"].endswith(".MLP")


def test_a_file_of_weights_is_read_and_another_one_is_named_with_a_good_one(tmp_path, monkeypatch):
    weights = {"a": torch.ones(2)}
    for name, zipped in (("new.ckpt", True), ("before torch 1.6.ckpt", False)):
        torch.save(weights, tmp_path / name, _use_new_zipfile_serialization=zipped)
        torch.testing.assert_close(read_checkpoint(tmp_path / name), {"state_dict": weights})
    (tmp_path / "text.ckpt").write_text("no weights")
    reason = r"text.ckpt is damaged, cut or no checkpoint \(not as torch saves\)"
    with pytest.raises(UserError, match=f"{reason}$"):
        read_checkpoint(tmp_path / "text.ckpt")
    with pytest.raises(UserError, match=r"can't be read \(\[Errno \d+\] Is a directory: '.*'\)$"):
        read_checkpoint(tmp_path)
    with ZipFile(tmp_path / "packed.ckpt", "w", ZIP_DEFLATED) as packed:
        packed.writestr("data.pkl", 1000 * "a")
    with pytest.raises(UserError, match=r"no checkpoint \(it is compressed\)"):
        read_checkpoint(tmp_path / "packed.ckpt")
    whole = {"state_dict": weights, "mean": torch.ones(1)}
    torch.save(whole, tmp_path / "good.ckpt")
    torch.testing.assert_close(read_checkpoint(tmp_path / "good.ckpt"), whole)
    with pytest.raises(UserError, match=f"{reason}; a good one is .*good.ckpt$"):
        read_checkpoint(tmp_path / "text.ckpt")

    def load(path, map_location, **_):
        assert map_location == "cpu"  # whatever it was saved on
        raise EOFError

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UserError, match=r"no checkpoint \(EOFError\)$"):
        read_checkpoint(tmp_path / "good.ckpt")


def test_a_folder_is_made_with_those_above_it_or_said_to_be_impossible(tmp_path):
    check_writable(tmp_path / "a/b")
    check_writable(tmp_path / "a/b")
    assert not list((tmp_path / "a/b").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^can't write the run's folder into .*file/a: Not a dir"):
        check_writable(tmp_path / "file/a")


@pytest.mark.parametrize(
    ("config", "recipe"),
    [
        ("configs/mnist.yaml", "mnist"),
        ("runs/mnist-20261125-050655-af3d6c/config.yaml", "mnist"),
        ("runs/mine/config.yaml", "mine"),
        ("runs/-20261125-050655-af3d6c/config.yaml", "run"),
    ],
)
def test_a_recipe_goes_by_the_name_of_its_file_or_of_its_run(config, recipe):
    assert recipe_of(Path(config)) == recipe


# ---- files


def test_only_whole_lines_are_read(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_bytes(b"step,val/loss\n0,2\n\0\0\0\n9\n9,1.5\n19,1.")
    table = metrics.read(file)
    assert table.columns == ["step", "val/loss"]
    assert table.values("val/loss") == [2, 1.5]
    file.write_text("")
    assert metrics.read(file) == ([], [])


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path, shared):
    file = tmp_path / "a.txt"
    with atomic_write(file, shared=shared) as part:
        part.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(file, shared=shared) as part:  # noqa: PT012
        part.write_text("half")
        assert 1 / 0
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("module", "name"),
    [("report.page", "report"), ("report.card", "card"), ("sweep.main", "sweep")],
)
def test_a_tool_tells_how_it_is_used_without_its_libraries(module, name):
    heavy = "{'torch', 'lightning', 'pandas', 'matplotlib', 'optuna', 'scipy', 'huggingface_hub'}"
    code = (
        f"import sys\nfrom anneal.{module} import main\n"
        f"try: main(['--help'])\nexcept SystemExit: sys.exit(str({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"usage: python train.py {name} " in done.stdout
    assert done.stderr == "set()\n"


def test_a_run_of_photos_from_before_2_3_is_read_though_an_option_is_gone():
    data = "data: {class_path: ImageFolderDataModule, init_args: {root: x, cache_dir: %s}}"
    assert parse(data % "null", "old")["data"]["init_args"] == {"root": "x"}
    assert "cache_dir" in parse(data % "there", "old")["data"]["init_args"]  # refused later on
