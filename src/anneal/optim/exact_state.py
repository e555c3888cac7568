"""What an optimizer keeps where torch's `state_dict` does not look, or not closely enough."""

from copy import deepcopy
from enum import Enum
from importlib import import_module
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.optim import Optimizer

from anneal.optim.joint import parts

KEPT = "kept_attributes"  # stands in the first group of each optimizer in a checkpoint
OBJECT = "object of class"  # begins a list that stands for one there
# What torch notes on an optimizer while it is used.
TORCHS = {"_opt_called", "_need_device_dtype_check_for_fused", "optimizers"}


def keep_exactly(optimizer: Optimizer) -> None:
    """Have an optimizer that is loaded be the one that was saved, bit for bit.

    torch's own `state_dict` has `state` and `param_groups`, and what it loads takes the type of the
    parameter. Here attributes that changed since the optimizer was built, such as a counter, are
    saved too if they are plain values, and all of `state` keeps its type; it may hold objects of
    the optimizer's own package.
    """
    built = [_attributes(part) for part in parts(optimizer)]
    packages = {type(part).__module__.partition(".")[0] for part in parts(optimizer)} - {"torch"}

    def save(_: Optimizer, saved: dict[str, Any]) -> None:
        saved.update({key: _encoded(saved[key], packages) for key in ("state", "param_groups")})
        groups = iter(saved["param_groups"])
        for part, before in zip(parts(optimizer), built, strict=True):
            first, *_rest = [next(groups) for _ in part.param_groups]
            now = _attributes(part).items()
            if changed := {k: v for k, v in now if not is_same(v, before.get(k, KEPT))}:
                first[KEPT] = changed

    optimizer.register_state_dict_post_hook(save)
    for part in parts(optimizer):
        _load_exactly(part, packages)


def _load_exactly(optimizer: Optimizer, packages: set[str]) -> None:
    stored: dict[str, Any] = {}

    def take(_: Optimizer, saved: dict[str, Any]) -> None:
        device = optimizer.param_groups[0]["params"][0].device
        read = _decoded(saved["state"], packages, device)
        saved["state"].update(read)  # in place: whoever has called torch reads it, too
        stored.update(saved)
        groups = _decoded(saved["param_groups"], packages, device)
        saved["param_groups"] = [{k: v for k, v in g.items() if k != KEPT} for g in groups]

    def restore(_: Optimizer) -> None:
        groups, state = stored["param_groups"], optimizer.state
        vars(optimizer).update(deepcopy(groups[0].get(KEPT, {})))
        ids = [i for group in groups for i in group["params"]]
        ps = [p for group in optimizer.param_groups for p in group["params"]]
        for i, p in zip(ids, ps, strict=True):
            if i in stored["state"]:
                state[p] = _typed(state[p], stored["state"][i])
        stored.clear()

    optimizer.register_load_state_dict_pre_hook(take)
    optimizer.register_load_state_dict_post_hook(restore)


def _attributes(optimizer: Optimizer) -> dict[str, Any]:
    """Return copies of an optimizer's own attributes that are plain values."""
    if type(optimizer).__module__.startswith("torch."):
        return {}
    torchs = TORCHS | vars(Optimizer([Tensor()], {})).keys()
    return {k: deepcopy(v) for k, v in vars(optimizer).items() if k not in torchs and is_plain(v)}


def is_plain(value: Any) -> bool:
    """Return whether a value is of numbers, texts and tensors only."""
    if type(value) is dict:
        return all(isinstance(k, str | int) and is_plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    if isinstance(value, Tensor):
        return not value.requires_grad  # else it is one that is trained
    return value is None or type(value) in (bool, int, float, str)


def is_same(a: Any, b: Any) -> bool:
    """Return whether two plain values are equal, of the same type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return bool(a == b)


def _encoded(value: Any, packages: set[str]) -> Any:
    """Return a state in which lists stand for objects, which no checkpoint may hold."""
    if type(value) is dict:
        return {k: _encoded(v, packages) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_encoded(v, packages) for v in value)
    cls = type(value)
    if cls.__module__.partition(".")[0] in packages:
        holds = value.value if isinstance(value, Enum) else _encoded(vars(value), packages)
        return [OBJECT, f"{cls.__module__}.{cls.__qualname__}", holds]
    return value


def _decoded(value: Any, packages: set[str], device: torch.device) -> Any:
    if type(value) is dict:
        return {k: _decoded(v, packages, device) for k, v in value.items()}
    if type(value) not in (list, tuple):
        return value
    values = type(value)(_decoded(v, packages, device) for v in value)
    if not (values and isinstance(values[0], str) and values[0] == OBJECT):
        return values
    module, _, name = values[1].rpartition(".")
    if module.partition(".")[0] not in packages:
        return values
    cls = getattr(import_module(module), name)
    if issubclass(cls, Enum):
        return cls(values[2])
    made = object.__new__(cls)
    vars(made).update(apply_to_collection(values[2], Tensor, lambda t: t.to(device)))
    return made


def _typed(loaded: Any, saved: Any) -> Any:
    """Return what torch has loaded, with the types that were saved."""
    if isinstance(saved, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(saved, dict):
        return {k: _typed(loaded[k], v) for k, v in saved.items()}
    if isinstance(saved, list | tuple):
        return type(saved)(map(_typed, loaded, saved))
    return saved
