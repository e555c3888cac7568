"""What stands around the code names only files and Make targets that there are."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AROUND = [
    "Makefile",
    "Dockerfile",
    "mkdocs.yml",
    "pyproject.toml",
    ".pre-commit-config.yaml",
    "src/anneal/engine.mk",
    "src/anneal/contracts.toml",
    *(
        path.relative_to(ROOT).as_posix()
        for folder in (".ci", ".devcontainer", ".github/workflows", "scripts")
        for path in (ROOT / folder).iterdir()
        if path.is_file()
    ),
]
FOLDERS = r"\.github|benchmarks|configs|docs|examples|scripts|src|tests"
PATH = rf"(?<![\w/.-])(?:{FOLDERS})/[\w*./-]*[\w*/]|(?<![\w/.-])[\w-]+\.(?:py|lock|toml)(?![\w./])"


@pytest.mark.parametrize("name", AROUND)
def test_every_path_that_is_named_exists(name):
    text = (ROOT / name).read_text()
    missing = {path for path in re.findall(PATH, text) if not list(ROOT.glob(path))}
    assert missing == set()


@pytest.mark.parametrize("name", AROUND)
def test_every_make_target_that_is_named_exists(name):
    made = subprocess.run(["make", "-pq"], cwd=ROOT, capture_output=True, text=True).stdout
    targets = set(re.findall(r"^([a-z]+):", made, re.MULTILINE))
    commands = re.findall(r"(?<![\w-])make ([a-z]+)", (ROOT / name).read_text())
    assert {"train", "test", "upgrade"} <= targets
    assert set(commands) <= targets | {"prints", "sure"}
