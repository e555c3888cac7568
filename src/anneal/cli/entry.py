"""The way in: what needs no torch is answered at once, all else goes on to `anneal.cli.main`.

To import torch, torchvision and Lightning takes seconds. The overall help, a command that does not
exist and a file that is missing need none of them. For an option that does not exist, and for the
help of one command, a command line that got further has left what there is to say.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from itertools import pairwise, takewhile
from pathlib import Path
from shutil import get_terminal_size
from textwrap import shorten
from typing import Any

from anneal.cli.mistakes import NO_OPTION, no_command, no_file, stands_beside, typed_key
from anneal.errors import nearest
from anneal.system import cache_folder, key_of

PROG = "python train.py"
OPTIONS = "[--config FILE ...] [--key=value ...]"
COMMANDS = {
    "fit": "Train (without a command, this one), then test the last weights and sum up.",
    "validate": "Evaluate a checkpoint on the validation data.",
    "test": "Evaluate a checkpoint on the test data, with pictures of its mistakes.",
    "predict": "Write what a checkpoint predicts, for test data or your own files, to a CSV file.",
    "export": "Write a checkpoint's classifier to a file of ONNX or torch.export, and check it.",
    "schedule": "Show the learning rate of every step before a run, without its data.",
    "lr_find": "Raise the learning rate step by step, and suggest the one to start with.",
}
EXAMPLES = """\
examples:
  %(prog)s                                      train by configs/mnist.yaml
  %(prog)s --config=configs/mnist_adam.yaml     by another recipe; of several, the later win
  %(prog)s --trainer.max_epochs=3               override: the key is the path in the recipe
  %(prog)s --model.optimizer=SGD --model.optimizer.lr=0.1    choose a class by its name
  %(prog)s --model.help=MNISTConvNet            what a class can be given
  %(prog)s --print_config                       the whole configuration, nothing run
  %(prog)s fit --help                           all options of a command
"""
SOURCE = Path(__file__).parent
CONFIGS = SOURCE.parents[2] / "configs"
DEFAULT_CONFIG = CONFIGS / "mnist.yaml"
HELP = ("-h", "--help")
LIBRARIES = ("jsonargparse", "lightning", "torch", "wandb")  # whose releases change the options


def main(packages: Iterable[str], args: list[str] | None = None) -> None:
    """Runs one command.

    Args:
        packages: Where classes are looked up by their short names, beside the engine's.
        args: Words of the command line; None: those the program was started with.

    Raises:
        SystemExit: With status 2 after a mistake; what `anneal.cli.main.main` raises.
    """
    words = sys.argv[1:] if args is None else args
    if words and words[0] in HELP:
        print(overview())
        sys.exit(0)
    if asks_for_help(words) and (text := known_help(words[0])):
        print(text)
        sys.exit(0)
    if line := mistake(words):
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    from anneal.cli.imports import cli

    cli.main(packages, words)


def overview() -> str:
    """The help of the whole: commands, recipes, examples."""
    recipes = [f"  {path.stem:26} {about(path)}" for path in sorted(CONFIGS.glob("*.yaml"))]
    listed = "\n".join(["recipes (--config=configs/NAME.yaml):", *recipes]).replace("%", "%%")
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"%(prog)s [COMMAND] {OPTIONS}",
        description="Train, test and use networks with any optimizer and any schedule.",
        epilog=f"{listed}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)
    return parser.format_help()


def about(recipe: Path) -> str:
    """How the comment in front of a recipe begins."""
    lines = takewhile(lambda line: line.startswith("# "), recipe.read_text().splitlines())
    sentence = re.split(r"[:.](?: |$)", " ".join(line[2:] for line in lines))[0]
    return shorten(sentence, 70, placeholder=" ...")


def mistake(words: list[str]) -> str:
    """What is wrong with a command line as far as can be told so far, or an empty string."""
    command = words[0] if words and not words[0].startswith("-") else "fit"
    if command not in COMMANDS:
        return no_command(command, COMMANDS)
    options = known_options().get(command, [])
    for word, follows in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name in ("-c", "--config"):
            file = Path(value if equals else follows)
            if file.is_dir() or (file.suffix in (".yaml", ".yml") and not file.is_file()):
                return f"--config: {no_file(file)}"
        if name.startswith("--") and (near := unknown(typed_key(name), options)):
            return f"--{typed_key(name)}: {NO_OPTION}; did you mean --{near}?"
    return ""


def unknown(key: str, options: Iterable[str]) -> str:
    """The option that was meant by one that does not exist; "" if none, or if it may exist."""
    names = set(options)
    parts = key.split(".")
    if not names or stands_beside(key):
        return ""
    for i in range(len(parts), 0, -1):
        if (start := ".".join(parts[:i])) in names:
            # A class or a dictionary, the parser of which knows what may follow.
            is_group = any(name.startswith(f"{start}.") for name in names)
            return nearest(key, names) if is_group and i < len(parts) else ""
    return nearest(key, names)


# ---- what a command line has found out, kept for the next one


def known_options() -> Mapping[str, list[str]]:
    """The options of each command that was typed since the code has changed."""
    return _kept()["options"]


def known_help(command: str) -> str:
    """A command's own help, if it was asked for in a terminal of this width; else ""."""
    return "\n".join(_kept()["help"].get(_at_width(command), []))


def keep_options(command: str, options: list[str]) -> None:
    """Keeps those of a command, where that is possible and not done yet."""
    _keep("options", command, options)


def keep_help(words: list[str], text: str) -> None:
    """Keeps what a command's own help says, if `words` ask for that."""
    if asks_for_help(words):
        _keep("help", _at_width(words[0]), text.splitlines())


def asks_for_help(words: list[str]) -> bool:
    """Whether all that is asked for is a command's own help, over the default recipe."""
    if not words or words[0] not in COMMANDS or words[-1] not in HELP:
        return False
    return words[1:-1] in ([], [f"--config={DEFAULT_CONFIG}"])


def _at_width(command: str) -> str:
    return f"{command} {get_terminal_size().columns}"


def _kept() -> dict[str, dict[str, list[str]]]:
    """Options by command, and the lines of a command's help by its name and width."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(_file().read_text())
        if kept["of"] == _state():
            return {"options": kept["options"], "help": kept["help"]}
    return {"options": {}, "help": {}}


def _keep(kind: str, name: str, lines: list[str]) -> None:
    kept = _kept()
    if kept[kind].get(name) == lines:
        return
    kept[kind][name] = lines
    file = _file()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps({"of": _state(), **kept}))
        unfinished.replace(file)


def _file() -> Path:
    return cache_folder() / f"options-{key_of(SOURCE)}.json"


@cache
def _state() -> dict[str, Any]:
    """What all that follows from: the code, the default recipe, the releases of the libraries."""
    files = [DEFAULT_CONFIG, *SOURCE.rglob("*.py")]
    newest = max(path.stat().st_mtime_ns for path in files if path.exists())
    return {"code": newest, **{name: version(name) for name in LIBRARIES}}
