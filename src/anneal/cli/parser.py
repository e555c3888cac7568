"""The command line's parser: mistakes are answered in a line, and no option is guessed.

A class given by name (a model, an optimizer) has a parser of its own inside the parser with the
option. Each turns what jsonargparse says into a `Mistake`; the next one out prepends its key; the
outermost adds where the mistake stands, a flag or a file, and exits with status 2.
"""

import argparse
import re
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace

from anneal.cli import aliases
from anneal.cli.entry import OPTIONS, keep_help
from anneal.cli.mistakes import (
    MARK,
    NO_KEYS,
    NO_OPTION,
    NO_VALUE,
    Mistake,
    explain,
    no_command,
    stands_beside,
    tree_keys,
    typed_key,
    wrong_file,
)
from anneal.cli.replaced import ReplacingParser
from anneal.errors import UserError, nearest

LONGEST = 2000  # characters of an error


class Parser(ReplacingParser):
    """LightningCLI's parser with errors for people, and no options but whole ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("usage", f"%(prog)s {OPTIONS}")
        super().__init__(*args, **kwargs)
        self.made_for = ""  # the class whose arguments it parses
        self.files: dict[str, Path] = {}  # the configuration files, as typed
        self.reading = ""

    # ---- what it knows

    @property
    def root(self) -> "Parser":
        """The parser that was given the command line."""
        return getattr(self, "parent_parser", self)

    def commands(self) -> dict[str, "Parser"]:
        """The subcommands there are."""
        actions = self.root._actions
        return next((a.choices for a in actions if isinstance(a, argparse._SubParsersAction)), {})

    def actions(self) -> list[argparse.Action]:
        """All options, those of the subcommands too."""
        parsers = [self, *(self.commands().values() if self is self.root else [])]
        return [action for parser in parsers for action in parser._actions]

    def options(self) -> list[str]:
        """Their names, but for those that stand beside another one."""
        names = {option[2:].rstrip("+") for a in self.actions() for option in a.option_strings}
        return sorted(name for name in names if name and not stands_beside(name))

    def type_of(self, key: str) -> Any:
        """The type of an option."""
        return next((getattr(a, "_typehint", None) for a in self.actions() if a.dest == key), None)

    def first_under(self, key: str) -> str:
        """The first option under a key, or ""."""
        under = (a.dest for a in self.actions() if a.dest.startswith(f"{key}."))
        return next((dest for dest in under if not dest.endswith(".help")), "")

    def own_key(self, key: str) -> str:
        """A key without the subcommand in front."""
        command, _, rest = key.partition(".")
        return rest if rest and command in self.commands() else key

    def file_keys(self, file: str) -> set[str]:
        """The keys that stand in one of the configuration files."""
        try:
            tree = yaml.safe_load(self.root.files[file].read_text())
        except (OSError, ValueError, yaml.YAMLError):
            return set()
        return {self.own_key(key) for key in tree_keys(tree)}

    def where(self, key: str) -> str:
        """The file in which a key stands; "" if it was typed, or nowhere."""
        if self.root.reading:
            return self.root.reading
        typed = set(map(typed_key, self.root.typed))
        while key and key not in typed:
            for file in reversed(self.root.files):
                if key in self.file_keys(file):
                    return file
            key = key.rpartition(".")[0]
        return ""

    # ---- mistakes

    def no_such_option(self, key: str) -> Mistake:
        """The mistake of a key that does not exist."""
        key = self.own_key(key)
        if key == "class_path":
            return Mistake("", "arguments stand under init_args, not beside class_path")
        options = set(self.options())
        if key in options:
            return Mistake(key, "options stand after the command")
        in_files = {k for file in self.root.files for k in self.file_keys(file)} - {key}
        near = nearest(key, options) or nearest(key, in_files - {typed_key(key)})
        few = f"; there are {', '.join(sorted(options))}" if 0 < len(options) < 16 else ""
        of = f" of {self.made_for}" if self.made_for else ""
        return Mistake(key, NO_OPTION + of + ("" if near else few), near)

    def unrecognized(self, word: str) -> Mistake:
        """The mistake of a word on the command line that nothing takes."""
        name = word.lstrip("-").partition("=")[0]
        commands = list(self.commands())
        if word.startswith("--") and name:
            return self.no_such_option(name)
        if name in commands:
            return Mistake("", f"'{name}' is a command, and a command stands first")
        if "=" in word or "." in name or word.startswith("-"):
            near = self.no_such_option(name)
            meant = name if near.text.startswith("options") else near.nearest
            hint = f"; did you mean --{meant}?" if meant else ""
            return Mistake("", f"'{word}': options begin with two dashes{hint}")
        return Mistake("", no_command(word, commands) if commands else f"'{word}' is not an option")

    def describe(self, message: str) -> str:
        """The line for a message: where, which key, what is wrong, and the nearest right one."""
        if re.match("Unexpected config|Problems parsing config", message):
            return f"{self.root.reading or '--config'} {wrong_file(message)}"
        key, text, near = explain(message, self)
        key = self.own_key(key)
        if text == NO_VALUE:  # argparse names --model for --model.lr
            words = [w for w, follows in pairwise([*self.root.typed, "--"]) if follows[:2] == "--"]
            inside = [w[2:] for w in words if w.startswith(f"--{key}.") and "=" not in w]
            key = inside[0] if inside else key
        is_missing = text.startswith("is required")
        place = key.rpartition(".")[0] if is_missing else key  # where its class was chosen
        file = self.where(place) if key != "config" else ""
        if file and text.startswith(NO_OPTION):
            text = text.replace("option", "key", 1)
        dashes = "" if file or not key else "--"
        colon = "" if text.startswith(("is ", "needs ")) else ":"
        label = f"{dashes}{key}{colon}" if key else ""
        meant = f"; did you mean {dashes}{near}?" if near else ""
        return " ".join(filter(None, [file and f"{file}:", label, text + meant]))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Says what is wrong and exits with status 2; a class's parser tells the one around it."""
        if self.is_inner:
            marked = MARK.join(("", *explain(message, self), ""))
            super().error(marked.replace(" ", "\xa0"), ex)  # texts are cut between spaces
        self.dropped.clear()
        line = self.describe(message)
        sys.stderr.write(f"error: {line if len(line) <= LONGEST else f'{line[:LONGEST]}…'}\n")
        self.exit(2)

    # ---- help

    def print_help(self, file: Any = None) -> None:
        """Prints it; a command's own is kept for the next time."""
        super().print_help(file)
        if self in self.commands().values():
            keep_help(self.root.typed, self.format_help())

    # ---- parsing

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parses a configuration file."""
        before, self.root.reading = self.root.reading, str(path)
        self.root.files[str(path)] = Path(path).resolve()
        try:
            if aliases.values(Path(path).read_text()) > aliases.MOST:
                raise UserError(f"{path}: its aliases make more than {aliases.MOST:,} values of it")
            parsed: Namespace = super().parse_path(path, *args, **kwargs)
        except UnicodeDecodeError as e:
            self.error(f"Problems parsing config: {e.reason} at byte {e.start}", e)
        self.root.reading = before
        self.root.stages.append(parsed)
        return parsed

    def parse_args(  # type: ignore[override]
        self, args: Any = None, namespace: Any = None, **kwargs: Any
    ) -> Any:
        """Parses a command line, or one option of a class."""
        args = list(sys.argv[1:] if args is None else args)
        if self.is_inner:  # jsonargparse hands null on as the text None
            args = [re.sub("=None$", "=null", arg) for arg in args]
        parse = partial(super().parse_args, args, namespace, **kwargs)
        if self.is_inner or self is not self.root:
            return parse()
        self.typed, self.stages, self.reading = args, [], ""
        self.files.clear()
        self.dropped.clear()
        try:
            parsed = parse()
        except UnicodeDecodeError as e:  # of a file that stands for a part of a configuration
            self.error(f"a file named here is no text: {e.reason} at byte {e.start}", e)
        self.say_notes(parsed)
        return parsed

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Checks a configuration."""
        for group in self.groups or {}:
            value = namespace.get(group, {})
            no_value = value is None and (self.is_inner or self.type_of(group))
            if not (no_value or isinstance(value, Namespace | dict)):
                raise TypeError(f'Parser key "{group}": {NO_KEYS}{value}')
        super().validate(namespace, *args, **kwargs)

    # ---- building

    def add_lightning_class_args(
        self,
        lightning_class: Any,
        nested_key: str,
        subclass_mode: bool = False,
        required: bool = True,
    ) -> list[str]:
        """Adds the model, the data, the trainer or a callback, with a title for --help."""
        added = super().add_lightning_class_args(
            lightning_class, nested_key, subclass_mode, required
        )
        if subclass_mode and (group := (self.groups or {}).get(nested_key)):
            group.title = f"{nested_key}, a class chosen by name"
        return added

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> Any:
        """Adds the options of a class; without a key, the parser is for that class alone."""
        if not args and not kwargs.get("nested_key"):
            self.made_for = theclass.__name__
        return super().add_class_arguments(theclass, *args, **kwargs)

    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        """Adds subcommands; none is required."""
        return super().add_subcommands(*args, **{"prog": self.prog, "required": False, **kwargs})
