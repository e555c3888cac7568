"""The options of a command, and jsonargparse's parser of them: it converts, prints and builds."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from warnings import catch_warnings

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from anneal.callbacks.checkpoint import Checkpoint
from anneal.callbacks.lr_monitor import LearningRateMonitor
from anneal.callbacks.non_finite_guard import NonFiniteGuard
from anneal.callbacks.progress_bar import ProgressBar
from anneal.cli import schema as signatures
from anneal.cli.files import Tree
from anneal.cli.schema import Parameter, Schema, arguments, parameters, resolve
from anneal.cli.values import AS_IT_IS, reads_back
from anneal.cli.words import OPTIONS, PROG
from anneal.errors import UserError
from anneal.loggers.wandb import WandbLogger

# Groups of their own on the command line, so that --trainer.callbacks can't drop them.
DEFAULT_CALLBACKS = {
    "checkpoint": Checkpoint,
    "health": NonFiniteGuard,
    "lr_monitor": LearningRateMonitor,
    "progress_bar": ProgressBar,
}
GROUPS = {"trainer": Trainer, **DEFAULT_CALLBACKS, "wandb": WandbLogger}
CLASSES = {"model": LightningModule, "data": LightningDataModule}
OPTIONS_OF_A_RUN: dict[str, tuple[Parameter, str]] = {
    "run": (Parameter(str | None, None), "The run that best or last is of"),
    "resume": (
        Parameter(Literal["auto"] | None, None),
        "auto: go on from the last.ckpt of --run_name if it is there, else start that run",
    ),
    "run_name": (Parameter(str | None, None), "The folder of the run, by name"),
    "ckpt_path": (Parameter(str | None, None), "`best`, `last` or a checkpoint's file"),
}


@dataclass(frozen=True)
class CommandParser:
    """What one command can be given; its function takes the run, and the options of its own."""

    name: str
    function: Callable[..., Any]
    starts: bool = True

    @property
    def own(self) -> dict[str, Parameter]:
        """The options of its function."""
        return dict(list(parameters(self.function).items())[1:])

    @property
    def about(self) -> dict[str, tuple[Parameter, str]]:
        """The options of a run."""
        return {k: v for k, v in OPTIONS_OF_A_RUN.items() if self.starts or k != "ckpt_path"}

    def schema(self) -> Schema:
        """Return the names and types of all options."""
        groups: Schema = {name: dict(parameters(cls)) for name, cls in GROUPS.items()}
        for key, of in groups["trainer"].items():
            if key.startswith("limit_"):  # Lightning tries float first, and 1.0 is the whole split
                groups["trainer"][key] = of._replace(hint=int | float | None)
        # What --trainer.logger+= adds to; `metrics.csv` is always there.
        wandb = {"class_path": signatures.path_of(WandbLogger), "init_args": {}}
        groups["trainer"]["logger"] = groups["trainer"]["logger"]._replace(default=[wandb])
        groups["wandb"].pop("run_dir")
        return {
            "seed_everything": Parameter(int, 0),
            "trainer": groups.pop("trainer"),
            **{name: Parameter(cls) for name, cls in CLASSES.items()},
            **groups,
            **{name: of for name, (of, _) in self.about.items()},
            **self.own,
        }

    @cache  # noqa: B019  (there are few, and tests run hundreds of commands in a process)
    def build(self, with_classes: bool = True) -> ArgumentParser:
        """Return jsonargparse's parser of all options, those of model and data too."""
        parser = ArgumentParser(
            prog=f"{PROG} {self.name}",
            usage=f"%(prog)s {OPTIONS}",
            description=(self.function.__doc__ or "").strip().splitlines()[0],
            exit_on_error=False,
        )
        text = "A configuration file; of several, later ones win, and flags win over all"
        parser.add_argument("-c", "--config", type=str | None, default=None, help=text)
        text = "Print the whole configuration, and run nothing"
        parser.add_argument("--print_config", type=bool, default=False, help=text)
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the run")
        parser.add_class_arguments(Trainer, "trainer", instantiate=False)
        for name, cls in CLASSES.items() if with_classes else ():
            parser.add_subclass_arguments(cls, name, required=True, fail_untyped=False)
            (parser.groups or {})[name].title = f"{name}, a class chosen by name"
        for name, (of, help) in self.about.items():
            parser.add_argument(f"--{name}", type=of.hint, default=of.default, help=help)
        for name, callback in DEFAULT_CALLBACKS.items():
            parser.add_class_arguments(callback, name)
        parser.add_class_arguments(WandbLogger, "wandb", skip={"run_dir"}, instantiate=False)
        parser.add_function_arguments(self.function, skip={*list(parameters(self.function))[:1]})
        parser.set_defaults({"trainer.default_root_dir": "runs"})
        return parser


