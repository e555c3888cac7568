"""What a configuration may hold: names, types and defaults from signatures, and classes by name."""

import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from anneal.errors import UserError, did_you_mean, first_line

# Whose arguments have ranges by their names.
LIBRARIES = ("torch", "torchvision", "lightning", "anneal")
REQUIRED = inspect.Parameter.empty
PLAIN = (int, float, str, tuple)  # a type that has one of these beside a class takes plain values
STANDARD = sys.stdlib_module_names  # whose classes are values: paths, dates, decimals
# Packages whose classes have short names too; torch's of the same name come first.
PACKAGES = {"Optimizer": ("prodigyopt", "schedulefree", "lion_pytorch", "pytorch_optimizer")}
IMPORT_PATH = " (or give an import path such as my_package.MyClass)"


class Parameter(NamedTuple):
    """An argument of a class or function."""

    hint: Any
    default: Any = REQUIRED
    has_range: bool = False  # its name says which numbers make sense


Schema = dict[str, Any]  # names to a Parameter, or to another Schema: a group of options


# ---- types


def members(hint: Any) -> list[Any]:
    """Return the types in a union, without None; of another type, itself."""
    if get_origin(hint) in (Union, UnionType):
        return [member for arg in get_args(hint) for member in members(arg)]
    return [] if hint in (None, NoneType) else [hint]


def base_classes(hint: Any) -> list[type]:
    """Return the classes whose subclasses a type takes by name: of list[Callback], Callback."""
    if not get_origin(hint):
        is_class = isinstance(hint, type) and hint.__module__ not in ("builtins", "torch")
        return [hint] if is_class and not issubclass(hint, Enum) else []
    args = get_args(hint) if get_origin(hint) is not type else ()  # a class is no object of it
    args = args[-1:] if get_origin(hint) is Callable else args  # what it returns: an optimizer
    return [base for arg in args for base in base_classes(arg)]


def takes_class(hint: Any) -> bool:
    """Whether a type takes a class by name and no plain value but None, true and false."""
    bases = [b for b in base_classes(hint) if b.__module__.partition(".")[0] not in STANDARD]
    return bool(bases) and not {get_origin(k) or k for k in members(hint)}.intersection(PLAIN)


def takes_list(hint: Any) -> bool:
    """Whether a type takes several values."""
    kinds = {get_origin(k) or k for k in members(hint)}
    return any(isinstance(k, type) and issubclass(k, Iterable) and k is not str for k in kinds)


def group_of(hint: Any) -> type | None:
    """Return the dataclass whose fields stand under a key, if the type is one."""
    return next((k for k in members(hint) if isinstance(k, type) and is_dataclass(k)), None)


def in_words(hint: Any) -> str:
    """Return a type in words: 'an int or a list', 'epoch or step'."""
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


# ---- signatures


@cache
def parameters(cls: Any, given: int = 0) -> dict[str, Parameter]:
    """Return the arguments that a class or function takes, through **kwargs up to its bases.

    The first ones are `given` by whoever calls it: an optimizer's parameters.
    """
    found: dict[str, Parameter] = {}
    is_base = False
    for base in cls.__mro__ if isinstance(cls, type) else [cls]:
        init = vars(base).get("__init__") if isinstance(base, type) else base
        if init is None or init is object.__init__:
            continue
        signature = list(inspect.signature(init).parameters.values())
        hints, library = _hints(init), init.__module__.partition(".")[0] in LIBRARIES
        for p in signature[1:] if isinstance(base, type) else signature:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                default = list(p.default) if isinstance(p.default, tuple) else p.default
                if is_base and default is REQUIRED:  # which the class may give it by itself
                    default = None
                found.setdefault(p.name, Parameter(hints.get(p.name, Any), default, library))
        is_base = True
        if not any(p.kind == p.VAR_KEYWORD for p in signature):
            break
    return dict(list(found.items())[given:])


def _hints(function: Any) -> dict[str, Any]:
    with suppress(NameError, TypeError):  # a name that exists for type checkers only
        return typing.get_type_hints(function)
    return {}


def arguments(cls: Any, hint: Any) -> dict[str, Parameter]:
    """Return what a class can be given where the type is `hint`."""
    calls = [k for k in members(hint) if get_origin(k) is Callable]
    return parameters(cls, len(get_args(calls[0])[0]) if calls else 0)


def option_names(schema: Schema, prefix: str = "") -> Iterator[str]:
    """Return the names of all options, with those of groups and dataclasses."""
    for name, of in schema.items():
        inner = fields_of(of)
        yield from option_names(inner, f"{prefix}{name}.") if inner else ()
        if not isinstance(of, dict):
            yield prefix + name


