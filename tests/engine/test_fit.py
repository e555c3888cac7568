"""Training from Python: the same run as from the command line."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from torch.optim import SGD
from yours import MLP, MNISTDataModule

import anneal
from anneal.testing import logged

SHORT = {
    "max_epochs": 2,
    "limit_train_batches": 4,
    "limit_val_batches": 2,
    "limit_test_batches": 2,
    "log_every_n_steps": 2,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def objects() -> tuple[MLP, MNISTDataModule]:
    seed_everything(0, workers=True)
    model = MLP(width=8, depth=1, optimizer=partial(SGD, lr=0.1, momentum=0.9))
    return model, MNISTDataModule(batch_size=32, shift=1, rotation=5)


def weights(name: str) -> dict[str, torch.Tensor]:
    path = Path("runs") / name / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_from_python_is_that_of_the_command_line(run, capsys):
    run("fit", "--config=small.yaml", "--run_name=typed", "--trainer.logger=true")
    capsys.readouterr()
    trainer = anneal.fit(*objects(), run_name="python", **SHORT)
    assert trainer.global_step == 8
    assert "test/acc" in capsys.readouterr().out
    assert all(torch.equal(a, weights("python")[k]) for k, a in weights("typed").items())
    assert logged(Path("runs/python")) == logged(Path("runs/typed"))
    names = {path.name for path in Path("runs/python").iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "test-confusion.png"} <= names


def test_its_configuration_names_the_classes_and_it_resumes(run, capsys):
    stop = EarlyStopping("val/loss", patience=9)
    anneal.fit(*objects(), run_name="python", callbacks=[stop], **SHORT)
    config = yaml.safe_load(Path("runs/python/config.yaml").read_text())
    assert config["model"]["class_path"] == "MLP"
    assert config["model"]["init_args"]["width"] == 8
    assert config["trainer"]["max_epochs"] == 2
    more = {**SHORT, "max_epochs": 3, "callbacks": [stop]}
    assert anneal.fit(*objects(), run_name="python", resume=True, **more).global_step == 12
    anneal.fit(*objects(), run_name="python", resume=True, **more)
    assert "has done 3 of 3 epochs: nothing is left" in capsys.readouterr().out
    anneal.fit(*objects(), run_name="whole", **more)
    assert all(torch.equal(a, weights("python")[k]) for k, a in weights("whole").items())


def test_what_makes_no_sense_is_an_exception(run):
    anneal.fit(*objects(), run_name="python", **SHORT)
    with pytest.raises(anneal.UserError, match="is there already"):
        anneal.fit(*objects(), run_name="python", **SHORT)
    with pytest.raises(anneal.UserError, match="nothing was trained"):
        anneal.fit(*objects(), **SHORT | {"max_steps": 0})


def test_importing_anneal_loads_no_torch():
    code = "import sys, anneal; assert 'torch' not in sys.modules; assert 'fit' in dir(anneal)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert callable(anneal.fit)
