"""From the words of a command line to a run: configuration, checkpoint and folder."""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from anneal.cli.config import Config, Help
from anneal.cli.entry import keep
from anneal.cli.files import Tree, parse, read_file
from anneal.cli.parser import (
    CHECKPOINT_OPTIONS,
    OPTIONS_OF_A_RUN,
    CommandParser,
    as_yaml,
    class_help,
    converted,
    dumped,
)
from anneal.cli.run import Run
from anneal.cli.schema import option_names
from anneal.cli.trainer import PREVIEW_COMMANDS
from anneal.cli.words import BESIDE, Words, file_of, stray
from anneal.commands.replay import read_failure
from anneal.errors import UserError
from anneal.runs import folder as runs
from anneal.runs.config import FORMAT
from anneal.runs.exported import is_exported, read


class Project(NamedTuple):
    """What a project hands to the command line.

    Attributes:
        commands: On a run, by name; the arguments of one, but for the run, are its options.
        packages: Whose classes are stored by their short names.
        default: The recipe to start from if nothing else is named.
        known: All commands that there are.
    """

    commands: dict[str, Callable[..., Any]]
    packages: Sequence[str]
    default: Path
    known: Sequence[str] = ()


def prepare(words: Words, project: Project) -> Run | str:
    """Return the run of a command line, or the text that it asks for: help, or the configuration.

    Raises:
        UserError: With all that is wrong, a line each.
    """
    function = project.commands[words.command]
    command = CommandParser(words.command, function, words.command not in PREVIEW_COMMANDS)
    config = Config(command.schema())
    names = sorted({*option_names(config.schema), *BESIDE})
    keep("options", words.command, names)
    files = [file_of(text) for text in words.files]
    root = Path(words.last("trainer.default_root_dir") or _root_in(files) or "runs")
    path, stored = start_from(words, root, bool(files))
    if text := stored.get("config"):
        config.add_tree(parse(text, str(path)), str(path))
    elif not files:
        words, files = words._replace(files=[str(project.default)]), [project.default]
    for file in files:
        config.add_file(file)
    config.errors += [stray(word, names, project.known) for word in words.others]
    flags = dict(words.flags)
    if "help" in flags:
        return command.build().format_help()
    try:
        for key, text in words.flags:
            if key != "print_config":
                config.add_flag(key, text)
    except Help as e:
        return class_help(*e.args)
    tree = config.finish()
    parser = command.build()
    whole = converted(parser, tree)
    _say(config.notes_in_words())
    plain = dumped(parser, whole, project.packages)
    if "print_config" in flags:
        return as_yaml(plain)
    _check(whole)
    about_one_command = {*OPTIONS_OF_A_RUN, *CHECKPOINT_OPTIONS, *command.own}
    kept = {key: value for key, value in plain.items() if key not in about_one_command}
    run = Run(words.command, whole, parser, as_yaml({"format": FORMAT, **kept}), recipe(words))
    run.own = {key: whole[key] for key in command.own}
    run.arguments = tree["model"].get("init_args", {})
    run.project = "".join(project.packages[:1]).partition(".")[0] or run.project
    if words.command not in PREVIEW_COMMANDS:
        _find_folder(run, path, stored)
    return run


def start_from(words: Words, root: Path, has_files: bool) -> tuple[Path | None, Tree]:
    """Return the checkpoint to start from and what is in it: all else overrides its `config`.

    1. --resume=auto --run_name=NAME: the last checkpoint of that run, if it is there.
    2. --ckpt_path: that checkpoint or exported file, with the configuration stored in it.
    3. --metric_from without --config: the configuration of that run.
    4. What a run has left of a step that failed.
    5. Else the files of --config, or the default recipe.
    """
    if words.command == "replay" and (file := words.last("file")):
        return Path(file), read_failure(Path(file))
    ckpt_path, name = words.last("ckpt_path"), words.last("run_name")
    if words.last("resume") and name and not ckpt_path:
        last = root / name / "checkpoints" / runs.LAST
        ckpt_path = str(last) if last.is_file() else None
    if ckpt_path and ckpt_path != "null":
        path = runs.find_checkpoint(root, ckpt_path, words.last("run"))
        stored = read(path).about if is_exported(path) else runs.read_checkpoint(path)
        return path, stored
    if (metric_from := words.last("metric_from")) and not has_files:
        with suppress(UserError):  # a file, no run
            path = runs.find_run(root, metric_from) / "config.yaml"
            return path, {"config": path.read_text()}
    return None, {}


def recipe(words: Words) -> str:
    """Return the name of the recipe that a command line names, or an empty string."""
    named = [p for p in map(Path, words.files) if p.suffix in (".yaml", ".yml", ".json")]
    return runs.recipe_of(named[-1]) if named else ""


def _root_in(files: list[Path]) -> str | None:
    """Return the folder of runs that the last of some configuration files names."""
    for file in reversed(files):
        with suppress(UserError, TypeError, KeyError):  # what is wrong with a file is said later
            tree: Tree = read_file(file)
            return str(tree["trainer"]["default_root_dir"])
    return None


@rank_zero_only
def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _check(config: Any) -> None:
    """Raise UserError if options of the run do not go together."""
    if not 0 <= config.seed_everything < 2**32:
        raise UserError(f"--seed_everything={config.seed_everything}: must be 0 to 4294967295")
    if config.resume and not config.run_name:
        raise UserError("--resume=auto needs the --run_name to start or to resume")
    if config.run and not config.get("ckpt_path"):
        raise UserError("--run says whose checkpoint --ckpt_path=best or last means: give both")


def _find_folder(run: Run, path: Path | None, stored: Tree) -> None:
    """Give a run its checkpoint and its folder."""
    command, config = run.command, run.config
    fits, root = command == "fit", Path(config.trainer.default_root_dir)
    if path:
        run.ckpt_path, config.ckpt_path = path, str(path)
        if not is_exported(path):
            run.checkpoint = stored
            runs.check_lightning_checkpoint(run.checkpoint, path, fits)
        elif command != "predict":
            raise UserError(f"{command} needs a checkpoint; {path} is for predict")
    elif not fits:
        raise UserError(
            f"{command} needs trained weights: --ckpt_path=best, last or a file"
            " (and --run=NAME for another run than the newest)"
        )
    run.folder, run.resumes = runs.choose_folder(
        root, path, config.run_name, run.recipe, fits, bool(config.resume)
    )
    if not config.trainer.fast_dev_run:
        runs.check_writable(root)
