"""The way in: what needs no torch is answered at once, all else goes on to `anneal.cli.main`.

To import torch, torchvision and Lightning takes seconds. The overall help, a command that does not
exist and a file that is missing need none of them. For an option that does not exist, and for the
help of one command, a command line that got further has left what there is to say.
"""

import argparse
import gc
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from shutil import get_terminal_size
from textwrap import shorten
from traceback import format_exception_only
from types import ModuleType
from typing import Any

from anneal.cli.words import HELP, OPTIONS, PROG, Words, no_command, no_option, read_words
from anneal.errors import SHOWN, show
from anneal.system import atomic_write, cache_folder, is_first, key_of

RESULT: dict[str, Any] = {}  # what is known of the command's run
RUN_COMMANDS = {
    "fit": "Train (without a command, this one), then test the last weights and sum up.",
    "validate": "Evaluate a checkpoint on the validation data.",
    "test": "Evaluate a checkpoint on the test data, with figures of its mistakes.",
    "predict": "Write what a checkpoint predicts, for test data or your own files, to a CSV file.",
    "export": "Write a checkpoint's network to a file of ONNX or torch.export, and check it.",
    "schedule": "Show the learning rate of every step before a run, without its data.",
    "lr_find": "Raise the learning rate step by step, and suggest the one to start with.",
    "show-batch": "Draw the first training batches with their targets, as the network gets them.",
    "replay": "Repeat the step that a run failed in: at which layer, tensor and sample.",
}
TOOLS = {  # what works on files and finished runs: module and function, and what it does
    "report": ("anneal.report.page:main", "Compare finished runs, as a page and as figures."),
    "card": ("anneal.report.card:main", "Write a model card for a finished run."),
    "sweep": ("anneal.sweep.main:main", "Run a W&B sweep file on this machine."),
    "compare": ("anneal.sweep.compare:main", "Train with several seeds: is one recipe better?"),
    "cooldown": ("anneal.sweep.cooldown:main", "End a WSD run early, at several lengths."),
    "check": ("anneal.vision.check:main", "Look for what is wrong with a folder of photos."),
    "shards": ("anneal.vision.shards:main", "Write a folder of photos as shards for streaming."),
}
EXAMPLES = """\
examples:
  %(prog)s                                      train by configs/mnist.yaml
  %(prog)s --config=configs/mnist_adam.yaml     by another recipe; of several, the later win
  %(prog)s --trainer.max_epochs=3               override: the key is the path in the recipe
  %(prog)s --model.optimizer=SGD --model.optimizer.lr=0.1    choose a class by its name
  %(prog)s --model.help=MNISTConvNet            what a class can be given
  %(prog)s --print_config                       the whole configuration, nothing run
  %(prog)s --json                               what it has come to, as one line for scripts
  %(prog)s fit --help                           all options of a command
"""
SOURCE = Path(__file__).parents[1]
CONFIGS = SOURCE.parents[1] / "configs"
DEFAULT_CONFIG = CONFIGS / "mnist.yaml"
LIBRARIES = ("jsonargparse", "lightning", "torch", "wandb")  # whose releases change the options


def main(fit: Callable[[Any], None], packages: Sequence[str], args: list[str] | None = None) -> Any:
    """Run one command of a project.

    Args:
        fit: Trains; it is given the `anneal.Run`.
        packages: Where classes are looked up by their short names, beside the engine's. What such a
            package has in a dictionary `COMMANDS` are commands, too: by name "module:function",
            which takes the words behind, and what it does in a line.
        args: Words of the command line; None: those the program was started with.

    Returns:
        The `Run`, of a command that is about one.

    Raises:
        SystemExit: With status 2 after a mistake, 0 after help, the status of a tool.
    """
    words = list(sys.argv[1:] if args is None else args)
    if "--json" in words:
        words.remove("--json")
        command = words[0] if words and words[0][0] != "-" else "fit"
        return in_one_line(command, partial(main, fit, packages, words))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")  # for names that are no UTF-8
    tools = TOOLS | {k: v for p in packages for k, v in _commands_of(p).items()}
    known = [*RUN_COMMANDS, *tools]
    if words and words[0] in HELP:
        print(overview(tools))
        sys.exit(0)
    if words and words[0] in tools:
        module, _, function = tools[words[0]][0].partition(":")
        sys.exit(getattr(import_module(module), function)(words[1:]))
    typed = read_words(words)
    asks = typed.flags == [("help", None)] and not typed.files
    if asks and (lines := kept("help").get(at_width(typed.command))):
        print("\n".join(lines))
        sys.exit(0)
    if lines := mistakes(typed, known):
        show("\n".join(f"error: {line}" for line in lines))
        sys.exit(2)
    return import_main().run_command(fit, typed, packages, DEFAULT_CONFIG, known)


