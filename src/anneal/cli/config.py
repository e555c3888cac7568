"""A run's configuration: files and flags merged in order, each name and value checked.

A source is a file or a flag, as a tree of nested dictionaries. Later sources win. Names are looked
up in signatures (`schema`); of a value jsonargparse says whether it fits its type; the messages are
made here, from value and type. All mistakes are collected, a line each.
"""

import itertools
from collections.abc import Iterator
from inspect import isclass
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args

from anneal.cli import schema as signatures
from anneal.cli import values
from anneal.cli.files import Tree, read_file, typed_key
from anneal.cli.schema import Parameter, Schema, arguments, default_of, fields_of, resolve
from anneal.cli.words import BESIDE, no_option
from anneal.errors import UserError, nearest
from anneal.runs.config import FORMAT, check_format, flatten, with_current_names

NO_OPTION = "no such option"
NO_KEYS = "expected keys under it, got "
LONGEST = 2000  # characters of an error


class Scope(NamedTuple):
    """Where names are looked up: the whole configuration, or a class's arguments."""

    owner: str  # the class, or ""
    prefix: str
    schema: Schema


class Help(Exception):
    """A class whose help is asked for, with the type that takes it and its key."""


class Config:
    """A configuration that is being put together from the options of a schema."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.tree: Tree = {}
        self.errors: list[str] = []
        # Key, change, what it kept and dropped, and when.
        self.notes: list[tuple[str, str, list[str], Tree, int]] = []
        self._file = ""  # the source at hand; "": a flag
        self._keys: set[str] = set()  # of all files
        self._chosen: dict[str, str] = {}  # the source in which a class was named, by its key
        self._set: dict[str, int] = {}  # when a key was set last
        self._clock = itertools.count()

    # ---- sources

    def add_file(self, path: Path) -> None:
        """Override what there is by a file."""
        try:
            self.add_tree(read_file(path), str(path))
        except UserError as e:
            self.errors.append(str(e))

    def add_tree(self, tree: Tree, label: str) -> None:
        """Override what there is by a tree; the label says in messages where it is from."""
        check_format(tree.pop("format", FORMAT), label)
        tree = with_current_names(tree)
        self._file = label
        self._keys |= {typed_key(key) for key, _ in flatten(tree)}
        self._merge(self.tree, tree, self._whole)
        self._file = ""

    def add_flag(self, key: str, text: str | None) -> None:
        """Override what there is by --key=text; None: no value was typed."""
        before = len(self.errors)
        value: Any = values.Text(text or "")
        for part in reversed(key.split(".")):
            value = {part: value}
        self._merge(self.tree, value, self._whole)
        if text is None and not any(NO_OPTION in e for e in self.errors[before:]):
            of = self.schema.get(key)
            named = " or ".join(values.choices(of.hint)) if isinstance(of, Parameter) else ""
            self.errors[before:] = [f"--{key} needs a value{named and f': {named}'}"]

    def finish(self) -> Tree:
        """Return the tree when all is in it; raise UserError with all mistakes, a line each."""
        if not self.errors:
            self._complete(self.tree, self._whole, "")
        if self.errors:
            lines = [e if len(e) <= LONGEST else f"{e[:LONGEST]}…" for e in self.errors]
            raise UserError("\nerror: ".join(dict.fromkeys(lines)))
        return self.tree

    def notes_in_words(self) -> Iterator[str]:
        """Return a line for each class that replaced another, but for what was set anew."""
        for key, change, kept, dropped, when in self.notes:
            kept = [k for k in kept if self._set.get(f"{key}.{k}", -1) < when]
            gone = {k: v for k, v in dropped.items() if self._set.get(f"{key}.{k}", -1) < when}
            said = [k if isinstance(v, dict) else f"{k}={v}" for k, v in gone.items()]
            parts = [f"keeps {', '.join(kept)}"] if kept else []
            parts += [f"drops {', '.join(said)}"] if said else []
            if parts:
                yield f"note: {key}: {change} {' and '.join(parts)}"

    @property
    def _whole(self) -> Scope:
        return Scope("", "", self.schema)

    # ---- merging

    def _error(self, key: str, text: str, colon: str = ":") -> None:
        place = f"{self._file}: {key}" if self._file else f"--{key}"
        self.errors.append(f"{place}{colon} {text}")

    def _merge(
        self, into: Tree, given: Tree, scope: Scope, schema: Schema | None = None, prefix: str = ""
    ) -> None:
        """Override `into` by what is given for the names of a schema, by default the scope's."""
        schema, prefix = schema or scope.schema, prefix or scope.prefix
        for name, value in given.items():
            if not isinstance(name, str):
                self.errors.append(f"{self._file}: Key must be a string, got: {name}.")
                continue
            plain = name.rstrip("+")
            if (of := schema.get(plain)) is None:
                self._unknown(name, value, scope, prefix)
                continue
            try:
                self._put(into, name, value, of, scope, prefix + plain)
                self._set[prefix + plain] = next(self._clock)
            except UserError as e:
                self._error(prefix + plain, str(e))

    def _unknown(self, name: str, value: Any, scope: Scope, prefix: str) -> None:
        """Say that there is no such name, and which one was meant."""
        if name == "class_path":
            return self._error(prefix[:-1], "takes no class")
        while isinstance(value, dict) and len(value) == 1:
            inner, value = next(iter(value.items()))
            name = f"{name}.{inner}"
        key = typed_key(prefix + name)
        names, others = set(signatures.option_names(scope.schema)), self._keys - {key}
        near = nearest(key.removeprefix(scope.prefix), names)
        near = scope.prefix + near if near else nearest(key, () if scope.owner else others)
        if scope.owner or self._file:
            few = sorted(names) if not near and 0 < len(names) < 16 else []
            of = f" of {scope.owner}" if scope.owner else ""
            meant = f"; did you mean {'' if self._file else '--'}{near}?" if near else ""
            there = f"; there are {', '.join(few)}" if few else ""
            self._error(key, f"no such {'key' if self._file else 'option'}{of}{meant}{there}")
        else:
            self._error(key, no_option(key, names | others | BESIDE))

    def _put(self, into: Tree, name: str, value: Any, of: Any, scope: Scope, key: str) -> None:
        """Set one name: a group, a class with its arguments, or a value."""
        plain = name.rstrip("+")
        fields = fields_of(of)
        if isinstance(value, values.Text) and (fields or signatures.takes_class(of.hint)):
            value = values.tree_of(value)
        if fields:
            optional = isinstance(of, Parameter) and type(None) in get_args(of.hint)
            if value is None and optional:
                into[plain] = None
            elif not isinstance(value, dict):
                near = f"{key}.{next(iter(fields))}" if isinstance(value, str) else ""
                meant = f"; did you mean {'' if self._file else '--'}{near}?" if near else ""
                raise UserError(f"{NO_KEYS}{values.shown(value)}{meant}")
            else:
                into[plain] = into.get(plain) or {}
                self._merge(into[plain], value, scope, fields, f"{key}.")
        elif signatures.takes_class(of.hint) or (isinstance(value, dict) and "class_path" in value):
            self._put_class(into, name, value, of, key)
        elif isinstance(value, dict) and not values.takes_dict(of.hint):
            if self._file:
                raise UserError(values.wrong_value(value, of.hint))
            self._unknown(plain, value, Scope("", "", {}), key.removesuffix(plain))
        elif isinstance(value, dict):
            new = {k: values.untyped(v) for k, v in value.items()}
            into[plain] = {**(into.get(plain) or {}), **new}
        else:
            into[plain] = values.option(name, value, of, into.get(plain))

    def _put_class(self, into: Tree, name: str, value: Any, of: Parameter, key: str) -> None:
        """Set a class by name with its arguments, several of them, or none."""
        adds, name = name.endswith("+"), name.rstrip("+")
        old = into.get(name)
        olds = values.standing(old, of)
        if value is None and type(None) in get_args(of.hint):
            into[name] = None
        elif isinstance(value, bool) and bool in signatures.members(of.hint):
            into[name] = value
        elif isinstance(value, list) and signatures.takes_list(of.hint):
            into[name] = [*(olds if adds else []), *(self._spec(None, v, of, key) for v in value)]
        elif signatures.takes_list(of.hint) and not (
            adds or olds or any(map(isclass, signatures.members(of.hint)))
        ):
            raise UserError(f"expected a list, got {values.shown(value)}")
        elif adds:
            new = self._spec(None, value, of, key)
            match = new.get("init_args", {}).get("match")  # of a rule, typed again in a resume
            olds = [old for old in olds if not match or old["init_args"].get("match") != match]
            into[name] = [*olds, new]
        elif isinstance(old, list):
            one = not old or isinstance(value, str) or "class_path" in (value or {})
            spec = self._spec(None if one else old[-1], value, of, key)
            into[name] = spec if one else [*old[:-1], spec]
        else:
            into[name] = self._spec(old if isinstance(old, dict) else None, value, of, key)

    def _spec(self, old: Tree | None, value: Any, of: Parameter, key: str) -> Tree:
        """Return a class with its arguments; another class than before starts afresh."""
        given = value if isinstance(value, dict) else {"class_path": value}
        is_default = isinstance(of.default, type) and old is None
        before = of.default if is_default else signatures.only_class(of.hint)
        before = resolve(old["class_path"], of.hint) if old else before
        cls = resolve(given["class_path"], of.hint) if "class_path" in given else before
        args = given.get("init_args", {})
        if not isinstance(args, dict):
            self._error(f"{key}.init_args", f"{NO_KEYS}{values.shown(args)}")
            args = {}
        beside = {k: v for k, v in given.items() if k not in ("class_path", "init_args", KWARGS)}
        if "help" in beside and not self._file:
            try:
                found = resolve(beside["help"], of.hint) if beside["help"] else cls
            except UserError as e:
                self._error(f"{key}.help", str(e))
                return old or {}
            raise Help(found, of.hint, key)
        if beside and self._file and "class_path" in given:
            raise UserError("arguments stand under init_args, not beside class_path")
        if cls is None:
            raise UserError(f"needs a class_path, got {given}")
        schema = arguments(cls, of.hint)
        kept = dict((old or {}).get("init_args", {}))
        if old and before is not cls:
            kept = self._replace(kept, before, cls, of, key, {**args, **beside})
        self._merge(kept, {**args, **beside}, Scope(cls.__name__, f"{key}.", schema))
        if "class_path" in given:
            self._chosen[key] = self._file
        more = {KWARGS: given[KWARGS]} if KWARGS in given else {}
        return {"class_path": signatures.path_of(cls), "init_args": kept, **more}

    def _replace(
        self, args: Tree, before: Any, cls: Any, of: Parameter, key: str, given: Tree
    ) -> Tree:
        """Return what a class starts from that replaces another, and note what that drops.

        A model, data or a logger keeps what both take; a class inside them keeps nothing.
        """
        takes, took = arguments(cls, of.hint), arguments(before, of.hint)
        keeps = "." not in key or key == "trainer.logger"
        both = [k for k in args if keeps and k in takes]
        kept = {k: args[k] for k in both if values.fits(args[k], takes[k].hint)}
        said = {k: v for k, v in args.items() if k not in given and v != default_of(took.get(k))}
        change = f"{before.__name__} -> {cls.__name__}"
        dropped = {k: v for k, v in said.items() if k not in kept}
        keeps_too = [k for k in said if k in kept]
        self.notes.append((key, change, keeps_too, dropped, next(self._clock)))
        return kept

    # ---- what is missing

    def _complete(self, tree: Tree, scope: Scope, prefix: str) -> None:
        for name, of in scope.schema.items():
            value = tree.get(name)
            if isinstance(of, dict):
                self._complete(value or {}, Scope(scope.owner, scope.prefix, of), f"{name}.")
            elif of.default is signatures.REQUIRED and name not in tree:
                self._file = self._chosen.get(prefix[:-1], "")
                by = f"is required by {scope.owner}" if scope.owner else "is required"
                self._error(prefix + name, by, colon="")
            elif isinstance(value, dict) and (fields := fields_of(of)):
                self._complete(value, Scope("", "", fields), f"{prefix}{name}.")
            else:
                specs = value if isinstance(value, list) else [value]
                for spec in (s for s in specs if isinstance(s, dict) and "class_path" in s):
                    cls = resolve(spec["class_path"], of.hint)
                    inner = Scope(cls.__name__, "", arguments(cls, of.hint))
                    if isinstance(of.default, type):  # whose arguments jsonargparse would keep
                        own = {k: of.default for k, of in inner.schema.items()}
                        own = {k: v for k, v in own.items() if isinstance(v, PLAIN)}
                        spec["init_args"] = {**own, **spec["init_args"]}
                    self._complete(spec["init_args"], inner, f"{prefix}{name}.")


KWARGS = "dict_kwargs"
PLAIN = (bool, int, float, str, list, NoneType)  # what a configuration can hold
