"""Export of a classifier: one file with all that it needs, whose results are checked."""

import json
import re
import time
import warnings
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from anneal.errors import UserError, first_line
from anneal.runs.exported import ENDINGS, INPUT, OUTPUT, Exported, read, seal_onnx
from anneal.runs.folder import read_checkpoint, run_of

NEEDED = ("onnx", "onnxscript", "onnxruntime")  # by torch.onnx.export, and to run the result
BATCHES = (1, 2, 7)
TOLERANCE = 1e-4  # of a probability
TIMED = 20
COUNTS = "it computes something else for each number of images"
REASONS = {  # what torch's messages mean
    "data-dependent": "which of its lines run depends on the values of the pixels, and a file has "
    "one graph for all: compute both ways and choose by torch.where",
    "specialized it to be a constant": COUNTS,
    "invalid dimensions for input": COUNTS,
}


class Probabilities(nn.Module):
    """The computation of an exported file."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Return probabilities (N, classes) float32 of pixels (N, C, H, W) uint8."""
        probabilities: Tensor = self.model.predict_logits(pixels).float().softmax(1)
        return probabilities


def export(
    model: LightningModule, datamodule: LightningDataModule, checkpoint: Path, form: str, path: Path
) -> str:
    """Write a checkpoint's weights, those of an EMA if the run has one, and check the file.

    Returns lines to print: the file, its size, how exact and how fast it is. Raises UserError if it
    can't be exported or written, or differs from the model.
    """
    if not (hasattr(model, "predict_logits") and hasattr(model, "class_names")):
        raise UserError(f"export is for classifiers, and {type(model).__name__} is none")
    shape = _shape(datamodule)
    _check(form, path)
    stored = read_checkpoint(checkpoint)
    model.on_load_checkpoint(stored)
    model.load_state_dict(stored["state_dict"])
    network = Probabilities(model).to(memory_format=torch.contiguous_format).eval()
    about = _about(model, datamodule, checkpoint, stored)
    unfinished = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        exported, difference = _write(form, network, shape, about, unfinished)
        if not difference < TOLERANCE:
            raise UserError(
                f"what is exported as {form} differs from the model by up to {difference:.2g} in a "
                f"probability, more than {TOLERANCE:g}: nothing is written",
                status=1,
            )
        unfinished.replace(path)
    except OSError as e:
        raise UserError(f"can't write {path}: {e.strerror}", status=1) from e
    finally:
        with suppress(OSError):
            unfinished.unlink()
    batches = ", ".join(map(str, BATCHES))
    return (
        f"{path}\n"
        f"size         {path.stat().st_size / 1e6:.2f} MB\n"
        f"difference   {difference:.1g} at most from the model, in batches of {batches}\n"
        f"latency      {1000 * _seconds(exported, shape):.2f} ms for one picture on this CPU, the "
        f"median of {TIMED}"
    )


def _shape(datamodule: LightningDataModule) -> tuple[int, ...]:
    """Return the shape of one image, channels first."""
    shape: tuple[int, ...] | None = getattr(datamodule, "image_shape", None)
    if shape is None:
        raise UserError(
            f"export needs to know the pictures: give {type(datamodule).__name__} an image_shape, "
            "such as (3, 224, 224)"
        )
    return shape


def _check(form: str, path: Path) -> None:
    """Raise UserError if the file has another format's ending or a package is missing."""
    if path.suffix != ENDINGS[form]:
        raise UserError(f"--output={path}: a file of {form} ends in {ENDINGS[form]}")
    missing = [name for name in NEEDED if form == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(f"--format=onnx needs {', '.join(missing)}: pip install -e '.[export]'")


def _about(
    model: Any, datamodule: LightningDataModule, checkpoint: Path, stored: dict[str, Any]
) -> dict[str, str]:
    """Return the description that the file carries, by `exported.KEYS`."""
    shape = _shape(datamodule)
    return {
        "class_names": json.dumps(model.class_names or [str(i) for i in range(model.num_classes)]),
        "shape": json.dumps(shape),
        "input": f"{INPUT}: uint8 (batch, {', '.join(map(str, shape))}), 0 to 255; "
        + getattr(datamodule, "input_description", ""),
        "output": f"{OUTPUT}: float32 (batch, classes)",
        "run": (run_of(checkpoint) or checkpoint).resolve().name,
        "checkpoint": checkpoint.name,
        "config": stored.get("config", ""),
    }


def _write(
    form: str, network: nn.Module, shape: tuple[int, ...], about: dict[str, str], path: Path
) -> tuple[Exported, float]:
    """Write the file; return what is read from it, and how far it is from the network at most."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, of each torch release others
            _WRITERS[form](network, _pixels(2, shape), about, path)
            exported = read(path)
            differences = [_difference(network, exported, _pixels(n, shape)) for n in BATCHES]
    except OSError:
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


def _write_onnx(network: nn.Module, pixels: Tensor, about: dict[str, str], path: Path) -> None:
    program = torch.onnx.export(
        network,
        (pixels,),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(about)
    program.save(path, external_data=False)
    seal_onnx(path)


def _write_torch(network: nn.Module, pixels: Tensor, about: dict[str, str], path: Path) -> None:
    # Not strict: what torch 2.6 writes strictly it can't read, where a layer stands in a list.
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (pixels,), dynamic_shapes=shapes, strict=False)
    torch.export.save(program, path, extra_files=dict(about))


_WRITERS: dict[str, Any] = {"onnx": _write_onnx, "torch_export": _write_torch}


def _pixels(n: int, shape: tuple[int, ...]) -> Tensor:
    """Return noise from dark to bright: on bright noise alone a network is sure of one class."""
    generator = torch.Generator().manual_seed(n)
    noise = torch.rand(n, *shape, generator=generator)
    return (256 * noise * torch.rand(n, 1, 1, 1, generator=generator)).to(torch.uint8)


def _difference(network: nn.Module, exported: Exported, pixels: Tensor) -> float:
    return float((network(pixels) - exported(pixels)).abs().max())


def _seconds(exported: Exported, shape: tuple[int, ...]) -> float:
    """Return the median time of one image, after the first few."""
    pixels, seconds = _pixels(1, shape), []
    for _ in range(3 + TIMED):
        start = time.perf_counter()
        exported(pixels)
        seconds.append(time.perf_counter() - start)
    return median(seconds[3:])
