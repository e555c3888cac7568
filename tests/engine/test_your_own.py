"""What docs/your-own.md tells to write is written, and every command of it trains a step."""

import csv
import os
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from launch import FORKS, QUIET
from pages import ROOT, commands
from yours import PACKAGE

PAGE = (ROOT / "docs/your-own.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = commands(ROOT / "docs/your-own.md")
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
    process.join(timeout=600)
    assert process.exitcode == 0, (folder / "log").read_text()
    return folder


def run_all(folder: Path) -> None:
    os.chdir(folder)
    log = os.open("log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    testing = import_module("anneal.testing")
    testing.image_folder(folder / "data/photos")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    for name in (PACKAGE, f"{PACKAGE}.data", f"{PACKAGE}.models"):
        import_module(name).__path__.append(str(folder / "src" / name.replace(".", "/")))
    import_module("anneal.tasks.test_report").TestReport.on_test_end = lambda *args: None
    testing.draw_nothing(pytest.MonkeyPatch())
    for number, words in enumerate(COMMANDS):
        print(words, flush=True)
        run(number, words)


def run(number: int, words: list[str]) -> None:
    """Run one command of the page, of few steps if it trains."""
    from anneal.testing import main

    if words[:2] == ["python", "train.py"]:
        trains = words[2].startswith("-")
        few = [f"--run_name={number}"] if trains else []
        few += ["--data.num_workers=0"] if "photos" in words[2] else []
        main(words[2:] if words[2] == "schedule" else [*words[2:], *QUIET, *SHORT, *few])
    elif words[:2] == ["make", "test"]:
        path = words[2].removeprefix("ARGS=")
        plugin = ["-p", "anneal.testing", "-c", str(ROOT / "pyproject.toml")]
        assert pytest.main(["-q", "--assert=plain", "--rootdir=.", *plugin, path]) == 0
    else:
        runpy.run_path(words[1])


def test_every_block_says_where_it_goes_and_is_run():
    assert len(FILES) == len(re.findall(r"```(?:python|yaml)\n", PAGE))
    assert not [name for name in FILES if (ROOT / name).exists()]
    recipes = [text for name, text in FILES.items() if name.endswith(".yaml")]
    used = "\n".join([*map(" ".join, COMMANDS), *recipes])
    for name, text in FILES.items():
        words = [Path(name).name, *re.findall(r"^class (\w+)", text, re.MULTILINE)]
        assert any(re.search(rf"\b{word}\b", used) for word in words), name


def test_every_block_lies_in_the_project_and_imports_public_names_only():
    of_the_project = (f"src/{PACKAGE}/", "tests/project/", "configs/")
    for name, text in FILES.items():
        assert name.startswith(of_the_project) or "/" not in name, name
        imported = set(re.findall(r"^\s*(?:from|import) (anneal\S*)", text, re.MULTILINE))
        assert imported <= {"anneal", "anneal.testing"}, name


def test_links_lead_to_nothing_that_slim_removes():
    for path in re.findall(r"\]\(\.\./([^)#]+)", PAGE):
        assert not path.startswith(("examples", "benchmarks", "tests/engine")), path


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words))
def test_every_command_trains_a_step(folder, words):
    number = COMMANDS.index(words)
    if "schedule" in words:
        assert (folder / "runs/schedule.png").is_file()
    elif words[0] == "make":
        assert "1 passed" in (folder / "log").read_text()
    elif words[2:3] == ["predict"]:
        (path,) = folder.glob("runs/*/predictions.csv")
        assert "data/photos/val/" in path.read_text()
    elif words[2:3] == ["test"]:
        assert "Test metric" in (folder / "log").read_text()
    else:
        name = number if words[1] == "train.py" else "from_python"
        assert (folder / f"runs/{name}/checkpoints/last.ckpt").is_file()


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
    own = f'--config=lint.isort.known-first-party=["anneal", "{PACKAGE}"]'
    for words in (["check", own], ["format", "--check"]):
        command = [*ruff, *words, settings, "src", "tests", *folder.glob("*.py")]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert not done.returncode, done.stdout
