"""From the words of a command line to a run: configuration, checkpoint and folder."""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from anneal.cli import parser as parsing
from anneal.cli.chosen import complete
from anneal.cli.config import Config, Help
from anneal.cli.entry import keep
from anneal.cli.files import Tree, read_file
from anneal.cli.parser import OPTIONS_OF_A_RUN, CommandParser, as_yaml
from anneal.cli.run import Run
from anneal.cli.schema import option_names
from anneal.cli.trainer import PREVIEW_COMMANDS
from anneal.cli.words import BESIDE, Words, stray
from anneal.commands.replay import read_failure
from anneal.errors import UserError
from anneal.runs import folder as runs
from anneal.runs.config import FORMAT, parse
from anneal.runs.exported import is_exported, read
from anneal.runs.lock import claim, hold


class Project(NamedTuple):
    """What a project hands to the command line."""

    commands: dict[str, Callable[..., Any]]  # on a run; their other arguments are options
    packages: Sequence[str]  # whose classes are stored by their short names
    default: Path  # the recipe to start from if nothing else is named
    known: Sequence[str] = ()  # all commands that there are


class Start(NamedTuple):
    """What a run starts from: a configuration, a checkpoint with what is in it, and whose it is."""

    config: str = ""  # overridden by all else; "": the files of --config
    source: Path | None = None  # of it
    checkpoint: Path | None = None  # or an exported file
    stored: Tree = {}  # noqa: RUF012
    own: Path | None = None  # the run that the checkpoint is of
    resumed: Path | None = None  # the run that resumes

    @property
    def resumed_from(self) -> Tree | None:
        """What the run that resumes has saved, empty if nothing yet; None: a new run."""
        if self.resumed is None:
            return None
        return self.stored if self.own == self.resumed else {}


def prepare(words: Words, project: Project) -> Run | str:
    """Return the run of a command line, or what it asks for: help, or the configuration."""
    function = project.commands[words.command]
    command = CommandParser(words.command, function, words.command not in PREVIEW_COMMANDS)
    config = Config(command.schema())
    names = sorted({*option_names(config.schema), *BESIDE})
    keep("options", words.command, names)
    if "" in words.files:
        raise UserError("--config is empty")
    files = list(map(Path, words.files))
    start = start_from(words, files or [project.default])
    if start.config:
        tree = parse(start.config, str(start.source))
        _drop_typed(tree.get("trainer") or {}, words.flags)
        config.add_tree(tree, str(start.source))
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
        return parsing.class_help(*e.args)
    try:
        complete(config.tree)
    except UserError as e:
        config.errors.append(str(e))
    tree = config.finish()
    parser = command.build()
    whole = parsing.converted(parser, tree)
    for note in config.notes_in_words():
        rank_zero_only(print)(note, file=sys.stderr)
    plain = parsing.dumped(parser, whole, project.packages, config.schema, tree)
    if "print_config" in flags:
        return as_yaml(plain)
    _check(whole)
    about_this = {*OPTIONS_OF_A_RUN, *command.own}
    kept = {key: value for key, value in plain.items() if key not in about_this}
    named = [p for p in map(Path, words.files) if p.suffix in (".yaml", ".yml", ".json")]
    recipe = runs.recipe_of(named[-1]) if named else ""
    run = Run(words.command, whole, parser, as_yaml({"format": FORMAT, **kept}), recipe)
    run.own = {key: whole[key] for key in command.own}
    run.arguments = tree["model"].get("init_args", {})
    run.project = "".join(project.packages[:1]).partition(".")[0] or run.project
    if words.command not in PREVIEW_COMMANDS:
        _find_folder(run, start)
    return run


