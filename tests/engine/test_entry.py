"""What is answered before torch is imported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anneal.cli import entry
from anneal.cli.words import read_words
from anneal.testing import main

ROOT = Path(__file__).parents[2]
RECIPES = [path.stem for path in entry.CONFIGS.glob("*.yaml")]
COMMANDS = [*entry.RUN_COMMANDS, *entry.TOOLS]
START = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import train
from anneal import main
assert "torch" not in sys.modules
"""
WITHOUT_TORCH = f"""{START}
try:
    main(train.fit, train.PACKAGES, sys.argv[1:])
except SystemExit as e:
    print(e.code, "torch" in sys.modules)
"""


def full(words: list[str]) -> None:
    """The command line without what earlier ones have left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "kept", lambda kind: {})
        patch.setattr(entry, "mistakes", lambda typed, commands: [])
        main(words)


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> Path:
    """The file in which command lines leave the options."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for command in entry.RUN_COMMANDS:
            with pytest.raises(SystemExit):
                main([command, "--help"])
    (file,) = folder.glob("*/*")
    return file


@pytest.fixture
def known(left, tmp_path, monkeypatch) -> Path:
    """A copy of it, in a cache of this test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / left.parent.name).mkdir(parents=True)
    return Path(shutil.copy(left, tmp_path / "cache" / left.parent.name))


def test_the_overview_lists_the_commands_the_recipes_and_how_to(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    lines = capsys.readouterr().out.splitlines()
    assert set(COMMANDS) <= {line.split()[0] for line in lines if line.startswith("    ")}
    listed = [line for line in lines if line[:2] == "  " and line[2:].split(" ")[0] in RECIPES]
    assert len(listed) == len(RECIPES)
    assert all(len(line) <= 100 and len(line.split()) > 1 for line in listed)
    assert any(line.startswith("  python train.py --trainer.max_epochs=3  ") for line in lines)


MISTAKES = [
    ["fitt"],
    ["--config=configs/mnits.yaml"],
    ["fit", "-c", "cache"],
    ["--trainer.max_epoch=3"],
    ["--epochs=3"],
    ["--multirun"],
    ["test", "--chekpoint.monitor=val/loss"],
]


HELP = [["--help"], ["fit", "--help"], ["lr_find", "-h"]]


@pytest.mark.parametrize("words", [*HELP, *MISTAKES], ids=" ".join)
def test_torch_is_not_imported_for_it(known, words):
    shown = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True
    )
    assert shown.stdout.splitlines()[-1] == f"{0 if words in HELP else 2} False", shown.stderr


WITH_TORCH = f"""{START}
try:
    main(train.fit, train.PACKAGES, ["fit", "--model.optimizer=SGDD"])
except SystemExit as e:
    print(e.code, [name in sys.modules for name in ("torch", "wandb", "scipy.signal", "pandas")])
import scipy.signal
print(scipy.signal.windows.hamming(3)[1])
"""


def test_what_starts_no_run_does_not_wait_for_wandb_scipy_or_pandas():
    shown = subprocess.run([sys.executable, "-c", WITH_TORCH], capture_output=True, text=True)
    assert shown.stdout == "2 [True, False, False, False]\n1.0\n"


@pytest.mark.parametrize("columns", ["100", "72"])
@pytest.mark.parametrize("words", HELP[1:], ids=" ".join)
def test_help_of_a_command_is_the_full_parsers(known, capsys, monkeypatch, words, columns):
    monkeypatch.setenv("COLUMNS", columns)
    shown = []
    for command in (full, main):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command(words)
        assert not stop.value.code
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert len(shown[0].splitlines()) > 50
    assert entry.kept("help")[entry.at_width(words[0])] == shown[0].strip("\n").splitlines()


@pytest.mark.parametrize("words", MISTAKES[1:], ids=" ".join)
def test_it_says_what_the_full_parser_says(known, capsys, words):
    said = []
    for command in (main, full):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command(words)
        assert stop.value.code == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[0].startswith("error: ")


def mistakes(*words: str) -> list[str]:
    return entry.mistakes(read_words(list(words)), COMMANDS)


def test_what_may_be_right_is_left_to_the_full_parser(known):
    kept = entry.kept("options")
    assert kept.keys() == entry.RUN_COMMANDS.keys()
    for command, options in kept.items():
        assert len(options) > 50
        for option in [
            *{*options} - {"config"},
            "help",
            "model.help",
            "model.lr",
            "data.rot",
            "print_config",
        ]:
            assert not mistakes(command, f"--{option}=1"), option
    for word in ("--trainer.callbacks+=X", "--trainer.callbacks.foo=1", "--model.init_args.lr=1"):
        assert not mistakes(word)
    assert not mistakes()
    assert not mistakes("test")


def test_a_list_of_other_code_is_not_believed(known):
    kept = json.loads(known.read_text())
    assert entry.kept("options") == kept["options"]
    kept["of"]["lightning"] = "2.5.0"
    known.write_text(json.dumps(kept))
    assert entry.kept("options") == {}
    known.write_text("{")
    assert entry.kept("options") == {}
    entry.keep("options", "fit", ["a"])
    entry.keep("options", "test", ["b"])
    assert entry.kept("options") == {"fit": ["a"], "test": ["b"]}
