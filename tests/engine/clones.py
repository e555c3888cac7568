"""Clones of this checkout, to be renamed, slimmed and upgraded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ME = ["-c", "user.name=me", "-c", "user.email=me@localhost"]


def git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), *ME, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def commit(folder: Path, message: str = "All") -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", message)


def make_clone(folder: Path) -> Path:
    """Commit the files of this checkout as they are now in a repository of their own."""
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    commit(folder)
    return folder


def python(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Run Python in a clone, with the clone's own packages."""
    env = os.environ | {"PYTHONPATH": str(folder / "src")}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True
    )


def lint(folder: Path) -> None:
    """Run what `make lint` runs, mypy aside, which takes the longest and looks at no name."""
    contracts = ["src/anneal/contracts.toml", "pyproject.toml"]
    for command in (
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
    ):
        words = command + (contracts if "--no-cache" in command else [])
        done = python(folder, *words)
        assert done.returncode == 0, done.stdout + done.stderr
