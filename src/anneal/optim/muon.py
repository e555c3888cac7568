"""Muon for every network: torch's, on the weights it is made for, with AdamW for the rest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from anneal.optim.groups import OptimizerCallable, Rule
from anneal.optim.schedule import class_of


class Muon(torch.optim.Muon):
    """torch's Muon, on weights of two or more dimensions.

    A weight of a convolution, (out, in, height, width), is a matrix (out, in * height * width), as
    in Jordan's own (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
    """

    def __init__(self, params: Any, **kwargs: Any) -> None:
        params = list(params)
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        with _as_matrices(groups):
            super().__init__(groups, **kwargs)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; a closure's network has the shapes it always has."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with _as_matrices(self.param_groups):
            super().step()  # type: ignore[no-untyped-call]
        return loss


@contextmanager
def _as_matrices(groups: list[dict[str, Any]]) -> Iterator[None]:
    """Show parameters and their gradients as matrices, in the same memory."""
    whole = [(p, p.data, p.grad) for g in groups for p in g["params"] if p.ndim > 2]
    for p, data, grad in whole:
        p.grad = None  # it has to have the shape of its parameter
        p.data = _matrix(data, data)
        p.grad = None if grad is None else _matrix(grad, data)
    try:
        yield
    finally:
        for p, data, grad in whole:
            p.grad = None
            p.data, p.grad = data, grad


def _matrix(t: Tensor, like: Tensor) -> Tensor:
    """Return (out, rest) of a tensor; with the channels last if these are last in memory.

    The order of the columns makes no difference to Muon.
    """
    return (t if like.is_contiguous() else t.movedim(1, -1)).flatten(1)


def with_muon(
    optimizer: OptimizerCallable | None, rules: list[Rule]
) -> tuple[OptimizerCallable | None, list[Rule]]:
    """Return optimizer and rules, in which torch's Muon takes hidden weights and AdamW the rest.

    Learning rate and weight decay are the same for both: unless `adjust_lr_fn` says otherwise,
    Muon's step is scaled to be as large as AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4).
    """
    for rule in rules:
        rule.optimizer = _ours(rule.optimizer)
    if not _is_muon(optimizer):
        return optimizer, rules
    given = getattr(optimizer, "keywords", {})
    both = {"lr": given.get("lr", 1e-3), "weight_decay": given.get("weight_decay", 0.1)}
    hidden = Rule({"hidden": True}, _ours(optimizer), name="hidden")
    return partial(AdamW, **both), [*rules, hidden]


def _is_muon(make: Any) -> bool:
    return issubclass(class_of(make) or object, torch.optim.Muon)


def _ours(make: OptimizerCallable | None) -> OptimizerCallable | None:
    """Return a Muon for weights of any number of dimensions in the place of torch's."""
    if not _is_muon(make):
        return make
    given = dict(getattr(make, "keywords", {}))
    given["adjust_lr_fn"] = given.get("adjust_lr_fn") or "match_rms_adamw"
    return partial(Muon, **given)


def flag_rules(optimizer: OptimizerCallable | None) -> list[Rule]:
    """Return the rules of pytorch_optimizer's Muons, which take AdamW's part by a flag."""
    cls = class_of(optimizer) or object
    if not cls.__module__.startswith("pytorch_optimizer.optimizer.muon"):
        return []
    hidden = {True: "hidden", False: "rest"}
    return [Rule({"hidden": h}, None, {"use_muon": h}, name) for h, name in hidden.items()]
