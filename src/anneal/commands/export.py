"""Export a network: one file with all that it needs, whose results are checked."""

import json
import re
from contextlib import redirect_stderr
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from statistics import median
from timeit import repeat
from typing import Any
from warnings import catch_warnings

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from anneal.errors import UserError, first_line, in_a_line
from anneal.runs.exported import ENDINGS, Exported, read, seal_onnx
from anneal.runs.folder import read_checkpoint, run_of

NEEDED = ("onnx", "onnxscript", "onnxruntime")  # by torch.onnx.export, and to run the result
BATCHES = (1, 2, 7)
TOLERANCE = 1e-4  # of a probability, or of what else `Computation.scale` says
TIMED = 20
COUNTS = "it computes something else for each number of images"
REASONS = {  # what torch's messages mean
    "data-dependent": "which of its lines run depends on the values of the pixels, and a file has "
    "one graph for all: compute both ways and choose by torch.where",
    "specialized it to be a constant": COUNTS,
    "invalid dimensions for input": COUNTS,
}


class Computation(nn.Module):
    """The computation of an exported file: what is predicted, or `forward` without a task."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> Any:
        """Return probabilities or values, (N, outputs) float32, of pixels (N, C, H, W) uint8."""
        if not hasattr(self.model, "task"):
            outputs = self.model(batch)
            if not isinstance(outputs, Tensor):
                kind = type(outputs).__name__
                raise UserError(f"forward returns a {kind}, and a file holds one tensor")
            return outputs
        return self.model.task.activate(self.model.predict_logits(batch).float())

    def scale(self, outputs: Tensor) -> Tensor:
        """Return how far outputs lie apart: 1 for probabilities."""
        if (task := getattr(self.model, "task", None)) is None:
            return outputs.abs().max()
        return getattr(task, "std", torch.ones(()))


def export(
    model: LightningModule, datamodule: LightningDataModule, checkpoint: Path, form: str, path: Path
) -> str:
    """Write a checkpoint's weights, those of an EMA if the run has one, and check the file.

    Returns lines to print: the file, its size, how exact and how fast it is. Raises UserError if it
    can't be exported or written, or differs from the model.
    """
    _check(form, path)
    stored = read_checkpoint(checkpoint)
    model.on_load_checkpoint(stored)
    model.load_state_dict(stored["state_dict"])
    example = _example(model, datamodule)
    network = Computation(model).to(memory_format=torch.contiguous_format).eval()
    about = _about(model, datamodule, checkpoint, stored, example)
    unfinished = path.with_name(f".{path.name}")
    units = {"probabilities": "a probability", "values": "a standard deviation"}
    of = units.get(about["output"].partition(":")[0], "the largest output")
    with in_a_line(f"can't write {path}", status=1):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            exported, difference = _write(form, network, example, about, unfinished)
            if not difference < TOLERANCE:
                raise UserError(
                    f"what is exported as {form} differs from the model by up to {difference:.2g} "
                    f"of {of}, more than {TOLERANCE:g}: nothing is written",
                    status=1,
                )
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    batches = ", ".join(map(str, BATCHES))
    return (
        f"{path}\n"
        f"size         {path.stat().st_size / 1e6:.2f} MB\n"
        f"difference   {difference:.1g} of {of} at most, in batches of {batches}\n"
        f"latency      {1000 * _seconds(exported, example):.2f} ms for one sample on this CPU, the "
        f"median of {TIMED}"
    )


def _example(model: Any, datamodule: LightningDataModule) -> Tensor:
    """Return a batch of what the network takes: of a model with a task, noise for images."""
    shape: tuple[int, ...] | None = getattr(datamodule, "image_shape", None)
    if hasattr(model, "task") and shape:
        return _pixels(max(BATCHES), shape)
    example = model.example_input_array
    if example is None and not is_overridden("val_dataloader", datamodule):
        raise UserError(
            f"export needs to know what the network takes: give {type(datamodule).__name__} an "
            "image_shape, such as (3, 224, 224), or the module an example_input_array"
        )
    if example is None:
        datamodule.prepare_data()
        datamodule.setup("validate")
        example = next(iter(datamodule.val_dataloader()))
    batch: Tensor = example[0] if isinstance(example, tuple | list) else example
    return batch[torch.arange(max(BATCHES)) % len(batch)]


def _check(form: str, path: Path) -> None:
    """Raise UserError if the file has another format's ending or a package is missing."""
    if path.suffix != ENDINGS[form]:
        raise UserError(f"--output={path}: a file of {form} ends in {ENDINGS[form]}")
    missing = [name for name in NEEDED if form == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(f"--format=onnx needs {', '.join(missing)}: pip install -e '.[export]'")


def _about(
    model: Any, datamodule: Any, checkpoint: Path, stored: dict[str, Any], example: Tensor
) -> dict[str, str]:
    """Return the description that the file carries, by `exported.KEYS`."""
    shape = list(example.shape[1:])
    about = {
        "shape": json.dumps(shape),
        "dtype": str(example.dtype),
        "input": f"input: {str(example.dtype)[6:]} (batch, {', '.join(map(str, shape))})",
        "output": "output: what forward returns",
        "run": (run_of(checkpoint) or checkpoint).resolve().name,
        "checkpoint": checkpoint.name,
        "config": stored.get("config", ""),
    }
    if not hasattr(model, "task"):
        return about
    wanted, task = getattr(datamodule, "input_description", ""), model.task
    return about | {
        "class_names": json.dumps(model.class_names or [str(i) for i in range(model.num_classes)]),
        "task": task.name,
        "task_state": json.dumps(task.state()),
        "input": about["input"].replace("input", "pixels") + f", 0 to 255; {wanted}",
        "output": f"{task.predicted}: float32 (batch, {task.things})",
    }


def _write(
    form: str, network: Computation, example: Tensor, about: dict[str, str], path: Path
) -> tuple[Exported, float]:
    """Write the file; return what is read from it, and how far it is from the network at most."""
    try:
        # What the exporter says on its way is of each torch release something else.
        with torch.no_grad(), catch_warnings(action="ignore"), redirect_stderr(StringIO()):
            _write_file(form, network, example[:2], about, path)
            exported = read(path)
            differences = [_difference(network, exported, example[:n]) for n in BATCHES]
    except (OSError, UserError):
        raise
    except Exception as e:  # what torch and onnxscript raise is of a dozen types
        raise _no_export(form, e) from e
    return exported, float(torch.tensor(differences).max())  # NaN if one is


def _no_export(form: str, error: BaseException) -> UserError:
    """Return why a network can't be exported, and where in its code that is."""
    while error.__cause__:  # torch's own reason, under the advice of those who called it
        error = error.__cause__
    text = str(error)
    reason = next((why for sign, why in REASONS.items() if sign in text), "")
    if place := re.findall(r'File "(.+?)", line (\d+)', text):
        reason += f" ({':'.join(place[-1])})" if reason else ""
    releases = f"torch {torch.__version__}"
    if form == "onnx":
        releases += f" and onnxscript {version('onnxscript')}"
    other = next(name for name in ENDINGS if name != form)
    reason = reason or f"{first_line(error)}; try newer releases, or --format={other}"
    return UserError(f"{releases} can't make {form} of this network: {reason}", status=1)


def _write_file(form: str, network: nn.Module, batch: Tensor, about: Any, path: Path) -> None:
    shapes: Any = ({0: torch.export.Dim("batch")},)
    if form == "torch_export":
        # Not strict: what torch 2.6 writes strictly it can't read, where a layer stands in a list.
        exported = torch.export.export(network, (batch,), dynamic_shapes=shapes, strict=False)
        whole = BytesIO()  # on a full disk torch's own writer ends the process
        torch.export.save(exported, whole, extra_files=dict(about))
        path.write_bytes(whole.getbuffer())
        return
    names: Any = {f"{k}_names": [about[k].partition(":")[0]] for k in ("input", "output")}
    program = torch.onnx.export(network, (batch,), dynamic_shapes=shapes, verbose=False, **names)
    assert program is not None
    program.model.metadata_props.update(about)
    program.save(path, external_data=False)
    seal_onnx(path)


def _pixels(n: int, shape: tuple[int, ...]) -> Tensor:
    """Return noise from dark to bright: on bright noise alone a network is sure of one class."""
    generator = torch.Generator().manual_seed(n)
    noise = torch.rand(n, *shape, generator=generator)
    return (256 * noise * torch.rand(n, 1, 1, 1, generator=generator)).to(torch.uint8)


def _difference(network: Computation, exported: Exported, batch: Tensor) -> float:
    outputs = network(batch)
    return float(((outputs - exported(batch)).abs() / network.scale(outputs)).max())


def _seconds(exported: Exported, example: Tensor) -> float:
    """Return the median time of one sample, after the first few."""
    return median(repeat(lambda: exported(example[:1]), repeat=3 + TIMED, number=1)[3:])
