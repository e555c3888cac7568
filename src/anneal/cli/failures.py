"""What ended a run, as the line that a person reads; of memory that ran out, what took it."""

import errno
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
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.module import register_module_forward_hook

from anneal import launch as processes
from anneal.errors import UserError, first_line

WORDS = re.compile(r"can't allocate memory|out of memory|bad_alloc|ALLOC_FAILED")
WAIT = FSDPModule, nn.SyncBatchNorm  # for other processes, in every forward pass
AT_ONCE = 4  # times the largest output: what a layer takes and gives, and the gradients of both
USABLE = {"cpu": 0.5}  # of what is free, for the gaps in a heap; elsewhere 0.8


class Heap(Structure):  # what glibc's mallinfo2 returns; i is what is free in it
    _fields_ = [(name, c_size_t) for name in "abcdefghij"]


def describe_failure(e: Exception) -> processes.Failure | None:
    """What a person reads of a mistake of theirs, and the exit status; None: it is a bug."""
    if found := _describe(e):
        return "; ".join([found[0], *getattr(e, "__notes__", [])]), found[1]
    return None


def _describe(e: Exception) -> processes.Failure | None:
    if isinstance(e, UserError):
        return f"error: {e}" if e.status else str(e), e.status
    if isinstance(e, MisconfigurationException):
        return f"error: {e}", 2
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"error: {e.filename or 'the run'}: {e.strerror}; free some space", 1
    if isinstance(e, PermissionError) and e.filename:
        return f"error: {e.filename}: {e.strerror}", 2
    ended = r"DataLoader worker .* (killed by signal: [\w ]+|exited unexpectedly)"
    if found := re.search(ended, f"{e} {e.__cause__}"):
        return (
            f"error: a process that reads the data: {found[1]}. Is the memory full, or /dev/shm? "
            "Lower data.num_workers or data.batch_size, or give a container more (docker run "
            "--shm-size=8g)",
            1,
        )
    if is_out_of_memory(e):
        return f"error: {explain(e)}", 1
    if processes.is_lost(e):
        what = "the connection to another process is lost: see why it ended"
        return f"error: {what} ({first_line(e)})", 1
    return None


# ---- memory


def is_out_of_memory(e: BaseException) -> bool:
    """Return whether an exception says that the memory of this machine or of a GPU is full."""
    words = isinstance(e, RuntimeError) and WORDS.search(str(e))
    return isinstance(e, MemoryError) or bool(words)


def explain(e: BaseException, model: Any = None, trainer: Any = None) -> str:
    """Return what took the memory, and which batch size would fit, as far as that can be told."""
    names = [frame.f_locals for frame, _ in walk_tb(e.__traceback__)]
    batches = [local["batch"] for local in names if "batch" in local]
    parts = [t for b in batches for t in (b if isinstance(b, list | tuple) else [b])]
    sizes = {t.numel(): (t.shape, t.dtype) for t in parts if isinstance(t, Tensor) and t.ndim > 1}
    del names, batches, parts
    e.__traceback__ = e.__context__ = None  # whose frames hold what was computed so far
    gc.collect()
    found = ""
    if trainer and sizes and not any(isinstance(m, WAIT) for m in model.modules()):
        with suppress(Exception):  # no room for four images either, or no network of images
            found = _account(model, trainer, *sizes[max(sizes)])
    reason = f"lower data.batch_size or the model's size ({first_line(e)})"
    return f"out of memory: {found or reason}"


def _account(model: Any, trainer: Any, size: Any, dtype: Any) -> str:
    """Return what `explain` does, or "" if all should have fit: something else took it."""
    n, device, trains = size[0], trainer.strategy.root_device, trainer.state.fn == "fit"
    model.zero_grad(set_to_none=True)
    groups = [group for o in trainer.optimizers for group in o.param_groups if trains]
    moments = max((2 if "betas" in g else bool(g.get("momentum")) for g in groups), default=0)
    kept = _bytes(t for o in trainer.optimizers for s in o.state.values() for t in s.values())
    parts = {"weights": _bytes([*model.parameters(), *model.buffers()])}
    there = parts["weights"] + kept if device.type == "cpu" else 0  # a trainer's end moves it there
    parts["gradients"] = sum(_bytes(group["params"]) for group in groups)
    parts["optimizer state"] = kept or moments * parts["gradients"]
    room = USABLE.get(device.type, 0.8) * _free(device) + there - sum(parts.values())
    images = [torch.zeros(b, *size[1:], dtype=dtype, device=device) for b in (2, 4)]
    two, four = (_activations(model.to(device), trainer, x) for x in images)
    if n <= (most := 2 * room / (four - two)) < math.inf:
        return ""
    parts[f"activations of {' x '.join(map(str, size))}"] = n * (four - two) // 2
    told = ", ".join(f"{name} {nbytes / 1e9:.3g} GB" for name, nbytes in parts.items() if nbytes)
    batch = max((b for b in range(1, n // 2 + 1) if n % b == 0 and b <= most), default=0)
    if not batch:
        return f"{told}; not even a batch of 1 fits: take a smaller model"
    steps = f" --trainer.accumulate_grad_batches={trainer.accumulate_grad_batches * n // batch}"
    return f"{told}; a batch of {batch} fits: --data.batch_size={batch}{steps if trains else ''}"


def _activations(model: Any, trainer: Any, images: Tensor) -> int:
    """Return the bytes that a forward pass leaves to the backward pass, and needs at once."""
    saved: list[Tensor] = []
    outputs: list[int] = []
    hook = register_module_forward_hook(lambda *args: outputs.append(_bytes(args[2:])))

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    packing = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    eager, precision = torch.compiler.set_stance("force_eager"), trainer.precision_plugin
    with eager, precision.forward_context(), packing, torch.set_grad_enabled(model.training):
        model(images)
    hook.remove()
    storages = {s.data_ptr(): s.nbytes() for s in map(Tensor.untyped_storage, saved)}
    for t in (*model.parameters(), *model.buffers()):
        storages.pop(t.untyped_storage().data_ptr(), None)
    return sum(storages.values()) + AT_ONCE * max(outputs)


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