def start_from(words: Words, files: Sequence[Path]) -> Start:
    """Return what a run starts from.

    1. --resume=auto --run_name=NAME: the last checkpoint of that run, if it is there; before its
       first one the configuration of that run.
    2. --ckpt_path: that checkpoint or exported file, with the configuration stored in it.
    3. What a run has left of a step that failed.
    4. Else the files of --config, or the default recipe.
    """
    if words.command == "replay" and (failed := words.last("file")):
        failure = read_failure(Path(failed))
        return Start(failure["config"], Path(failed))
    said = partial(_said, words, files)
    root = Path(said("trainer.default_root_dir") or "runs")
    if (name := said("run_name")) is not None:
        runs.check_name(name)
    folder = root / name if name else None
    trains = words.command == "fit" and not {"help", "print_config"} & dict(words.flags).keys()
    path = own = resumed = None
    if folder and said("resume") and folder.is_dir():
        if trains:
            hold(folder)  # before anything is read that a training may change
        resumed, path = folder, runs.last_of(folder)
        own = folder if path else None
    if not path and (ckpt_path := said("ckpt_path")):
        path, run = runs.find_checkpoint(root, ckpt_path, said("run")), said("run")
        own = runs.find_run(root, run) if ckpt_path in ("best", "last") else runs.run_of(path)
        if own and not folder and path.name == runs.LAST:
            resumed = own
            if trains:
                hold(own)
    of, source, stored = resumed or own, path, Tree()
    if path:
        stored = read(path).about if is_exported(path) else runs.read_checkpoint(path)
    text = stored.get("config", "") if resumed in (None, own) else ""
    if of and not text and (configs := runs.configs_of(of)):
        source = configs[-1]
        text = source.read_text()
    return Start(text, source, path, stored, own, resumed)


def _said(words: Words, files: Sequence[Path], key: str) -> str | None:
    """Return what flags say of an option, or else the last file that does; None: nothing, null."""
    if (text := words.last(key)) is not None:
        return None if text == "null" else text
    for file in reversed(files):
        with suppress(UserError, TypeError, KeyError):  # what is wrong with a file is said later
            value: Any = read_file(file)
            for part in key.split("."):
                value = value[part]
            return None if value is None else str(value)
    return None


def _drop_typed(trainer: Tree, flags: Iterable[tuple[str, str | None]]) -> None:
    """Drop what flags such as --trainer.callbacks+=EMA add once more, as in a repeated command."""
    names = {(key, str(text).rpartition(".")[2]) for key, text in flags}
    for key in ("callbacks", "logger"):
        if isinstance(held := trainer.get(key), list):
            kind = [str(spec["class_path"]).rpartition(".")[2] for spec in held]
            again = [(f"trainer.{key}+", name) in names for name in kind]
            trainer[key] = [spec for spec, typed in zip(held, again, strict=True) if not typed]


def _check(config: Any) -> None:
    """Raise UserError if options of the run do not go together."""
    if not 0 <= config.seed_everything < 2**32:
        raise UserError(f"--seed_everything={config.seed_everything}: must be 0 to 4294967295")
    if config.resume and not config.run_name:
        raise UserError("--resume=auto needs the --run_name to start or to resume")
    if config.run and not config.get("ckpt_path"):
        raise UserError("--run says whose checkpoint --ckpt_path=best or last means: give both")


def _find_folder(run: Run, start: Start) -> None:
    """Give a run its checkpoint and its folder."""
    command, config, path = run.command, run.config, start.checkpoint
    fits, root = command == "fit", Path(config.trainer.default_root_dir)
    if path:
        run.ckpt_path, config.ckpt_path = path, str(path)
        if not is_exported(path):
            run.checkpoint = start.stored
            runs.check_lightning_checkpoint(run.checkpoint, path, fits)
        elif command != "predict":
            raise UserError(f"{command} needs a checkpoint; {path} is for predict")
    elif not fits:
        which = "--ckpt_path=best, last or a file (and --run=NAME for another run than the newest)"
        raise UserError(f"{command} needs trained weights: {which}")
    if folder := start.resumed if fits else start.own:
        run.folder, run.resumed_from = folder, start.resumed_from if fits else None
    else:
        of = runs.recipe_of(start.own / "config.yaml") if start.own else "run"
        run.folder = runs.new_folder(root, config.run_name, run.recipe or of)
    if config.trainer.fast_dev_run:
        return
    runs.check_writable(run.folder if run.folder.is_dir() else root)
    if fits and config.checkpoint.dirpath and config.trainer.enable_checkpointing is not False:
        claim(Path(config.checkpoint.dirpath), run.folder, run.resumed_from is not None)
