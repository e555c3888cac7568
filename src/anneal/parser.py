"""The command line's parser: mistakes are answered in a line, and no option is guessed.

A class given by name (a model, an optimizer) has a parser of its own inside the parser with the
option. Each turns what jsonargparse says into a `Mistake`; the next one out prepends its key; the
outermost adds where the mistake stands, a flag or a file, and exits with status 2.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from anneal import aliases
from anneal.entry import OPTIONS
from anneal.errors import UserError
from anneal.mistakes import (
    MARK,
    NO_KEYS,
    NO_OPTION,
    NO_VALUE,
    Mistake,
    explain,
    nearest,
    no_command,
    shorten,
    tree_keys,
    typed_key,
    wrong_file,
)

# ---- classes that replace others


def specs(tree: Namespace, prefix: str = "") -> Iterator[tuple[str, Namespace]]:
    """The classes chosen in a namespace with their keys; not those inside a class."""
    for name, value in vars(tree).items():
        if isinstance(value, Namespace):
            is_class = "class_path" in value
            yield from [(prefix + name, value)] if is_class else specs(value, f"{prefix}{name}.")


def named_class(tree: Any, key: str) -> str:
    """The class that a configuration names for a key, or "" if it names none."""
    for part in [*key.split("."), "class_path"]:
        tree = tree.get(part) if isinstance(tree, dict | Namespace) else tree
    return tree if isinstance(tree, str) else ""


def load(path: str) -> Any:
    """The class or function at an import path."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def is_class(name: str, path: str) -> bool:
    """Whether a name as typed, short or an import path, is the class at `path`."""
    if name == path or "." not in name:
        return name.rpartition(".")[2] == path.rpartition(".")[2]
    try:
        return load(name) is load(path)
    except (ImportError, AttributeError, ValueError):
        return True  # the parser is going to say what is wrong with it


def changed(old: Namespace, new: Namespace) -> str:
    """A change of class in short."""
    return f"{old.class_path.rpartition('.')[2]} -> {new.class_path.rpartition('.')[2]}"


def note(key: str, change: str, dropped: dict[str, Any], kept: Iterable[str] = ()) -> str:
    """The line about a class that replaced another, or "" if nothing is to say."""
    parts = [f"keeps {', '.join(kept)}"] if kept else []
    values = [k if isinstance(v, Namespace) else f"{k}={v}" for k, v in dropped.items()]
    parts += [f"drops {', '.join(values)}"] if dropped else []
    return f"note: {key}: {change} {' and '.join(parts)}\n" if parts else ""


