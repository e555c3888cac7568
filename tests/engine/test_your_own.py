"""What docs/your-own.md tells to write is written, and every command of it trains a step."""

import csv
import os
import re
import subprocess
import sys
from importlib import import_module, reload
from pathlib import Path

import pytest
from launch import FORKS, QUIET
from pages import ROOT, commands

PAGE = (ROOT / "docs/your-own.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [words[2:] for words in commands(ROOT / "docs/your-own.md")]
SHORT = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the files of the page, in which all its commands have been run."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    process = FORKS.Process(target=run_all, args=(folder,))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 0, (folder / "log").read_text()
    return folder


def run_all(folder: Path) -> None:
    os.chdir(folder)
    log = os.open("log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in ("anneal", "anneal.data", "anneal.modules", "anneal.callbacks"):
        import_module(name).__path__.append(str(folder / "src" / name.replace(".", "/")))
    cli = reload(import_module("anneal.cli.main"))  # which imports what lies in these folders
    import_module("anneal.callbacks.test_report").TestReport.on_test_end = lambda *args: None
    for number, words in enumerate(COMMANDS):
        trains = words[0].startswith("-")
        print(words, flush=True)
        if words[0] == "schedule":
            cli.main(words)
        else:
            cli.main([*words, *QUIET, *SHORT, *([f"--run_name={number}"] if trains else [])])


def test_every_block_says_where_it_goes_and_what_is_trained_with():
    assert len(FILES) == len(re.findall(r"```(?:python|yaml)\n", PAGE))
    assert not [name for name in FILES if (ROOT / name).exists()]
    recipes = [text for name, text in FILES.items() if name.endswith(".yaml")]
    used = "\n".join([*map(" ".join, COMMANDS), *recipes])
    for name, text in FILES.items():
        words = [Path(name).name, *re.findall(r"^class (\w+)", text, re.MULTILINE)]
        assert any(re.search(rf"\b{word}\b", used) for word in words), name


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words))
def test_every_command_trains_a_step(folder, words):
    if words[0] == "schedule":
        assert (folder / "runs/schedule.png").is_file()
    elif words[0] == "test":
        assert "Test metric" in (folder / "log").read_text()
    else:
        assert (folder / f"runs/{COMMANDS.index(words)}/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize("key", ["val/iou", "val/ece", "test/ece", "weight_norm"])
def test_what_is_ones_own_is_logged(folder, key):
    logged = set()
    for path in folder.glob("runs/*/metrics.csv"):
        with path.open() as file:
            logged |= {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert key in logged


def test_the_blocks_are_written_as_the_rest_of_the_project_is(folder):
    ruff = [sys.executable, "-m", "ruff"]
    settings = f"--config={ROOT / 'pyproject.toml'}"
    own = '--config=lint.isort.known-first-party=["anneal"]'
    for words in (["check", own], ["format", "--check"]):
        command = [*ruff, *words, settings, "src"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert not done.returncode, done.stdout
