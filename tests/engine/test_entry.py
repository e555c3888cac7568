"""What is answered before torch is imported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anneal.cli import entry
from anneal.testing import main as full

RECIPES = [path.stem for path in entry.CONFIGS.glob("*.yaml")]
WITHOUT_TORCH = """
import sys
from anneal.cli.entry import main
try:
    main(sys.argv[1:])
except SystemExit as e:
    print(e.code, "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> Path:
    """The file in which command lines leave the options."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for command in entry.COMMANDS:
            with pytest.raises(SystemExit):
                full([command, "--help"])
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
        entry.main(["--help"])
    assert not stop.value.code
    lines = capsys.readouterr().out.splitlines()
    assert set(entry.COMMANDS) <= {line.split()[0] for line in lines if line.startswith("    ")}
    listed = [line for line in lines if line[:2] == "  " and line[2:].split(" ")[0] in RECIPES]
    assert len(listed) == len(RECIPES)
    assert all(len(line) <= 100 and len(line.split()) > 1 for line in listed)
    assert any(line.startswith("  python train.py --trainer.max_epochs=3  ") for line in lines)


MISTAKES = [
    ["fitt"],
    ["--config=configs/mnits.yaml"],
    ["fit", "-c", "cache"],
    ["--trainer.max_epoch=3"],
    ["test", "--chekpoint.monitor=val/loss"],
]


HELP = [["--help"], ["fit", "--help"], ["lr_find", "-h"]]


@pytest.mark.parametrize("words", [*HELP, *MISTAKES], ids=" ".join)
def test_torch_is_not_imported_for_it(known, words):
    shown = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True
    )
    assert shown.stdout.splitlines()[-1] == f"{0 if words in HELP else 2} False"


WITH_TORCH = """
import sys
from anneal.cli.entry import main
try:
    main(["fit", "--model.optimizer=SGDD"])
except SystemExit as e:
    print(e.code, [name in sys.modules for name in ("torch", "wandb", "scipy.signal")])
import scipy.signal
print(scipy.signal.windows.hamming(3)[1])
"""


def test_what_starts_no_run_does_not_wait_for_wandb_or_scipy():
    shown = subprocess.run([sys.executable, "-c", WITH_TORCH], capture_output=True, text=True)
    assert shown.stdout == "2 [True, False, False]\n1.0\n"


@pytest.mark.parametrize("columns", ["100", "72"])
@pytest.mark.parametrize("words", HELP[1:], ids=" ".join)
def test_help_of_a_command_is_the_full_parsers(known, capsys, monkeypatch, words, columns):
    monkeypatch.setenv("COLUMNS", columns)
    shown = []
    for command in (full, entry.main):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command(words)
        assert not stop.value.code
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert entry.known_help(words[0]) == shown[0].strip("\n")
    assert len(shown[0].splitlines()) > 50


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_it_says_what_the_full_parser_says(known, capsys, words):
    said = []
    for command in (entry.main, full):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command(words)
        assert stop.value.code == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[0].startswith("error: ")


def test_what_may_be_right_is_left_to_the_full_parser(known):
    assert entry.known_options().keys() == entry.COMMANDS.keys()
    for command, options in entry.known_options().items():
        assert len(options) > 50
        for option in [*options, "help", "model.help", "model.lr", "data.rot", "print_shtab"]:
            assert not entry.mistake([command, f"--{option}=1"]), option
    for word in ("--trainer.callbacks+=X", "--trainer.callbacks.foo=1", "--model.init_args.lr=1"):
        assert not entry.mistake([word])
    assert not entry.mistake(["--config={a: 1}", "fit"])
    assert not entry.mistake([])
    assert not entry.mistake(["test"])


def test_a_list_of_other_code_is_not_believed(known):
    kept = json.loads(known.read_text())
    assert entry.known_options() == kept["options"]
    kept["of"]["lightning"] = "2.5.0"
    known.write_text(json.dumps(kept))
    assert entry.known_options() == {}
    known.write_text("{")
    assert entry.known_options() == {}
    entry.keep_options("fit", ["a"])
    entry.keep_options("test", ["b"])
    assert entry.known_options() == {"fit": ["a"], "test": ["b"]}
