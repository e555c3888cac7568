"""A run's configuration, read back: parsed, with today's class paths, by the keys one types."""

from collections.abc import Iterator
from typing import Any

import yaml

from anneal.errors import UserError

FORMAT = 1  # of config.yaml and of checkpoints, which both name it under `format`
# Where classes were when older runs stored their configuration, and where they are now. Those of
# the project and of the examples have a short name: their package may have been renamed.
MOVED = {
    "anneal.modules.": "",
    "anneal.data.mnist.": "",
    "anneal.data.points.": "",
    "anneal.callbacks.picture.Picture": "TrainingFigure",
    "anneal.data.imagenet.": "anneal.vision.datamodule.",
    "anneal.data.imagenet.Progressive": "anneal.vision.transforms.ProgressiveResizing",
    "anneal.data.transforms.": "anneal.vision.transforms.",
    "anneal.schedule.": "anneal.optim.schedule.",
    "anneal.schedulers.": "anneal.optim.torch_schedulers.",
    "anneal.sharding.": "anneal.cli.fsdp.",
    "anneal.loggers.csv_logger.": "anneal.loggers.csv.",
    "anneal.loggers.wandb_logger.": "anneal.loggers.wandb.",
    "anneal.callbacks.accumulation.LastWindow": "anneal.progress.Clock",
    "anneal.callbacks.conductor.Conductor": "anneal.optim.callback.ScheduleCallback",
    "anneal.callbacks.epoch_seed.EpochSeed": "anneal.callbacks.seed_every_epoch.SeedEveryEpoch",
    "anneal.callbacks.health.Health": "anneal.callbacks.non_finite_guard.NonFiniteGuard",
    "anneal.callbacks.interrupt.Interrupt": "anneal.callbacks.graceful_shutdown.GracefulShutdown",
    "anneal.callbacks.run_folder.RunFolder": "anneal.callbacks.run_directory.RunDirectory",
    "anneal.callbacks.samples.SamplesSeen": "anneal.progress.Clock",
    "anneal.callbacks.test_pictures.TestPictures": "anneal.tasks.test_report.TestReport",
    "anneal.saving.WholeFileIO": "anneal.runs.checkpoint_io.AtomicCheckpointIO",
}


def parse(text: str, where: object) -> dict[str, Any]:
    """Return a configuration with today's class paths; raise UserError if it can't be read here."""
    try:
        # C's parser takes a tenth of the time where it was built, but no path that is no UTF-8.
        fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        tree = yaml.load(text, Loader=yaml.SafeLoader if "\\uDC" in text else fast)
    except yaml.YAMLError as e:
        raise UserError(f"{where}: no YAML: {' '.join(str(e).split())}") from e
    if not isinstance(tree, dict):
        raise UserError(f"{where}: no configuration")
    check_format(tree.pop("format", FORMAT), where)
    current: dict[str, Any] = with_current_names(tree)
    return current


def check_format(found: Any, where: object) -> None:
    """Raise UserError if the format of a configuration or a checkpoint is a newer one."""
    if not isinstance(found, int) or found > FORMAT:
        raise UserError(
            f"{where}: format {found} is newer than {FORMAT}, the newest known here: it was "
            "written by a later release, so upgrade to read it"
        )


def with_current_names(tree: Any) -> Any:
    """Return a configuration's tree with every class_path as it is today."""
    if isinstance(tree, list):
        return [with_current_names(node) for node in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        key: current_name(value)
        if key == "class_path" and isinstance(value, str)
        else with_current_names(value)
        for key, value in tree.items()
    }


def current_name(path: str) -> str:
    """Return today's name of a class: its import path, or a short name if the engine has it not."""
    old = max((prefix for prefix in MOVED if path.startswith(prefix)), key=len, default="")
    if old == "" or MOVED[old] == "":
        return path.rpartition(".")[2] if old else path
    return MOVED[old] + path.removeprefix(old)


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested keys, each under its key as one types it: without `init_args`."""
    for key, value in tree.items():
        path = prefix.removesuffix(".") if key == "init_args" else f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{path}.")
        else:
            yield path, value
