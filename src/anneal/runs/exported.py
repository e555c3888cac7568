"""An exported network: one file, of ONNX or of torch.export, read back and run.

torch.export runs what a file holds in four places: its pickles, the names of its operators, and
sizes and guards, which are Python expressions. Each is checked, so that a stranger's file can
compute and do nothing else.
"""

import json
import os
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zipfile import ZipFile

import torch
from torch import Tensor

from anneal.errors import UserError, first_line

ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2"}
# What a file says of itself, all of it text: the first three in JSON, config in YAML.
KEYS: tuple[str, ...] = ("class_names", "shape", "task_state", "dtype", "task", "input", "output")
KEYS += ("run", "checkpoint", "config")

OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|higher_order)\.\w+(\.\w+)?|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(add|sub|mul|neg|truediv|floordiv|mod|pow|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
)
# In a size or a guard: sympy's classes, symbols, and what is asked of a tensor.
NAME = re.compile(r"[A-Z][a-z]\w+|L|[su]\d+|size|stride")
WORD, NO_NAME = re.compile(r"[^\W\d]\w*"), re.compile(r"'\w*'|\w+=(True|False)")
ONNX_END = b"\x72\x11\x0a\x05crc32\x12\x08"  # one more entry of its metadata, of 8 digits


@dataclass
class Exported:
    """A network in a file."""

    path: Path
    about: dict[str, str]  # what it says of itself, by KEYS
    # From a batch, such as pixels (N, C, H, W) uint8, to outputs (N, ...) float32, on the CPU.
    compute: Callable[[Tensor], Tensor]

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the outputs of a batch; raise UserError for one that the file does not take."""
        shape, dtype = json.loads(self.about["shape"]), self.about.get("dtype") or "torch.uint8"
        if list(batch.shape[1:]) != shape or str(batch.dtype) != dtype:
            raise UserError(
                f"{self.path} takes inputs of shape {shape} and type {dtype}, and the data gives "
                f"{list(batch.shape[1:])} and {batch.dtype}"
            )
        with torch.autocast("cpu", enabled=False):  # the file's own precision, not the run's
            return self.compute(batch.cpu().contiguous())


def is_exported(path: Path) -> bool:
    """Return whether a file is an exported one by the ending of its name."""
    return path.suffix in ENDINGS.values()


def read(path: Path) -> Exported:
    """Read a file that `export` wrote; raise UserError if it is damaged or something else."""
    try:
        about, compute = _read_onnx(path) if path.suffix == ".onnx" else _read_torch(path)
    except ImportError as e:
        raise UserError(f"{path} is run by onnxruntime: pip install -e '.[export]'") from e
    except Exception as e:  # a damaged file ends in one of a dozen types
        reason = first_line(e)[:120]
        raise UserError(f"{path} is damaged, or no exported network ({reason})") from e
    if not about.get("shape"):
        raise UserError(f"{path} is not from export: it does not say what it takes")
    return Exported(path, about, compute)


def seal_onnx(path: Path) -> None:
    """Append the checksum of all before it, as one more entry of the metadata."""
    with path.open("r+b") as file:
        crc = zlib.crc32(file.read())
        file.write(ONNX_END + b"%08x" % crc)


def _read_onnx(path: Path) -> tuple[dict[str, str], Callable[[Tensor], Tensor]]:
    import onnxruntime

    content = path.read_bytes()
    body, end = content[: -len(ONNX_END) - 8], content[-len(ONNX_END) - 8 :]
    if end.startswith(ONNX_END) and end[-8:] != b"%08x" % zlib.crc32(body):
        raise ValueError("its checksum is another one")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def compute(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0])

    return session.get_modelmeta().custom_metadata_map, compute


def _read_torch(path: Path) -> tuple[dict[str, str], Callable[[Tensor], Tensor]]:
    about = dict.fromkeys(KEYS, "")
    _check_archive(path)
    with patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}):  # of pickles
        return about, torch.export.load(path, extra_files=about).module()


def _check_archive(path: Path) -> None:
    """Raise ValueError if an archive is damaged, or holds what is no arithmetic on tensors."""
    with ZipFile(path) as file:
        if damaged := file.testzip():
            raise ValueError(f"{damaged} is not what was written")
        for entry in file.infolist():
            if "_obj_" in entry.filename:
                raise ValueError(f"{entry.filename} is a pickled object")
            content = file.read(entry)
            if content.lstrip()[:1] == b"{":
                with suppress(UnicodeDecodeError, json.JSONDecodeError):  # bytes of a weight
                    json.loads(content, object_hook=_check_node)


def _check_node(node: dict[str, Any]) -> dict[str, Any]:
    operators = [node[key] for key in ("target", "as_operator") if key in node]
    sizes = [node["expr_str"]] if "expr_str" in node else []
    wrong = [text for text in operators if text and not OPERATOR.fullmatch(str(text))]
    wrong += [text for text in [*sizes, *node.get("guards_code", [])] if _is_code(str(text))]
    if wrong:
        raise ValueError(f"it would run {str(wrong[0])[:60]!r}, which is no arithmetic")
    return node


def _is_code(expression: str) -> bool:
    """Whether an expression has a name in it that is none of sizes and their arithmetic."""
    return any(not NAME.fullmatch(n) for n in WORD.findall(NO_NAME.sub("", expression)))