def fields_of(of: Any) -> Schema | None:
    """Return what stands under a name of a schema: a group's options, a dataclass's fields."""
    if isinstance(of, dict):
        return of
    return parameters(cls) if (cls := group_of(of.hint)) else None


# ---- classes by name


def subclasses(base: type) -> Iterator[type]:
    """Return all public subclasses there are by now, of any depth."""
    cls: type
    for cls in base.__subclasses__():
        yield from [cls] if cls.__name__[0] != "_" else []
        yield from subclasses(cls)


def short_names(hint: Any) -> dict[str, list[type]]:
    """Return the classes that a type takes, by short name; the bases too that can be made."""
    found: dict[str, list[type]] = {}
    for base in dict.fromkeys(base_classes(hint)):
        own = [] if inspect.isabstract(base) else [base]
        for cls in dict.fromkeys([*own, *subclasses(base)]):
            found.setdefault(cls.__name__, []).append(cls)
    return found


def only_class(hint: Any) -> type | None:
    """Return the class of a list that takes one class only, which needs no name: a rule."""
    classes = [c for found in short_names(hint).values() for c in found]
    return classes[0] if len(classes) == 1 and takes_list(hint) else None


def resolve(name: Any, hint: Any) -> Any:
    """Return the class of a name or path; raise UserError if `hint` takes none of that name."""
    bases = list(dict.fromkeys(base_classes(hint)))
    kind = " or ".join(base.__name__ for base in bases)
    if not isinstance(name, str) or not name.replace(".", "_").isidentifier():
        shown = f"{name}" if name not in ("", None) else "nothing"
        raise UserError(f"expected the name of a class ({kind}), got {shown}")
    names = short_names(hint)
    module, _, last = name.rpartition(".")
    if not module:
        whole = next((n for n in names if n.lower() == f"{name}{kind}".lower()), "")  # mlflow
        classes = names.get(name) or names.get(whole) or list(_of_packages(name, bases))
        classes = [c for c in classes if not any(issubclass(d, c) for d in classes if d is not c)]
        classes = [c for c in classes if _rank(c) == min(map(_rank, classes))]
        if len(classes) == 1:
            return classes[0]
        if classes:
            paths = ", ".join(f"{c.__module__}.{c.__qualname__}" for c in classes)
            raise UserError(f"there are several of the name '{name}': give one of {paths}")
        raise UserError(f"'{name}' is no {kind}{did_you_mean(name, names)}{IMPORT_PATH}")
    try:
        found = _load(module, last)
    except Exception as e:  # whatever the module raises
        near = did_you_mean(last, names)
        raise UserError(f"can't import {name}: {first_line(e)}{near}") from e
    is_other = isinstance(found, type) and not issubclass(found, tuple(bases))
    if is_other or not callable(found) or not hasattr(found, "__name__"):
        raise UserError(f"'{name}' is no {kind}{did_you_mean(last, names)}")
    return found


def _of_packages(name: str, bases: Iterable[type]) -> Iterator[type]:
    """Yield the class of that name of a package that is installed."""
    for base in bases:
        for package in PACKAGES.get(base.__name__, ()) if name.isidentifier() else ():
            with suppress(ImportError):
                found = getattr(import_module(package), name, None)
                if isinstance(found, type) and issubclass(found, base):
                    yield found


def _rank(cls: type) -> int:
    """Return the place of a class among those of the same name: one's own, torch's, packages'."""
    packages = [p for of_base in PACKAGES.values() for p in of_base]
    order = {name: i for i, name in enumerate(["torch", *packages], 1)} | {"lightning": 1}
    return order.get(cls.__module__.partition(".")[0], 0)


def _load(module: str, name: str) -> Any:
    """Import what a dotted path means, also a class inside a class."""
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as e:
        outer, _, inner = module.rpartition(".")
        if outer and e.name == module:
            return getattr(_load(outer, inner), name)
        raise


def path_of(cls: Any) -> str:
    """Return the shortest import path of a class or function: torch.optim.SGD."""
    parts, name = cls.__module__.split("."), cls.__qualname__
    for n in range(1, len(parts)):
        module = sys.modules.get(".".join(parts[:n]))
        if getattr(module, name, None) is cls:  # also what is loaded when it is asked for
            return f"{'.'.join(parts[:n])}.{name}"
    return f"{cls.__module__}.{name}"


def default_of(parameter: Parameter | None) -> Any:
    """Return the default of an argument, REQUIRED if it has none."""
    return parameter.default if parameter else REQUIRED