class Parser(LightningArgumentParser):
    """LightningCLI's parser with errors for people, and no options but whole ones.

    A class that replaces another one inside a model starts from its own defaults, and a line says
    what that drops. Where the model itself is replaced (or data, or a logger), what both classes
    take is kept, as jsonargparse does, and the line says that too.
    """

    # Here and not in an instance, because the parsers of classes don't know whose they are.
    dropped: ClassVar[dict[tuple[str, str], dict[str, Any]]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("usage", f"%(prog)s {OPTIONS}")
        super().__init__(*args, **kwargs)
        self.made_for = ""  # the class whose arguments it parses
        self.typed: list[str] = []
        self.files: dict[str, Path] = {}  # the configuration files, as typed
        self.stages: list[Namespace] = []  # what was parsed after each
        self.reading = ""

    # ---- what it knows

    @property
    def is_inner(self) -> bool:
        """Whether it parses the arguments of a class."""
        return not self.exit_on_error

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
        """Their names, without those that stand beside another one."""
        names = {option[2:] for action in self.actions() for option in action.option_strings}
        return sorted(o for o in names if o and not re.search(r"\+$|(^|\.)help$|^print_shtab", o))

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
        sys.stderr.write(f"error: {shorten(self.describe(message), 2000)}\n")
        self.exit(2)

    # ---- parsing

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parses a configuration file."""
        before, self.root.reading = self.root.reading, str(path)
        self.root.files[str(path)] = Path(path).resolve()
        try:
            if aliases.values(Path(path).read_text()) > aliases.MOST:
                raise UserError(f"{path}: its aliases make more than {aliases.MOST:,} values of it")
            parsed = super().parse_path(path, *args, **kwargs)
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
        parse: Callable[..., Namespace] = partial(super().parse_args, args, **kwargs)
        if self.is_inner and namespace and len(args) == 1:
            value = args[0].partition("=")[2]
            spec = re.search(r"class_path\W+([\w.]+)", value)
            given = Namespace()
            given[typed_key(args[0])] = spec[1] if spec else value
            return self.start_fresh(given, namespace, parse)
        if self.is_inner or self is not self.root:
            return parse(namespace)
        self.typed, self.stages, self.reading = args, [], ""
        self.files.clear()
        self.dropped.clear()
        try:
            parsed = parse(namespace)
        except UnicodeDecodeError as e:  # of a file that stands for a part of a configuration
            self.error(f"a file named here is no text: {e.reason} at byte {e.start}", e)
        self.say_notes(parsed)
        return parsed

    def parse_object(self, obj: Any, namespace: Any = None, **kwargs: Any) -> Namespace:
        """Parses a configuration that is no text, or a class's arguments in a file."""
        namespace = kwargs.pop("cfg_base", namespace)  # as older releases call it
        parse = partial(super().parse_object, obj, **kwargs)
        return (
            self.start_fresh(obj, namespace, parse)
            if self.is_inner and namespace
            else parse(namespace)
        )

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Checks a configuration."""
        for group in self.groups or {}:
            value = namespace.get(group, {})
            no_value = value is None and (self.is_inner or self.type_of(group))
            if not (no_value or isinstance(value, Namespace | dict)):
                raise TypeError(f'Parser key "{group}": {NO_KEYS}{value}')
        super().validate(namespace, *args, **kwargs)

    def start_fresh(
        self, given: Any, before: Namespace, parse: Callable[[Namespace], Namespace]
    ) -> Namespace:
        """Parses what is given over what was before, but a new class over none of the old one's."""
        replaced = {
            key: old
            for key, old in specs(before)
            if (name := named_class(given, key)) and not is_class(name, old.class_path)
        }
        before = before.clone()
        for key, old in replaced.items():
            before[key] = Namespace(class_path=old.class_path)
        parsed = parse(before)
        for key, old in replaced.items():
            new = parsed.get(key)
            if not isinstance(new, Namespace):  # a function: takes no arguments
                continue
            given_args, defaults = new.get("init_args", Namespace()), self.defaults_of(new)
            # Said outright, since what is parsed here gets merged over what was there before.
            stale = [k for k in vars(old.get("init_args", Namespace())) if k in defaults]
            new.init_args = Namespace({k: defaults[k] for k in stale})
            new.init_args.update(given_args)
            values = {k: v for k, v in self.explicit(old).items() if k not in given_args}
            self.dropped[key, changed(old, new)] = values
        return parsed

    def defaults_of(self, spec: Namespace) -> Namespace:
        """The default arguments of a chosen class."""
        cls, parser = load(spec.class_path), type(self)(exit_on_error=False)
        add = parser.add_class_arguments if isinstance(cls, type) else parser.add_function_arguments
        add(cls, fail_untyped=False)
        return parser.get_defaults()

    def explicit(self, spec: Namespace) -> dict[str, Any]:
        """The arguments of a chosen class that differ from its defaults."""
        defaults = self.defaults_of(spec)
        args = vars(spec.get("init_args", Namespace()))
        return {k: v for k, v in args.items() if v != defaults.get(k)}

    @rank_zero_only
    def say_notes(self, parsed: Namespace) -> None:
        """Says what replacing classes dropped or kept, but for what was typed anew."""
        parsed = parsed.get(parsed.get("subcommand") or "") or parsed
        keys = list(parsed.keys(branches=True))
        notes: list[tuple[str, str, dict[str, Any], list[str]]] = []
        for (key, change), values in self.dropped.items():
            key = typed_key(next((k for k in keys if k.endswith(f".init_args.{key}")), key))
            notes.append((key, change, values, []))
        self.dropped.clear()
        for before, after in pairwise([*self.stages, parsed]):
            for key, old in specs(before):
                new = after.get(key)
                if isinstance(new, Namespace) and new.class_path != old.class_path:
                    values, args = self.explicit(old), new.get("init_args", Namespace())
                    gone = {k: v for k, v in values.items() if k not in args}
                    notes.append((key, changed(old, new), gone, [k for k in values if k in args]))
        typed = list(map(typed_key, self.typed))
        for key, change, dropped, kept in notes:
            anew = typed[typed.index(key) + 1 :] if key in typed else typed
            dropped = {k: v for k, v in dropped.items() if f"{key}.{k}" not in anew}
            kept = [k for k in kept if f"{key}.{k}" not in typed]
            sys.stderr.write(note(key, change, dropped, kept))

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
