"""The project under another name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SMALL

ROOT = Path(__file__).parents[2]
HERE = next(ROOT.glob("src/*/cli.py")).parent
ME = ["-c", "user.name=me", "-c", "user.email=me@localhost"]


def git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), *ME, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The files in git as they are now, committed in a repository of their own."""
    folder = tmp_path_factory.mktemp("clone")
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "All")
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(folder / "src")}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True
    )


def words(folder: Path, name: str) -> list[str]:
    """The files, their names included, that have a word."""
    files = [n for n in git(folder, "ls-files", "-z").split("\0") if n and n != "LICENSE"]
    pattern = re.compile(rf"\b{name}\b", re.IGNORECASE)
    texts = {n: (folder / n).read_text(errors="ignore") for n in files}
    return [n for n, text in texts.items() if pattern.search(text) or pattern.search(n)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my-project", "a package's name has small letters"),
        ("class", "a package's name has small letters"),
        ("MyProject", "a package's name has small letters"),
        ("json", "there is a module of that name"),
        ("torch", "there is a module of that name"),
        ("optimizer", "uses the word for something else"),
        (HERE.name, "is its name already"),
    ],
)
def test_a_name_that_does_not_do_is_refused_in_a_line(clone, name, reason):
    done = run(clone, "scripts/rename.py", name)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {name}: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not git(clone, "status", "--porcelain")


def test_it_trains_and_passes_its_tests_under_two_names_in_turn(clone):
    (clone / "small.yaml").write_text(SMALL)
    names = ["_".join(parts) for parts in (("my", "project"), ("another", "name"))]
    done = run(clone, "scripts/rename.py", names[0])
    assert "some changes are not committed" in done.stderr
    old = next((clone / "src").iterdir()).name
    for name in names:
        done = run(clone, "scripts/rename.py", name, "--dirty")
        assert done.returncode == 0, done.stderr
        assert words(clone, old) == []
        assert len(words(clone, name)) > 50
        old = name
    assert not run(clone, "-m", "ruff", "format", "--check", ".").returncode
    done = run(clone, "train.py", "--config=small.yaml", "--run_name=r")
    assert done.returncode == 0, done.stderr
    done = run(clone, "-m", "pytest", "-q", "tests/modules/test_mnist.py", "tests/test_optim.py")
    assert done.returncode == 0, done.stdout
