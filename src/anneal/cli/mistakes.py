"""What is wrong with a command line, in words for people: from jsonargparse's messages to mistakes.

`explain` turns a message into a `Mistake`: a key, what is wrong with it, the nearest right key.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin

from anneal.errors import did_you_mean

if TYPE_CHECKING:
    from anneal.cli.parser import Parser

MARK = "\N{INVISIBLE SEPARATOR}"  # around a Mistake on its way out through jsonargparse's texts
NO_OPTION = "no such option"
NO_VALUE = "needs a value"
NO_KEYS = "expected keys under it, got "
YAML_BOOLEANS = " (YAML takes off, no, on and yes for booleans: put quotes around it)"


class Mistake(NamedTuple):
    """What is wrong with one key, and the nearest right key if there is one."""

    key: str
    text: str
    nearest: str = ""


# ---- names


def no_command(word: str, commands: Iterable[str]) -> str:
    """What is wrong with a word that stands where a command may."""
    near = did_you_mean(word, commands)
    return f"'{word}' is neither a command ({', '.join(commands)}) nor an option{near}"


def no_file(file: Path) -> str:
    """What is wrong with a path that should lead to a configuration file."""
    folders = (Path("configs"), file.parent)
    known = {path.name: from_here(path) for f in folders for path in f.glob("[!.]*.yaml")}
    near = get_close_matches(file.name, known, n=1, cutoff=0.8)
    hint = f"; did you mean {known[near[0]]}?" if near else ""
    what = "a directory, no file" if file.is_dir() else "no such file"
    return f"{what}: {from_here(file)}{hint}"


def stands_beside(key: str) -> bool:
    """Whether a key is that of an option about others: their help, or a shell's completion."""
    return key == "print_shtab" or key.rpartition(".")[2] == "help"


def typed_key(key: str) -> str:
    """A key as a person types it: that of model.init_args.lr is model.lr."""
    parts = key.lstrip("-").partition("=")[0].rstrip("+").split(".")
    return ".".join(p for p in parts if p not in ("class_path", "init_args", "dict_kwargs"))


