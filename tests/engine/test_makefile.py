"""make sets up once, again when pyproject.toml changes, and passes ARGS on."""

import os
import re
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


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
    ("target", "command"),
    [("train", "python train.py"), ("test", "python -m pytest -n auto --dist worksteal")],
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


def test_the_lock_has_every_dependency_in_its_range_with_hashes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["stream"] + extras["dev"]
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock  # no index but the reader's own
    entries = re.split(r"\n(?=\w)", lock)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
    locked = {}
    for entry in entries:
        requirement = Requirement(entry.partition(" \\")[0])
        locked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    for line in wanted:
        requirement = Requirement(line)
        if requirement.name == project["name"]:
            continue
        for found in locked[canonicalize_name(requirement.name)]:
            (version,) = found.specifier
            assert requirement.specifier.contains(version.version)


def test_locked_installs_the_lock_by_hash_and_nothing_else(clone):
    done = would_do(clone, "setup", "LOCKED=1", "--what-if=pyproject.toml")
    assert "--require-hashes -r requirements.lock" in done
    assert '--no-deps -e ".[dev]"' in done
    assert "requirements.lock" not in would_do(clone, "setup", "--what-if=pyproject.toml")
