"""Classes that replace others: what the new one starts from, and the line on what that drops."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any, ClassVar

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from anneal.cli.mistakes import typed_key


class ReplacingParser(LightningArgumentParser):
    """LightningCLI's parser, but a class that replaces another starts from its own defaults.

    That is for a class inside a model, and a line says what it drops. Where the model itself is
    replaced (or data, or a logger), what both classes take is kept, as jsonargparse does, and the
    line says that too.
    """

    # Here and not in an instance, because the parsers of classes don't know whose they are.
    dropped: ClassVar[dict[tuple[str, str], dict[str, Any]]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.typed: list[str] = []
        self.stages: list[Namespace] = []  # what was parsed after each configuration file

    @property
    def is_inner(self) -> bool:
        """Whether it parses the arguments of a class."""
        return not self.exit_on_error

    def parse_args(  # type: ignore[override]
        self, args: list[str], namespace: Any = None, **kwargs: Any
    ) -> Any:
        """Parses a command line, or one option of a class."""
        parse: Callable[..., Namespace] = partial(super().parse_args, args, **kwargs)
        if not (self.is_inner and namespace and len(args) == 1):
            return parse(namespace)
        value = args[0].partition("=")[2]
        spec = re.search(r"class_path\W+([\w.]+)", value)
        given = Namespace()
        given[typed_key(args[0])] = spec[1] if spec else value
        return self.start_fresh(given, namespace, parse)

    def parse_object(self, obj: Any, namespace: Any = None, **kwargs: Any) -> Namespace:
        """Parses a configuration that is no text, or a class's arguments in a file."""
        namespace = kwargs.pop("cfg_base", namespace)  # as older releases call it
        parse = partial(super().parse_object, obj, **kwargs)
        return (
            self.start_fresh(obj, namespace, parse)
            if self.is_inner and namespace
            else parse(namespace)
        )

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