def in_one_line(command: str, main: Callable[[], Any]) -> Any:
    """Run a command; on stdout stands nothing but the line, and on stderr what it prints."""
    RESULT.clear()
    SHOWN.clear()
    sys.stdout.flush()
    stdout, status = os.dup(1), 1
    os.dup2(2, 1)  # for the processes that it starts, too
    try:
        with redirect_stdout(sys.stderr):
            found = main()
        status = 0
        return found
    except SystemExit as e:
        status = int(e.code or 0)
        raise
    except Exception as e:
        SHOWN.append("".join(format_exception_only(e)).rstrip())
        raise
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        if is_first():
            error = "\n".join(SHOWN) or None
            line = json.dumps({"command": command, "status": status, "error": error, **RESULT})
            # JSON has neither NaN nor infinity.
            print(json.dumps(json.loads(line, parse_constant=str)), flush=True)


def overview(tools: dict[str, tuple[str, str]]) -> str:
    """Return the help of the whole: commands, recipes, examples."""
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
    for name, text in {**RUN_COMMANDS, **{k: v[1] for k, v in tools.items()}}.items():
        commands.add_parser(name, help=text)
    return parser.format_help()


def about(recipe: Path) -> str:
    """Return how the comment in front of a recipe begins."""
    lines = takewhile(lambda line: line.startswith("# "), recipe.read_text().splitlines())
    sentence = re.split(r"[:.](?: |$)", " ".join(line[2:] for line in lines))[0]
    return shorten(sentence, 70, placeholder=" ...")


def mistakes(typed: Words, commands: Iterable[str]) -> list[str]:
    """Return what is wrong with a command line as far as can be told without torch."""
    from anneal.cli.files import no_file

    if typed.command not in commands:
        return [no_command(typed.command, list(commands))]
    options = kept("options").get(typed.command, [])
    files = [Path(text) for text in typed.files if text]
    found = [f"--config: {no_file(file)}" for file in files if not file.is_file()]
    for key, _ in typed.flags:
        if options and not _may_be(key, options):
            found.append(f"--{key}: {no_option(key, options)}")
    return found


def _may_be(key: str, options: Iterable[str]) -> bool:
    """Whether a key may exist: it does, or is of a class or a dictionary, or beside an option."""
    parts = key.rstrip("+").split(".")
    beginnings = {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
    return key == "print_config" or parts[-1] == "help" or not beginnings.isdisjoint(options)


def _commands_of(package: str) -> dict[str, tuple[str, str]]:
    try:
        return getattr(import_module(package), "COMMANDS", {})
    except ModuleNotFoundError as e:
        if not package.startswith(str(e.name)):
            raise
        show(f"error: train.py names the package {package}, and there is no {e.name}")
        sys.exit(2)


def import_main() -> ModuleType:
    """Import what every command needs, in little more than half the time.

    Of a plain import a quarter goes into the search for garbage among hundreds of thousands of
    objects that are there to stay, and a fifth into scipy.signal, which torchmetrics imports only
    to put a name back, for another package, that newer releases lack. Here it finds that name in a
    stand-in.
    """
    gc.disable()
    if "scipy.signal" not in sys.modules:
        stand_in: Any = ModuleType("scipy.signal")
        stand_in.hamming = None
        sys.modules["scipy.signal"] = stand_in
        try:
            import_module("torchmetrics")
        finally:
            del sys.modules["scipy.signal"]
    main = import_module("anneal.cli.main")
    gc.freeze()
    gc.enable()
    return main


# ---- what a command line has found out, kept for the next one


def at_width(command: str) -> str:
    """Return the key of a command's help in a terminal of this width."""
    return f"{command} {get_terminal_size().columns}"


def kept(kind: str) -> dict[str, list[str]]:
    """Return what earlier commands left since the code has changed: `options` or `help`."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        left = json.loads(_file().read_text())
        if left["of"] == _state():
            return dict(left[kind])
    return {}


def keep(kind: str, name: str, lines: list[str]) -> None:
    """Leave something for later commands, where that is possible and not done yet."""
    left = {k: kept(k) for k in ("options", "help")}
    if left[kind].get(name) == lines:
        return
    left[kind][name] = lines
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(_file(), shared=True) as part:
            part.write_text(json.dumps({"of": _state(), **left}))


def _file() -> Path:
    return cache_folder() / f"options-{key_of(SOURCE)}.json"


@cache
def _state() -> dict[str, Any]:
    """What all that follows from: the code, the releases of the libraries."""
    newest = max(path.stat().st_mtime_ns for path in SOURCE.rglob("*.py"))
    return {"code": newest, **{name: version(name) for name in LIBRARIES}}
