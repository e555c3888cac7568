"""What took the memory that has run out, and which batch size would fit."""

import re
from contextlib import suppress
from ctypes import Structure, c_size_t
from traceback import clear_frames, walk_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from anneal.errors import first_line

WORDS = re.compile(r"can't allocate memory|out of memory|bad_alloc|ALLOC_FAILED")
EVALUATE = {"validation_step", "test_step", "predict_step"}
WAIT = FSDPModule, nn.SyncBatchNorm  # for other processes, in every forward pass
AT_ONCE = 4  # times the largest output: what a layer takes and gives, and the gradients of both
CPU, GPU = 0.5, 0.8  # how much of what is free can be used: a heap has more gaps


class Heap(Structure):
    """What glibc says of its heap; the last but one is what is free in it."""

    _fields_ = [(name, c_size_t) for name in "abcdefghij"]


def is_out_of_memory(e: BaseException) -> bool:
    """Return whether an exception says that the memory of this machine or of a GPU is full."""
    return isinstance(e, MemoryError) or (
        isinstance(e, RuntimeError) and bool(WORDS.search(str(e)))
    )


def explain(e: BaseException, model: Any = None, trainer: Any = None) -> str:
    """Return what took the memory, and which batch size would fit, as far as that can be told."""
    frames = [frame for frame, _ in walk_tb(e.__traceback__)]
    evaluates = any(frame.f_code.co_name in EVALUATE for frame in frames)
    batches = [frame.f_locals["batch"] for frame in frames if "batch" in frame.f_locals]
    firsts = [b[0] if isinstance(b, list | tuple) and b else b for b in batches]
    sizes = [(b.shape, b.dtype) for b in firsts if isinstance(b, Tensor) and b.ndim > 1]
    del frames, batches, firsts
    clear_frames(e.__traceback__)  # which hold what was computed so far
    if trainer and sizes and not any(isinstance(m, WAIT) for m in model.modules()):
        with suppress(Exception):  # no room for a few images either, or no network of images
            return _account(model, trainer, *sizes[-1], evaluates)
    return f"out of memory: lower data.batch_size or the model's size ({first_line(e)})"


def _account(model: Any, trainer: Any, size: Any, dtype: Any, evaluates: bool) -> str:
    n, device, fits = size[0], trainer.strategy.root_device, trainer.state.fn == "fit"
    model.zero_grad(set_to_none=True)
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    parts = {"weights": _bytes([*model.parameters(), *model.buffers()])}
    kept = _bytes(t for state in states for t in state.values())
    there = parts["weights"] + kept if device.type == "cpu" else 0  # else they were moved away
    if fits:
        parts["gradients"] = _bytes(p for group in groups for p in group["params"])
        moments = sum(
            _bytes(g["params"]) * (2 if "betas" in g else 1)
            for g in groups
            if "betas" in g or g.get("momentum")
        )
        parts["optimizer state"] = kept or moments
    free = _free(device) - sum(parts.values()) + there
    model.to(device)
    two, four = (
        _activations(
            model, trainer, torch.zeros(b, *size[1:], dtype=dtype, device=device), evaluates
        )
        for b in (2, 4)
    )
    parts[f"activations of {' x '.join(map(str, size))}"] = n * (four - two) // 2
    told = ", ".join(f"{name} {nbytes / 1e9:.2f} GB" for name, nbytes in parts.items())
    most = min(n // 2, int(2 * free / (four - two)))
    batch = max((b for b in range(1, most + 1) if n % b == 0), default=0)
    steps = trainer.accumulate_grad_batches * n // max(1, batch)
    same = f" --trainer.accumulate_grad_batches={steps}" if fits else ""
    advice = f"a batch of {batch} fits: --data.batch_size={batch}{same}"
    return (
        f"out of memory: {told}; {advice if batch else 'none fits: lower the model or the images'}"
    )
