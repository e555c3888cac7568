"""An exported classifier: one file, of ONNX or of torch.export, read back and run."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from anneal.errors import UserError

ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2"}
INPUT, OUTPUT = "pixels", "probabilities"
# What a file says of itself, all of it text: class_names and shape in JSON, config in YAML.
KEYS = ("class_names", "shape", "input", "output", "run", "checkpoint", "config")


@dataclass
class Exported:
    """A classifier in a file.

    Args:
        path: The file.
        about: What it says of itself, by `KEYS`.
        compute: From pixels (N, C, H, W) uint8 to probabilities (N, classes) float32, on the CPU.
    """

    path: Path
    about: dict[str, str]
    compute: Callable[[Tensor], Tensor]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return probabilities (N, classes); raise UserError for pixels that it does not take."""
        shape = json.loads(self.about["shape"])
        if list(pixels.shape[1:]) != shape or pixels.dtype != torch.uint8:
            raise UserError(
                f"{self.path} takes pixels of shape {shape} and type torch.uint8, and the data "
                f"gives {list(pixels.shape[1:])} and {pixels.dtype}"
            )
        with torch.autocast("cpu", enabled=False):  # the file's own precision, not the run's
            return self.compute(pixels.cpu().contiguous())


class ExportedClassifier(LightningModule):
    """Exported file as `predict` takes it.

    Args:
        exported: The file.
        top_k: How many classes of a sample are written.
    """

    def __init__(self, exported: Exported, top_k: int) -> None:
        super().__init__()
        self.exported = exported
        self.top_k = top_k
        self.class_names = json.loads(exported.about["class_names"])

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return probabilities (N, classes)."""
        return self.exported(batch[0])


def is_exported(path: Path) -> bool:
    """Return whether a file is an exported one by the ending of its name."""
    return path.suffix in ENDINGS.values()


def read(path: Path) -> Exported:
    """Read a file that `export` wrote.

    Raises:
        UserError: It is damaged or something else, or onnxruntime is not installed.
    """
    try:
        about, compute = _read_onnx(path) if path.suffix == ".onnx" else _read_torch(path)
    except ImportError as e:
        raise UserError(f"{path} is run by onnxruntime: pip install -e '.[export]'") from e
    except Exception as e:  # a damaged file ends in one of a dozen types
        reason = str(e).strip().splitlines()[0][:120] if str(e).strip() else type(e).__name__
        raise UserError(f"{path} is damaged, or no exported network ({reason})") from e
    if not about.get("shape"):
        raise UserError(f"{path} is not from export: it does not say what it takes")
    return Exported(path, about, compute)


def _read_onnx(path: Path) -> tuple[dict[str, str], Callable[[Tensor], Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def compute(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])

    return session.get_modelmeta().custom_metadata_map, compute


def _read_torch(path: Path) -> tuple[dict[str, str], Callable[[Tensor], Tensor]]:
    about = dict.fromkeys(KEYS, "")
    return about, torch.export.load(path, extra_files=about).module()