def tree_keys(tree: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a YAML tree, as a person types them."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        name = typed_key(f"{prefix}.{key}".strip("."))
        yield name
        for node in value if isinstance(value, list) else [value]:
            yield from tree_keys(node, name)


def from_here(path: Path) -> str:
    """A path as seen from the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# ---- types


def members(hint: Any) -> list[Any]:
    """The types in a union, without None; of another type, itself."""
    if get_origin(hint) in (Union, UnionType):
        return [member for arg in get_args(hint) for member in members(arg)]
    return [] if hint in (None, NoneType) else [hint]


def base_classes(hint: Any) -> list[type]:
    """The classes whose subclasses a type takes by name: of list[Callback], Callback."""
    if not get_origin(hint):
        return [hint] if isinstance(hint, type) and hint.__module__ != "builtins" else []
    args = get_args(hint)
    args = args[-1:] if get_origin(hint) is Callable else args  # what it returns: an optimizer
    return [base for arg in args for base in base_classes(arg)]


def subclasses(base: type) -> Iterator[type]:
    """All public subclasses there are by now, of any depth."""
    cls: type
    for cls in base.__subclasses__():
        yield from [cls] if cls.__name__[0] != "_" else []
        yield from subclasses(cls)


def in_words(hint: Any) -> str:
    """A type in words: 'an int or a list', 'epoch or step'."""
    words: list[str] = []
    for member in members(hint):
        if member is bool or get_origin(member) is Literal:
            words += map(str, get_args(member) or ("true", "false"))
        else:
            name = getattr(get_origin(member) or member, "__name__", str(member))
            if get_origin(member) is list:
                name += f" of {getattr(get_args(member)[0], '__name__', 'values')}"
            words += [f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"]
    *head, last = dict.fromkeys(words)
    return f"{', '.join(head)} or {last}" if head else last


# ---- from jsonargparse's messages to mistakes


def gist(message: str) -> str:
    """The lines that say something, of a message that no other function has words for."""
    message = re.sub(r'Parser key ".*?":', "", message)
    noise = r"(Subtypes:.*|Errors:|Given value type.*|.*NoneType.*)$"
    lines = [line.strip(" -") for line in message.splitlines()]
    kept = [line for line in lines if line and not re.match(noise + "|Does not validate", line)]
    return "; ".join(kept)[:300] or message.strip()[:300]


def wrong_value(key: str, message: str, hint: Any) -> Mistake:
    """What is wrong with a value that its type refused."""
    found = re.findall(r"(?:Given|Got) value: (.*)", message)
    value = found[-1] if found else ""
    if nested := re.match(r"NestedArg\(key='(.*?)', val='?(.*?)'?\)", value):
        if nested[1] != "class_path":
            return Mistake(f"{key}.{nested[1]}", NO_OPTION)
        value = nested[2]
    kinds, bases = members(hint), base_classes(hint)
    if bases and value.endswith((".yaml", ".yml")):
        return Mistake(key, f"no such file: {value}")
    if bases and not {int, float, str, tuple}.intersection(get_origin(k) or k for k in kinds):
        return wrong_class(key, message, value, bases)
    if not found or not kinds:
        return Mistake(key, gist(message))
    plain = re.fullmatch(r"True|False|None|[-+.\d]+|[\[{(].*|\w+\(.*", value)
    choices = [str(v) for kind in kinds if get_origin(kind) is Literal for v in get_args(kind)]
    quotes = YAML_BOOLEANS if value in ("True", "False") and (choices or str in kinds) else ""
    near = did_you_mean(value, choices)
    shown = value if plain else f"'{value}'"
    return Mistake(key, f"expected {in_words(hint)}, got {shown}{quotes}{near}")


def wrong_class(key: str, message: str, value: str, bases: list[type]) -> Mistake:
    """What is wrong with a value that should name a class."""
    if found := re.search(r"Dict must include a class_path.*, but got (.*?})\. Got", message):
        return Mistake(key, f"needs a class_path, got {found[1]}")
    if found := re.search(r"'init_args': (None|\[.*?\])", value):
        return Mistake(f"{key}.init_args", f"{NO_KEYS}{found[1]}")
    for pattern in (
        r"dot import path string: ([\w.]+)",
        r"Import path ([\w.]+) does not",
        r"Expected '([\w.]+)' to be",
        r"class_path'?[=:] ?'([\w.]+)",
    ):
        if found := re.search(pattern, message):
            value = found[1]
            break
    kind = " or ".join(dict.fromkeys(base.__name__ for base in bases))
    if not re.fullmatch(r"[A-Za-z_][\w.]*", value):
        return Mistake(key, f"expected the name of a class ({kind}), got {value or 'nothing'}")
    names = {cls.__name__ for base in bases for cls in subclasses(base)}
    near = did_you_mean(value.rpartition(".")[2], names)
    if reason := re.search(r"No module named '.*?'|module '.*?' has no attribute '.*?'", message):
        return Mistake(key, f"can't import {value}: {reason[0]}{near}")
    if value in names or "Multiple subclasses" in message:  # the name is right, but
        return Mistake(key, gist(message))
    path = "" if "." in value else " (or give an import path such as my_package.MyClass)"
    return Mistake(key, f"'{value}' is no {kind}{near}{path}")


def wrong_file(message: str) -> str:
    """What is wrong with a configuration file as a whole."""
    if message.startswith("Unexpected config"):
        empty = not message.partition(":")[2].strip()
        return "is empty" if empty else "has no settings, such as 'seed_everything: 0'"
    places = re.findall(r"line \d+, column \d+", message)
    problem = [line.strip() for line in message.splitlines() if ' in "' not in line][-1]
    problem = problem.removeprefix("Problems parsing config: ")
    return f"is no YAML: {', '.join([*places[-1:], problem])}"


def explain(message: str, parser: "Parser") -> Mistake:
    """What jsonargparse says to a parser, as a mistake in one of that parser's keys."""
    outer = re.match(r'Parser key "([^"]+)"', message)
    if MARK in message:  # a parser further in has explained it
        inner = Mistake(*message.replace("\xa0", " ").split(MARK)[1:4])
        here = f"{outer[1]}." if outer else ""
        return Mistake(
            (here + inner.key).strip("."), inner.text, inner.nearest and here + inner.nearest
        )
    if found := re.search(
        r"(?:(?:Group|Subcommand) '(.+?)' does not accept option|Option) '([^']+)'(?! is req)",
        message,
    ):
        return parser.no_such_option(".".join(filter(None, found.groups())))
    if found := re.match(r"[Uu]nrecognized arguments: (\S+)", message):
        return parser.unrecognized(found[1])
    if found := re.search(
        r"(?:are required: |Option ')([^\s',]+)(?:' is required|(?:, (.*))?$)", message
    ):
        others = f", and so are {found[2]}" if found[2] else ""
        by = f" by {parser.made_for}" if parser.made_for else ""
        return Mistake(found[1], f"is required{by}{others}")
    if found := re.match(r"argument .*?: invalid choice: '(.*?)'", message):
        return parser.unrecognized(found[1])
    if found := re.match(r"argument (?:\S+/)?-*(\S+): (.*)", message):
        return Mistake(found[1], NO_VALUE if found[2] == "expected one argument" else found[2])
    if outer and outer[1] == "config" and (found := re.search(r"'([^']+)'$", message)):
        return Mistake("config", no_file(Path(found[1])))
    found = re.search(r"Unable to load config ['\"](.*?)['\"]", message)
    if outer and found and not Path(found[1]).is_file():
        if re.fullmatch(r"\w+", found[1]):  # a class's name, where keys are wanted
            return Mistake(outer[1], f"{NO_KEYS}'{found[1]}'", parser.first_under(outer[1]))
        return Mistake(outer[1], f"no such file: {found[1]}")
    if found := re.match(r"-*(\S+)\.help: .* string: ", message):
        bases = base_classes(parser.type_of(found[1]))
        return wrong_class(f"{found[1]}.help", message, "", bases)
    if outer:
        return wrong_value(outer[1], message, parser.type_of(outer[1]))
    return Mistake("", gist(message))
