"""Train from Python, in a script or a notebook, with the run folder that the command line makes."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything

from anneal.cli.main import quiet
from anneal.cli.parser import CLASSES, CommandParser, as_yaml, converted, dumped
from anneal.cli.prepare import start_from
from anneal.cli.run import Run
from anneal.cli.schema import path_of
from anneal.cli.words import Words
from anneal.runs import folder as runs
from anneal.runs.config import FORMAT
from anneal.runs.lock import released
from anneal.system import is_plain


@released()
def fit(
    model: LightningModule,
    data: LightningDataModule,
    *,
    run_name: str | None = None,
    resume: bool = False,
    seed: int = 0,
    **trainer: Any,
) -> Trainer:
    """Train a module, test its last weights if there is test data, and sum up.

    The run has a folder as from the command line: config.yaml, metrics.csv, checkpoints. Callbacks
    and loggers are the same, too.

    Args:
        model: The module to train.
        data: What to train, validate and test it on.
        run_name: Name of the run's folder; None: one of its own.
        resume: Whether the run called `run_name` resumes if it is there.
        seed: Of weights that are still to be made, order and augmentation; 0 to 4294967295.
        **trainer: Arguments of Lightning's Trainer, such as `max_epochs=3`; `default_root_dir` is
            the folder of runs.

    Returns:
        The Trainer, after the training.

    Raises:
        UserError: The folder is taken, or something about the training makes no sense.
    """
    quiet()
    command = CommandParser("fit", _nothing)
    parser = command.build(with_classes=False)
    plain = {name: value for name, value in trainer.items() if is_plain(value)}
    config = converted(parser, {"seed_everything": seed, "trainer": plain})
    seed_everything(seed, workers=True)
    root = Path(config.trainer.default_root_dir)
    typed = [("run_name", run_name), ("resume", "auto" if resume else None)]
    typed.append(("trainer.default_root_dir", str(root)))
    start = start_from(Words("fit", [], typed, []), [])
    folder = start.resumed or runs.new_folder(root, run_name, type(model).__name__)
    runs.check_writable(start.resumed or root)
    stored = dumped(parser, config, (), command.schema(), {"trainer": plain})
    stored |= {name: _spec(obj) for name, obj in zip(CLASSES, (model, data), strict=True)}
    for name in (*command.about, "config", "print_config"):
        stored.pop(name, None)
    run = Run("fit", config, parser, as_yaml({"format": FORMAT, **stored}))
    run.folder, run.resumed_from, run.checkpoint = folder, start.resumed_from, start.stored
    run.built.model, run.built.data = model, data
    vars(run.built.trainer).update(trainer)
    if not run.is_over():
        run.trainer.fit(model, data, ckpt_path=start.checkpoint)
        run.test()
        run.summarize()
        run.finish(0)
    return run.trainer


def _nothing(run: Run) -> None:
    """Train from Python."""


def _spec(built: Any) -> dict[str, Any]:
    """Return the class of an object, and its arguments as far as it has kept them."""
    kept = dict(getattr(built, "hparams", {}))
    args = {name: value for name, value in kept.items() if is_plain(value)}
    path = path_of(type(built))
    own = path.partition(".")[0] not in ("anneal", "lightning", "torch")  # by its short name
    return {"class_path": type(built).__name__ if own else path, "init_args": args}
