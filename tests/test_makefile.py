"""make sets up once, again when pyproject.toml changes, and passes ARGS on."""

import os
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clone(tmp_path):
    """The Makefile beside a .venv that has just been installed."""
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".venv").mkdir()
    time.sleep(0.01)
    (tmp_path / ".venv" / "installed").touch()
    return tmp_path


def would_do(folder: Path, *words: str) -> str:
    # Without what a make around the tests has left in the environment.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    command = ["make", "--dry-run", *words]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, env=environment
    ).stdout


@pytest.mark.parametrize(
    ("target", "command"), [("train", "python train.py"), ("test", "python -m pytest -n auto")]
)
def test_a_second_call_installs_nothing(clone, target, command):
    done = would_do(clone, target, "ARGS=--trainer.max_epochs=3")
    assert done.splitlines() == [f".venv/bin/{command} --trainer.max_epochs=3"]


@pytest.mark.parametrize("target", ["train", "test", "lint"])
def test_a_changed_pyproject_installs_again(clone, target):
    time.sleep(0.01)
    (clone / "pyproject.toml").touch()
    assert "pip install" in would_do(clone, target)


def test_a_fresh_clone_makes_its_own_environment(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = would_do(tmp_path, "train")
    assert done.index("-m venv .venv") < done.index("pip install") < done.index("train.py")