def class_help(cls: Any, hint: Any, key: str) -> str:
    """Return what a class can be given where a key of that type stands."""
    parser = ArgumentParser(prog=PROG, usage=f"%(prog)s --{key}={cls.__name__} {OPTIONS}")
    add = parser.add_class_arguments if isinstance(cls, type) else parser.add_function_arguments
    add(cls, key, skip={*(parameters(cls).keys() - arguments(cls, hint))}, fail_untyped=False)
    return str(parser.format_help())


def converted(parser: ArgumentParser, tree: Tree) -> Namespace:
    """Return a configuration with all defaults, each value of its own type, or raise UserError."""
    try:
        config: Namespace = parser.parse_object(deepcopy(tree))  # which it changes
    except Exception as e:  # of a dozen types
        raise UserError(f"configuration: {' '.join(str(e).split())[:300]}") from e
    for name in ("config", "print_config"):
        config.pop(name, None)
    return config


def dumped(
    parser: ArgumentParser, config: Namespace, packages: Iterable[str], schema: Schema, typed: Tree
) -> Tree:
    """Return a configuration with all defaults as plain values, read back as what they were.

    A default that YAML can't hold (a lambda, a module) is left out; the typed values are plain.
    Classes of the packages go by their short names where no other class has that name, so that a
    stored configuration outlives another name of the package.
    """
    own = tuple(f"{name}." for name in packages)
    with catch_warnings(action="ignore"):  # of what can't be written
        written: Any = parser.dump(config, format=AS_IT_IS, skip_unset=False, skip_validation=True)
        return _readable(written, config, schema, typed, own)


def _readable(written: Tree, config: Any, schema: Schema, typed: Any, own: tuple[str, ...]) -> Tree:
    kept: Tree = {}
    for name, plain in written.items():
        if (of := schema.get(name)) is None:  # jsonargparse follows **kwargs further
            continue
        value = config[name]
        given = typed.get(name) if isinstance(typed, dict) else None
        if isinstance(value, Namespace) and (fields := signatures.fields_of(of)):
            kept[name] = _readable(plain, value, fields, given, own)
        elif is_spec(value) and signatures.base_classes(of.hint):
            kept[name] = _readable_class(plain, value, of.hint, given, own)
        elif isinstance(value, list) and value and all(map(is_spec, value)):
            each = given if isinstance(given, list) else [given] * len(value)
            of_each = zip(plain, value, each, strict=True)
            kept[name] = [_readable_class(p, v, of.hint, g, own) for p, v, g in of_each]
        elif not is_spec(value) and reads_back(plain, value, of.hint):
            kept[name] = plain
        elif isinstance(typed, dict) and name in typed:
            kept[name] = given
    return kept


def _readable_class(spec: Tree, value: Any, hint: Any, given: Any, own: tuple[str, ...]) -> Tree:
    path, args = spec["class_path"], given.get("init_args") if isinstance(given, dict) else None
    cls = resolve(path, hint)
    short = path.rpartition(".")[2]
    with suppress(UserError):  # several have that name
        path = short if path.startswith(own) and resolve(short, hint) is cls else path
    below = spec.get("init_args", {}), value.get("init_args", {}), arguments(cls, hint), args
    return {**spec, "class_path": path, "init_args": _readable(*below, own)}


def is_spec(value: Any) -> bool:
    """Whether a value names a class with its arguments."""
    return isinstance(value, Namespace) and "class_path" in value


def as_yaml(tree: Tree) -> str:
    """Return a configuration as text."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
