"""Classes of the user's choice: what the run decides for them, and what is said if one refuses."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from traceback import extract_tb, walk_tb
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from anneal.callbacks.checkpoint import Checkpoint
from anneal.cli.failures import describe_failure
from anneal.cli.files import Tree
from anneal.cli.schema import default_of, parameters, resolve
from anneal.cli.trainer import as_list
from anneal.errors import UserError
from anneal.loggers.wandb import WandbLogger
from anneal.runs.metrics import direction
from anneal.system import SITE_PACKAGES, is_plain

FOLDERS = ("run_dir", "save_dir")  # of a logger, the first that it takes; "": the run's folder
# Where a class is still being set up; what it raises later is a bug of its own.
SETUP = {"__init__", "configure_callbacks", "configure_model", "configure_optimizers", "connect"}
SETUP |= {"experiment", "on_fit_start", "on_sanity_check_start", "prepare_data", "setup"}
SETUP |= {"setup_environment"}
# A callback of one of these kinds takes the place of the run's own.
REPLACED: dict[str, Any] = {"checkpoint": Checkpoint, "progress_bar": ProgressBar}
REPLACED["lr_monitor"] = LearningRateMonitor


def complete(tree: Tree) -> None:
    """Add the arguments of callbacks and loggers that follow from others, or from the run."""
    trainer = tree.get("trainer", {})
    for spec in _specs(trainer.get("callbacks")):
        cls, args = resolve(spec["class_path"], Callback), spec["init_args"]
        is_default = "mode" not in args and "monitor" in args
        if is_default and default_of(parameters(cls).get("mode")) in ("min", "max"):
            args["mode"] = direction(args["monitor"], None, cls.__name__)
    for spec in _specs(trainer.get("logger")):
        takes = parameters(resolve(spec["class_path"], Logger))
        for name in [name for name in FOLDERS if name in takes][:1]:
            spec["init_args"].setdefault(name, "")


def _specs(value: Any) -> list[Tree]:
    return [spec for spec in as_list(value) if isinstance(spec, dict)]


def build_object(
    folder: Path, wandb: Tree, refusals: list[UserError], cls: Any, *args: Any, **kwargs: Any
) -> Any:
    """Build an object of a configuration; positional arguments are those of a later call.

    What is said of a class that refuses its arguments is raised, and added to `refusals`.
    """
    if args:
        return cls(*args, **kwargs)
    if cls is WandbLogger:
        kwargs |= {k: v for k, v in wandb.items() if kwargs.get(k) in (None, False)}
    if issubclass(cls, Logger):
        kwargs |= {name: str(folder) for name in FOLDERS if kwargs.get(name) == ""}
    try:
        return cls(**kwargs)
    except Exception as e:
        refusals.append(e if isinstance(e, UserError) else refusal(cls, kwargs, e))
        raise refusals[-1] from e


def put_in_place(callbacks: Iterable[Any], folder: Path) -> None:
    """Have callbacks of the user's write into a folder, and refuse one that looks the wrong way."""
    for callback in callbacks:
        monitor, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        if isinstance(monitor, str) and mode in ("min", "max"):
            direction(monitor, mode, type(callback).__name__)
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder)


def refused(error: Exception, chosen: Iterable[Any]) -> UserError | None:
    """Return what is said of an error that a chosen object has raised while it was set up.

    Also of that which an optimizer of a library has raised at any time, such as SparseAdam when it
    gets to see its gradients. None: the error is another one.
    """
    by_class = MisconfigurationException | PermissionError  # whose line doesn't name the class
    if describe_failure(error) and not isinstance(error, by_class):
        return None  # it has a line of its own
    frames = [frame for frame, _ in walk_tb(error.__traceback__)][::-1]
    known = {id(thing) for thing in chosen}
    found = [(o, f.f_code.co_name) for f in frames if id(o := f.f_locals.get("self")) in known]
    owner = next((owner for owner, name in found if name in SETUP), None)
    if owner is None and found and isinstance(found[0][0], Optimizer):
        owner = found[0][0] if _is_library(type(found[0][0])) else None
    if owner is None or type(owner).__module__.startswith("anneal."):
        return None
    cls: Any = type(owner)
    args = {name: getattr(owner, name, of.default) for name, of in parameters(cls).items()}
    return refusal(cls, args, error)


def refusal(cls: Any, args: Mapping[str, Any], error: Exception) -> UserError:
    """Return what is said of a class that refuses its arguments: those that are no defaults."""
    takes = parameters(cls)
    given = {k: v for k, v in args.items() if is_plain(v) and v != default_of(takes.get(k))}
    called = shorten(", ".join(f"{k}={v!r}" for k, v in given.items()), 200, placeholder=" ...")
    text = repr(error) if isinstance(error, LookupError) else str(error) or type(error).__name__
    reason = shorten(text, 300, placeholder=" ...")
    lines = [f.lineno for f in extract_tb(error.__traceback__) if f.filename == _file(cls)]
    place = f" ({_file(cls)}:{lines[-1]})" if lines and not _is_library(cls) else ""
    return UserError(f"{cls.__name__}({called}): {reason}{place}")


def _file(cls: Any) -> str:
    return str(getattr(sys.modules.get(cls.__module__), "__file__", ""))


def _is_library(cls: Any) -> bool:
    return _file(cls).startswith(SITE_PACKAGES)
