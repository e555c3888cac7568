"""Every recipe as it stands in configs/: its header, and a quick run of all its parts."""

import re
import struct
from pathlib import Path

import pytest
import torch
import yaml

from anneal.testing import image_folder, logged

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
PHOTOS = [p for p in CONFIGS if p.stem.startswith(("imagenet", "photos"))]
SMALLS = [p for p in CONFIGS if p not in PHOTOS]
STEP = ("step_size=1",)
PLATEAU = (
    "patience=0",
    "threshold=10",
    "threshold_mode=abs",
)  # no validation but the first is good
# Recipes whose learning rate drops: what makes it drop soon, and the rates of four epochs.
DROPS = {
    "mnist_step": (STEP, [0.1, 0.01, 0.001, 0.0001]),
    "mnist_plateau": (PLATEAU, [0.0505, 0.1, 0.02, 0.004]),
    "imagenet_resnet50_2015": (STEP, [0.1, 0.01, 0.001, 0.0001]),
    "imagenet_resnet18_2015": (STEP, [0.1, 0.01, 0.001, 0.0001]),
    "imagenet_resnet50_plateau": (PLATEAU, [0.1, 0.1, 0.01, 0.001]),
    "imagenette_step": (("milestones=[1,2]",), [0.1, 0.01, 0.001, 0.001]),
    "imagenette_plateau": (PLATEAU, [0.1, 0.1, 0.01, 0.001]),
}


@pytest.fixture
def root(tmp_path):
    """Write stand-ins for the files of MNIST and FashionMNIST, which a test can't download."""
    for dataset in ("MNIST", "FashionMNIST"):
        raw = tmp_path / "data" / dataset / "raw"
        raw.mkdir(parents=True)
        for part, n in (("train", 600), ("t10k", 203)):
            for kind, shape in (("images-idx3", (n, 28, 28)), ("labels-idx1", (n,))):
                values = torch.randint(10, shape, dtype=torch.uint8)
                header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
                (raw / f"{part}-{kind}-ubyte").write_bytes(header + values.numpy().tobytes())
    return tmp_path / "data"


@pytest.mark.filterwarnings("ignore:schedule. the warmup takes")
@pytest.mark.parametrize("config", SMALLS, ids=lambda p: p.stem)
def test_recipe_runs_through_all_its_parts(run, root, config):
    small = (f"--data.root={root}", "--data.val_size=0.1")
    trainer = run("fit", f"--config={config}", "--trainer.fast_dev_run=true", *small).trainer
    assert trainer.global_step == 1
    assert "val/acc" in trainer.callback_metrics


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The options that run a recipe for photos on a few small ones, and a small network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image_folder(tmp_path / "photos", train=4, val=2)
    sizes = {"train_size": 32, "val_resize": 40, "val_size": 32, "batch_size": 4, "num_workers": 0}
    return [
        "--trainer.accelerator=cpu",
        "--model.arch=resnet18",
        "--model.width=8",
        "--data.root=photos",
        "--data.progressive=null",
        *(f"--data.{k}={v}" for k, v in sizes.items()),
    ]


@pytest.mark.filterwarnings("ignore:schedule. the warmup takes")
@pytest.mark.parametrize("config", PHOTOS, ids=lambda p: p.stem)
def test_recipe_for_photos_runs_through_all_its_parts_on_small_ones(run, tiny, config):
    trainer = run("fit", f"--config={config}", "--trainer.fast_dev_run=true", *tiny).trainer
    assert trainer.global_step == 1
    assert "val/acc" in trainer.callback_metrics


@pytest.mark.parametrize("recipe", DROPS)
def test_the_learning_rate_drops_as_the_recipe_says(run, root, tiny, tmp_path, recipe):
    how, lrs = DROPS[recipe]
    mnist = (f"--data.root={root}", "--data.val_size=0.1", "--trainer.accelerator=cpu")
    run(
        "fit",
        f"--config={CONFIGS[0].parent / recipe}.yaml",
        "--run_name=it",
        "--trainer.max_epochs=4",
        "--trainer.limit_train_batches=2",
        "--trainer.log_every_n_steps=1",
        *(f"--model.schedule.scheduler.{setting}" for setting in how),
        *(mnist if recipe.startswith("mnist") else [*tiny, "--model.lr_batch_size=null"]),
    )
    steps = {
        int(row["step"]): float(row["lr"]) for row in logged(tmp_path / "runs/it") if row["lr"]
    }
    by_epoch = [steps[max(step for step in steps if step < 2 * end)] for end in (1, 2, 3, 4)]
    assert by_epoch == pytest.approx(lrs)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_recipe_says_what_it_shows_how_to_run_it_and_what_comes_out(config):
    text = config.read_text()
    header = text[: text.index("\ntrainer:")]
    assert all(line.startswith("#") for line in header.splitlines())
    name = re.escape(config.name)
    command = r"python train\.py$" if config.stem == "mnist" else rf"--config=configs/{name}"
    assert re.search(command, header, re.MULTILINE)
    assert re.search(r"\d\.\d{3,}", header)  # the result
    # The time, or that the figures are another's.
    words = " ".join(header.replace("#", " ").split())
    assert re.search(r"\d+ s\b|the source", words)
    assert yaml.safe_load(text)["model"]["class_path"]


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_overfitting_one_batch_reaches_every_sample(run, tmp_path):
    run(
        "fit",
        f"--config={CONFIGS[0].parent / 'mnist.yaml'}",
        "--run_name=one",
        "--trainer.overfit_batches=1",
        "--trainer.max_epochs=40",
        "--trainer.limit_val_batches=0",
        "--data.shift=0",
        "--data.rotation=0",
        "--data.scale=0",
    )
    rows = logged(tmp_path / "runs/one")
    accuracies = [float(row["train/acc"]) for row in rows if row["train/acc"]]
    assert accuracies[0] < 0.5
    assert accuracies[-1] == 1.0
