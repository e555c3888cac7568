"""make sets up once, again when a list of dependencies changes, and passes ARGS on."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "src/anneal"
LISTS = ["requirements.txt", *(f"src/anneal/{path.name}" for path in ENGINE.glob("req*.txt"))]


@pytest.fixture
def fresh(tmp_path):
    """What make reads of a checkout."""
    for name in ("Makefile", "pyproject.toml", "src/anneal/engine.mk", *LISTS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def clone(fresh):
    """The same beside a .venv that has just been installed."""
    (fresh / ".venv").mkdir()
    for name in ("installed", "installed-dev"):
        time.sleep(0.01)
        (fresh / ".venv" / name).touch()
    return fresh


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
@pytest.mark.parametrize(
    "name", ["pyproject.toml", "requirements.txt", "src/anneal/requirements.txt"]
)
def test_a_changed_list_of_dependencies_installs_again(clone, target, name):
    time.sleep(0.01)
    (clone / name).touch()
    assert "pip install" in would_do(clone, target)


def test_a_fresh_clone_makes_its_own_environment(fresh):
    done = would_do(fresh, "train")
    assert done.index("-m venv .venv") < done.index("pip install") < done.index("train.py")


def test_to_train_installs_no_tools_of_development(fresh):
    assert "dev" not in would_do(fresh, "train")
    for target in ("test", "lint", "setup"):
        assert '-e ".[dev,export,optim,stream,timm]"' in would_do(fresh, target)


def test_torch_without_cuda_comes_from_an_index_that_is_named(fresh):
    done = would_do(fresh, "train", "TORCH_INDEX=https://localhost/cpu")
    line = next(line for line in done.splitlines() if "localhost" in line)
    assert line.endswith('--index-url "https://localhost/cpu" torch torchvision')
    assert done.index(line) < done.index("pip install --quiet  -e .")


def test_setup_ends_in_a_line_where_another_anneal_is_imported(fresh, tmp_path):
    """The package index has an unrelated project of that name."""
    (fresh / ".venv/bin").mkdir(parents=True)
    (fresh / ".venv/bin/python").symlink_to(sys.executable)
    for name in ("installed", "installed-dev"):
        (fresh / ".venv" / name).touch()
    (fresh / "src/anneal/clone").mkdir()
    for name in ("__init__.py", "clone/check_import.py"):
        shutil.copyfile(ENGINE / name, fresh / "src/anneal" / name)
    other = tmp_path / "other"
    (other / "anneal").mkdir(parents=True)
    (other / "anneal/__init__.py").touch()

    def setup(path: Path) -> subprocess.CompletedProcess:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(path)}
        command = ["make", "setup"]
        return subprocess.run(command, cwd=fresh, capture_output=True, text=True, env=environment)

    assert setup(fresh / "src").returncode == 0
    done = setup(other)
    assert done.returncode == 2
    said, _ = done.stderr.splitlines()  # and make's own
    assert said.startswith(f"error: `import anneal` finds {other / 'anneal'}, not {fresh / 'src'}")


def test_the_lock_has_every_dependency_in_its_range_with_hashes():
    lines = [line for name in LISTS for line in (ROOT / name).read_text().splitlines()]
    docs = (ENGINE / "requirements-docs.txt").read_text().splitlines()
    wanted = [line for line in lines if line and line[0] != "#" and line not in docs]
    assert len(wanted) > 30
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
        for found in locked[canonicalize_name(requirement.name)]:
            (version,) = found.specifier
            assert requirement.specifier.contains(version.version)


def test_locked_installs_the_lock_by_hash_and_nothing_else(clone):
    again = "--what-if=pyproject.toml"
    done = would_do(clone, "test", "LOCKED=1", again)
    assert "--require-hashes -r requirements.lock" in done
    installs = [line for line in done.splitlines() if " -e " in line]
    assert len(installs) == 2
    assert all("--no-deps -e" in line for line in installs)
    assert "requirements.lock" not in would_do(clone, "test", again)


def test_every_list_of_dependencies_is_read_by_pyproject():
    dynamic = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    extras = dynamic["optional-dependencies"]
    read = [*dynamic["dependencies"]["file"], *(extra["file"] for extra in extras.values())]
    assert sorted(read) == sorted(LISTS)


def test_no_message_says_to_install_the_engine_from_the_index():
    named = re.compile(r"pip install [^#\n]*\banneal\b")
    files = [*ENGINE.rglob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]
    assert [path for path in files if named.search(path.read_text())] == []
