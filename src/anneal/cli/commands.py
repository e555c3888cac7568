"""The commands on a run: each takes the run, and its other arguments are its options."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from anneal.cli.run import Run
from anneal.commands.export import export as write_export
from anneal.commands.lr_find import lr_find
from anneal.commands.predict import ExportedModel, Predictions, check_predicts, save_predictions
from anneal.commands.replay import replay
from anneal.commands.schedule import preview, save_figure
from anneal.commands.show_batch import draw_batches, first_batches
from anneal.lightning_internals import set_logged_step
from anneal.runs.exported import ENDINGS, is_exported, read
from anneal.runs.folder import next_free_path


def validate(run: Run) -> None:
    """Evaluate a checkpoint on the validation data."""
    run.trainer.validate(run.model, run.data, run.ckpt_path, weights_only=True)


def test(run: Run) -> None:
    """Evaluate a checkpoint on the test data, with figures of its mistakes."""
    step = max(0, run.checkpoint["global_step"] - 1)
    set_logged_step(run.trainer, step, run.checkpoint["epoch"])
    run.trainer.test(run.model, run.data, run.ckpt_path, weights_only=True)


def predict(run: Run) -> None:
    """Write what a checkpoint predicts, for test data or your own files, to a CSV file."""
    check_predicts(run.model, run.trainer)
    assert run.ckpt_path is not None
    model, path = run.model, run.ckpt_path
    if is_exported(path):
        model, path = ExportedModel(read(path), run.model), None  # type: ignore[assignment]
    seen = Predictions(run.model)
    run.trainer.callbacks.append(seen)  # type: ignore[attr-defined]
    try:
        run.trainer.predict(model, run.data, None, False, path, weights_only=True)
    except BaseException:
        if seen.batches:  # it was interrupted, or a later file ended it
            save_predictions(run.folder, seen, model, run.trainer, run.data)
        raise
    save_predictions(run.folder, seen, model, run.trainer, run.data)


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
    run: Run,
    compare: str | None = None,
    steps_per_epoch: int | None = None,
    samples: int | None = None,
    output: Path | None = None,
) -> None:
    """Show the learning rate of every step before a run, without its data.

    Args:
        compare: Another configuration for the same figure: files and overrides in quotes, such as
            --compare='configs/mnist_step.yaml --model.optimizer.lr=0.2', which override what else
            is typed. Without a file, the overrides alone. Can be repeated.
        steps_per_epoch: Optimizer steps in an epoch. None: as many as the data makes.
        samples: Training samples, where the data is not at hand: ImageNet has 1281167.
        output: The figure's file. None: schedule.png in the folder of runs.
    """
    run.preview = preview(run.trainer, run.model, run.data, steps_per_epoch, samples)


def show_batch(run: Run, batches: int = 2, output: Path | None = None) -> None:
    """Draw the first training batches with their targets, as the network gets them.

    Args:
        batches: How many.
        output: The figure's file. None: show-batch.png in the folder of runs.
    """
    path = output or next_free_path(run.folder / "show-batch.png")
    save_figure(
        draw_batches(first_batches(run.trainer, run.model, run.data, batches), run.data), path
    )
    print(path)


OF_THE_NAME = validate, test, predict, export, schedule, lr_find, replay
COMMANDS: dict[str, Callable[..., None]] = {f.__name__: f for f in OF_THE_NAME}
COMMANDS["show-batch"] = show_batch
