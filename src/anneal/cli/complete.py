"""What goes without saying on a command line: the command, and the configuration to start from."""

import argparse
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import yaml

from anneal.cli.entry import COMMANDS, DEFAULT_CONFIG
from anneal.errors import UserError
from anneal.runs import folder as runs
from anneal.runs.exported import is_exported, read


def complete(args: list[str]) -> list[str]:
    """Adds what goes without saying: `fit`, and the configuration to start from.

    That is the one stored in the checkpoint (or exported file) if there is a --ckpt_path, so that
    everything typed is laid over it, that of the run if a schedule is to look at a run's metric,
    and the default recipe if there is no --config either.
    """
    if not args or args[0].startswith("-"):
        args = ["fit", *args]
    if args[0] not in COMMANDS:
        return args
    typed = typed_options(args)
    if typed.resume and typed.run_name and not typed.ckpt_path:
        last = typed.root / typed.run_name / "checkpoints" / runs.LAST
        if last.is_file():
            args = [*args, f"--ckpt_path={last}"]
            typed.ckpt_path = str(last)
    if typed.ckpt_path:
        path = runs.find_checkpoint(typed.root, typed.ckpt_path, typed.run)
        stored = read(path).about if is_exported(path) else runs.read_checkpoint(path)
        if config := stored.get("config"):
            return [args[0], f"--config={config}", *args[1:]]
    if typed.metric_from and not typed.config:
        with suppress(UserError):  # a file, no run
            config = runs.find_run(typed.root, typed.metric_from) / "config.yaml"
            return [args[0], f"--config={config}", *args[1:]]
    if not typed.config:
        return [args[0], f"--config={DEFAULT_CONFIG}", *args[1:]]
    return args


def typed_options(args: list[str]) -> argparse.Namespace:
    """The few options that decide which configuration the others are laid over."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-c", action="append", type=Path)
    parser.add_argument("--ckpt_path")
    parser.add_argument("--run")
    parser.add_argument("--run_name")
    parser.add_argument("--resume")
    parser.add_argument("--metric_from")
    parser.add_argument("--trainer.default_root_dir", dest="root", type=Path)
    typed = parser.parse_known_args(args)[0]
    typed.root = typed.root or _root_in(typed.config or []) or Path("runs")
    return typed


def recipe(args: list[str]) -> str:
    """The name of the recipe that a command line uses, or an empty string."""
    files = typed_options(args).config or []
    named = [p for p in files if p.suffix in (".yaml", ".yml", ".json")]
    return runs.recipe_of(named[-1]) if named else ""


def compared(args: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Name and command line of each configuration that `--compare` names.

    Its files stand in for those of --config; its overrides come after all others.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-c", action="append", default=[])
    parser.add_argument("--compare", action="append", default=[])
    typed, (command, *others) = parser.parse_known_args(args)
    for text in typed.compare:
        words = shlex.split(text)
        files = [word for word in words if not word.startswith("-")]
        options = [word for word in words if word.startswith("-")]
        configs = [f"--config={file}" for file in files or typed.config]
        words = [command, *configs, *others, *options]
        yield " ".join([recipe(words), *options]), words


def _root_in(files: list[Path]) -> Path | None:
    """The folder of runs that the last of some configuration files names."""
    for file in reversed(files):
        with suppress(OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            return Path(yaml.safe_load(file.read_text())["trainer"]["default_root_dir"])
    return None  # what is wrong with a file, the parser says
