"""What took the memory that has run out, and which batch size would fit."""

import gc
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from ctypes import CDLL, Structure, c_size_t
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.module import register_module_forward_hook

from anneal.errors import first_line

WORDS = re.compile(r"can't allocate memory|out of memory|bad_alloc|ALLOC_FAILED")
EVALUATE = {"validation_step", "test_step", "predict_step"}
WAIT = FSDPModule, nn.SyncBatchNorm  # for other processes, in every forward pass
AT_ONCE = 4  # times the largest output: what a layer takes and gives, and the gradients of both
CPU, GPU = 0.5, 0.8  # of what is free: a heap has more gaps


class Heap(Structure):
    """What glibc's mallinfo2 tells; `i` is what is free in the heap."""

    _fields_ = [(name, c_size_t) for name in "abcdefghij"]


def is_out_of_memory(e: BaseException) -> bool:
    """Return whether an exception says that the memory of this machine or of a GPU is full."""
    words = isinstance(e, RuntimeError) and WORDS.search(str(e))
    return isinstance(e, MemoryError) or bool(words)


def explain(e: BaseException, model: Any = None, trainer: Any = None) -> str:
    """Return what took the memory, and which batch size would fit, as far as that can be told."""
    frames = [frame for frame, _ in walk_tb(e.__traceback__)]
    evaluates = any(frame.f_code.co_name in EVALUATE for frame in frames)
    batches = [frame.f_locals["batch"] for frame in frames if "batch" in frame.f_locals]
    firsts = [b[0] if isinstance(b, list | tuple) and b else b for b in batches]
    sizes = [(b.shape, b.dtype) for b in firsts if isinstance(b, Tensor) and b.ndim > 1]
    del frames, batches, firsts
    e.__traceback__ = e.__context__ = None  # whose frames hold what was computed so far
    gc.collect()
    if trainer and sizes and not any(isinstance(m, WAIT) for m in model.modules()):
        with suppress(Exception):  # no room for a few images either, or no network of images
            return _account(model, trainer, *sizes[-1], evaluates)
    return f"out of memory: lower data.batch_size or the model's size ({first_line(e)})"


def _account(model: Any, trainer: Any, size: Any, dtype: Any, evaluates: bool) -> str:
    n, device, trains = size[0], trainer.strategy.root_device, trainer.state.fn == "fit"
    on_cpu = device.type == "cpu"
    model.zero_grad(set_to_none=True)
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    kept = _bytes(t for state in states for t in state.values())
    parts = {"weights": _bytes([*model.parameters(), *model.buffers()])}
    there = parts["weights"] + kept if on_cpu else 0  # a trainer that ends moves them there
    if trains:
        parts["gradients"] = _bytes(p for group in groups for p in group["params"])
        moments = [(2 if "betas" in g else bool(g.get("momentum")), g["params"]) for g in groups]
        parts["optimizer state"] = kept or sum(m * _bytes(params) for m, params in moments)
    room = (CPU if on_cpu else GPU) * _free(device) + there - sum(parts.values())
    model.to(device)
    images = [torch.zeros(b, *size[1:], dtype=dtype, device=device) for b in (2, 4)]
    two, four = (_activations(model, trainer, each, evaluates) for each in images)
    parts[f"activations of {' x '.join(map(str, size))}"] = n * (four - two) // 2
    most = int(min(n // 2, 2 * room / (four - two)))
    batch = max((b for b in range(1, most + 1) if n % b == 0), default=0)
    advice = "not even a batch of 1 fits: take a smaller model or smaller images"
    if batch:
        advice = f"a batch of {batch} fits: --data.batch_size={batch}"
        steps = trainer.accumulate_grad_batches * n // batch
        advice += f" --trainer.accumulate_grad_batches={steps}" if trains else ""
    told = ", ".join(f"{name} {nbytes / 1e9:.3g} GB" for name, nbytes in parts.items() if nbytes)
    return f"out of memory: {told}; {advice}"


def _activations(model: Any, trainer: Any, images: Tensor, evaluates: bool) -> int:
    """Return the bytes that a forward pass leaves to the backward pass, and needs at once."""
    saved: dict[int, int] = {}
    outputs: list[int] = []

    def keep(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    hook = register_module_forward_hook(lambda *args: outputs.append(_bytes(args[2:])))
    packing = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    eager, precision = torch.compiler.set_stance("force_eager"), trainer.precision_plugin
    with eager, precision.forward_context(), packing, torch.set_grad_enabled(not evaluates):
        result = model(images)  # while it is there, no two of what it keeps have one address
    hook.remove()
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), result]}
    return sum(n for place, n in saved.items() if place not in own) + AT_ONCE * max(outputs)


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


def _free(device: torch.device) -> float:
    """Return the bytes that this process can still take; infinite if nobody tells."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info(device)[0])
    with suppress(Exception):  # no Linux
        import resource

        free = 1024 * int(Path("/proc/meminfo").read_text().split()[7])  # MemAvailable
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        mallinfo = CDLL(None).mallinfo2
        mallinfo.restype = Heap
        return min(free, limit - used + mallinfo().i) if limit != resource.RLIM_INFINITY else free
    return math.inf
