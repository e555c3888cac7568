"""What a command of `train.py` does, from its words to the end of its run."""

import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal

from lightning.pytorch import seed_everything

from anneal import launch
from anneal.cli.chosen import refused
from anneal.cli.entry import RESULT, at_width, keep
from anneal.cli.failures import describe_failure, explain, is_out_of_memory
from anneal.cli.prepare import Project, prepare
from anneal.cli.run import Run
from anneal.cli.words import Words, read_words
from anneal.commands.export import export as write_export
from anneal.commands.lr_find import lr_find
from anneal.commands.predict import predict
from anneal.commands.replay import replay
from anneal.commands.schedule import preview, show
from anneal.commands.show_batch import show_batch
from anneal.errors import UserError, first_line
from anneal.lightning_internals import set_logged_step
from anneal.runs.exported import ENDINGS
from anneal.runs.folder import next_free_path
from anneal.runs.lock import released
from anneal.runs.resume import check_optimizer, optimizer_mismatch, state_dict_mismatch

ENGINE = ("anneal.callbacks", "anneal.loggers", "anneal.vision.datamodule")


@released()
def run_command(fit: Callable[[Run], None], words: Words, *about: Any) -> Run:
    """Run a command that is about a run; the arguments are as in `entry.main` and `Project`."""
    quiet()
    # A sentence, without a path and a line of source code.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    project = Project({"fit": fit, **COMMANDS}, *about)
    import_packages(project.packages)
    try:
        with launch.run_distributed(describe_failure):
            run = prepare(words, project)
            if isinstance(run, str):
                print(run.rstrip("\n"))
                if words.flags == [("help", None)] and not words.files:
                    keep("help", at_width(words.command), run.rstrip("\n").splitlines())
                sys.exit(0)
            seed_everything(run.config.seed_everything, workers=True)
            do(run, project)
            if words.command == "schedule":
                compare(run, words, project)
            return run
    except (KeyboardInterrupt, SystemExit) as e:
        # Lightning makes exit status 1 of a Ctrl-C before the training.
        if isinstance(e, SystemExit) and not isinstance(e.__context__, KeyboardInterrupt):
            raise
        sys.exit(130)


def quiet() -> None:
    """Leave out warnings and advertisements that say nothing to a user."""
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # Lightning's own, each run
    # It is: what it has given is read again.
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*", UserWarning)
    # A limit of time may be taken away.
    warnings.filterwarnings("ignore", ".*add the following callbacks: .'Timer'.*", UserWarning)
    # A resumed run is meant to resume in its folder.
    warnings.filterwarnings("ignore", ".*exists and is not empty.*", UserWarning)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each of its retries is a line
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "💡" not in record.getMessage()  # advertisements
    )


def import_packages(names: Iterable[str]) -> None:
    """Import all modules of these packages: a class is known by its short name from then on."""
    for name in (*ENGINE, *names):
        package = import_module(name)
        for module in iter_modules(getattr(package, "__path__", []), f"{name}."):
            if not module.ispkg:
                import_module(module.name)


def do(run: Run, project: Project) -> None:
    """Do what a command is for, and end the recording of the run however that went."""
    status = 1
    try:
        if run.command == "fit":
            if run.is_over():
                return
            check_optimizer(run.differences())
        project.commands[run.command](run, **run.own)
        status = 0
    except SystemExit as e:  # handed back to SLURM's queue
        status = int(e.code or 0)
        raise
    except Exception as e:
        if is_out_of_memory(e):
            raise UserError(explain(e, run.model, run.trainer), status=1) from e
        if "Error(s) in loading state_dict" in str(e):
            path = str(run.ckpt_path)
            raise UserError(state_dict_mismatch(path, str(e), run.differences())) from e
        if str(e).startswith("loaded state dict"):  # torch's words about an optimizer's
            raise UserError(optimizer_mismatch(str(run.ckpt_path), run.differences())) from e
        if str(e).strip().startswith(("Early stopping conditioned on", "`val_check_interval`")):
            raise UserError(f"trainer: {first_line(e)}") from e
        if line := refused(e, run.objects):
            raise line from e
        raise
    except KeyboardInterrupt:
        status = 130
        raise
    finally:
        RESULT.update(run.facts())
        run.finish(status)


def compare(run: Run, words: Words, project: Project) -> None:
    """Show the schedule of a run and of those to compare with it.

    The files of a `--compare` stand in for those of --config; its overrides come after all others.
    """
    previews = {run.recipe or "run": run.preview}
    flags = [flag for flag in words.flags if flag[0] != "compare"]
    for text in words.all("compare"):
        typed = shlex.split(text)
        options = [word for word in typed if word.startswith("-")]
        more = read_words([*options, *(f"--config={w}" for w in typed if w not in options)])
        other = words._replace(files=more.files or words.files, flags=[*flags, *more.flags])
        second = prepare(other, project)
        assert isinstance(second, Run)
        do(second, project)
        name = " ".join([second.recipe, *options])
        previews[name if name not in previews else f"{name} ({len(previews) + 1})"] = second.preview
    show(previews, run.config.output or run.folder / "schedule.png")


# ---- commands: each takes the run, and its other arguments are its options


def validate(run: Run) -> None:
    """Evaluate a checkpoint on the validation data."""
    run.trainer.validate(run.model, run.data, run.ckpt_path, weights_only=True)


def test(run: Run) -> None:
    """Evaluate a checkpoint on the test data, with figures of its mistakes."""
    step = max(0, run.checkpoint["global_step"] - 1)
    set_logged_step(run.trainer, step, run.checkpoint["epoch"])
    run.trainer.test(run.model, run.data, run.ckpt_path, weights_only=True)


def export(
    run: Run, format: Literal["onnx", "torch_export"] = "onnx", output: Path | None = None
) -> None:
    """Write a checkpoint's network to a file of ONNX or torch.export, and check it.

    Args:
        format: `onnx`, for ONNX Runtime and others, or `torch_export`, for torch.export.load.
        output: The file. None: model.onnx or model.pt2 in the run's folder.
    """
    assert run.ckpt_path is not None
    path = output or next_free_path(run.folder / f"model{ENDINGS[format]}")
    print(write_export(run.model, run.data, run.ckpt_path, format, path))


def schedule(
    run: Run, compare: str | None = None, samples: int | None = None, output: Path | None = None
) -> None:
    """Show the learning rate of every step before a run, without its data.

    Args:
        compare: Another configuration for the same figure: files and overrides in quotes, such as
            --compare='configs/mnist_step.yaml --model.optimizer.lr=0.2', which override what else
            is typed. Without a file, the overrides alone. Can be repeated.
        samples: Training samples, where the data is not at hand: ImageNet has 1281167.
        output: The figure's file. None: schedule.png in the folder of runs.
    """
    run.preview = preview(run.trainer, run.model, run.data, samples)


OF_THE_NAME = validate, test, predict, export, schedule, lr_find, replay
COMMANDS: dict[str, Callable[..., None]] = {f.__name__: f for f in OF_THE_NAME}
COMMANDS["show-batch"] = show_batch
