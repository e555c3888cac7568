"""Every command of the README is accepted, and those on a checkpoint run."""

import re
import shlex
from pathlib import Path

import pytest

from anneal.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
COMMANDS = [
    shlex.split(line, comments=True)[2:]
    for line in BLOCKS.splitlines()
    if line.startswith("python train.py")
]
ON_CHECKPOINTS = [c for c in COMMANDS if any("ckpt_path" in word for word in c)]


def test_the_readme_has_commands():
    assert len(COMMANDS) > 10
    assert len(ON_CHECKPOINTS) > 3


@pytest.mark.parametrize(
    "words", [c for c in COMMANDS if c not in ON_CHECKPOINTS], ids=lambda c: " ".join(c)
)
def test_command_is_accepted(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    asks_for_help = any(".help" in word for word in words)
    with pytest.raises(SystemExit) as e:
        main(words if asks_for_help else [*words, "--print_config"])
    assert not e.value.code


def test_commands_on_checkpoints_run_one_after_the_other(run):
    run("fit", "--config=small.yaml")
    for words in ON_CHECKPOINTS:
        run(*words)


def test_links_and_pictures_of_the_readme_are_there():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists()
    for path in re.findall(r"`((?:src|configs|tests)/[\w/.]+)`", README):
        assert (ROOT / path).exists()
