"""Muon for every network: torch's, on the weights it is made for, with AdamW for the rest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from anneal.errors import UserError
from anneal.optim.groups import OptimizerCallable, Rule, places
from anneal.optim.schedule import class_of


class Muon(torch.optim.Muon):
    """Muon on hidden weights, as matrices; torch's class takes the step.

    A weight of a convolution, (out, in, height, width), is a matrix (out, in * height * width), as
    in Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks".

    Args:
        params: Weights of two or more dimensions, or groups of them.
        adjust_lr_fn: How a step is scaled by a weight's shape. `match_rms_adamw`: as large as
            AdamW's, so that one learning rate does for both (Liu et al. 2025, arXiv 2502.16982,
            eq. 4). `original`: as Jordan does, with learning rates of about 0.02.
        **kwargs: Such as `lr`, `weight_decay` (decoupled, as in AdamW) and `momentum`.
    """

    def __init__(
        self, params: Any, adjust_lr_fn: str | None = "match_rms_adamw", **kwargs: Any
    ) -> None:
        params = list(params)
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        with _as_matrices(groups):
            super().__init__(groups, adjust_lr_fn=adjust_lr_fn, **kwargs)

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
    parameters = [p for g in groups for p in g["params"]]
    if any(isinstance(p, DTensor) for p in parameters):
        raise UserError("optimizer: Muon needs whole weights: set trainer.strategy=ddp")
    whole = [(p, p.data, p.grad) for p in parameters if p.ndim > 2]
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
    module: nn.Module, optimizer: OptimizerCallable | None, rules: list[Rule]
) -> tuple[OptimizerCallable | None, list[Rule]]:
    """Return optimizer and rules, in which Muon takes hidden weights and AdamW the rest.

    Both have Muon's learning rate and weight decay. Torch's own class gets a default that makes
    this right, and takes weights of any number of dimensions.
    """
    for rule in rules:
        rule.optimizer = _ours(rule.optimizer)
    if not _is_muon(optimizer):
        return optimizer, rules
    given = getattr(optimizer, "keywords", {})
    both = {"lr": given.get("lr", 1e-3), "weight_decay": given.get("weight_decay", 0.1)}
    hidden = Rule({"hidden": True}, _ours(optimizer), name="hidden")
    if not any(hidden.matches(p, place) for p, place in places(module)):
        raise UserError(
            "optimizer: Muon is for weights between the first layer and the last, and "
            f"{type(module).__name__} trains none: choose AdamW"
        )
    return partial(AdamW, **both), [*rules, hidden]


def _is_muon(make: Any) -> bool:
    return issubclass(class_of(make) or object, torch.optim.Muon)


def _ours(make: OptimizerCallable | None) -> OptimizerCallable | None:
    """Return our Muon in the place of torch's."""
    if not _is_muon(make):
        return make
    given = getattr(make, "keywords", {})
    return partial(Muon, **{k: v for k, v in given.items() if v is not None})


def flag_rules(optimizer: OptimizerCallable | None) -> list[Rule]:
    """Return the rules of pytorch_optimizer's Muons, which take AdamW's part by a flag."""
    cls = class_of(optimizer) or object
    if not cls.__module__.startswith("pytorch_optimizer.optimizer.muon"):
        return []
    hidden = {True: "hidden", False: "rest"}
    return [Rule({"hidden": h}, None, {"use_muon": h}, name) for h, name in hidden.items()]
