"""Every recipe as it stands in configs/: its header, and a quick run of all its parts."""

import csv
import re
import struct
from pathlib import Path

import pytest
import torch
import yaml

from anneal import testing as photos

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
PHOTOS = [p for p in CONFIGS if p.stem.startswith(("imagenet", "photos"))]
DRAWN = [p for p in CONFIGS if p.stem.startswith(("surface", "curve"))]
SMALLS = [p for p in CONFIGS if p not in PHOTOS + DRAWN]


@pytest.fixture
def root(tmp_path):
    """Stand-ins for the files of MNIST and its look-alikes, which can't be downloaded in a test."""
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
    cli = run("fit", f"--config={config}", "--trainer.fast_dev_run=true", *small)
    assert cli.trainer.global_step == 1
    assert "val/acc" in cli.trainer.callback_metrics


@pytest.mark.parametrize("config", DRAWN, ids=lambda p: p.stem)
def test_recipe_that_is_drawn_runs_through_all_its_parts(run, config):
    cli = run("fit", f"--config={config}", "--trainer.fast_dev_run=true")
    assert cli.trainer.global_step == 1
    assert "val/loss" in cli.trainer.callback_metrics


@pytest.mark.filterwarnings("ignore:schedule. the warmup takes")
@pytest.mark.parametrize("config", PHOTOS, ids=lambda p: p.stem)
def test_recipe_for_photos_runs_through_all_its_parts_on_small_ones(
    run, tmp_path, monkeypatch, config
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos.image_folder(tmp_path / "data", train=4, val=2)
    sizes = {"train_size": 64, "val_resize": 72, "val_size": 64, "batch_size": 4, "num_workers": 0}
    cli = run(
        "fit",
        f"--config={config}",
        "--trainer.fast_dev_run=true",
        "--trainer.accelerator=cpu",
        "--model.arch=resnet18",
        "--data.root=data",
        "--data.progressive=null",
        *(f"--data.{k}={v}" for k, v in sizes.items()),
    )
    assert cli.trainer.global_step == 1
    assert "val/acc" in cli.trainer.callback_metrics


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
def test_overfitting_one_batch_reaches_every_sample(run):
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
    with Path("runs/one/metrics.csv").open() as file:
        accuracies = [float(r["train/acc"]) for r in csv.DictReader(file) if r["train/acc"]]
    assert accuracies[0] < 0.5
    assert accuracies[-1] == 1.0
