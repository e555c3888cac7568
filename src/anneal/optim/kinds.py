"""What some optimizers need of a training beside gradients, as their class says.

A class says it by an attribute; those of well-known names that don't are listed here.
"""

import warnings
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from anneal.errors import UserError
from anneal.optim.evaluation_weights import EvaluationWeights
from anneal.optim.exact_state import keep_exactly
from anneal.optim.joint import parts

NAMES = {
    # `backward` with create_graph=True, for second derivatives
    "needs_graph": {"AdaHessian", "Adahessian", "SophiaH"},
    # a gradient before each step, which calls its closure for further ones only
    "needs_gradient": {"SAM", "LookSAM", "FriendlySAM", "BSAM"},
}


def needs(optimizer: Optimizer, attribute: str) -> bool:
    """Return whether an optimizer's class has a name or an attribute that says so."""
    names = {cls.__name__ for cls in type(optimizer).__mro__}
    return bool(getattr(optimizer, attribute, names & NAMES[attribute]))


def adapt(module: LightningModule, optimizer: Optimizer) -> None:
    """Have a training give an optimizer what it needs, and keep all of its state."""
    keep_exactly(optimizer)
    EvaluationWeights.attach(module.trainer, optimizer)
    own = parts(optimizer)
    vars(module).pop("backward", None)
    for part in own:
        _flatten(part)
        first = needs(part, "needs_gradient")
        part.register_step_pre_hook(partial(_closure, module.trainer, len(own) > 1, first))
        if needs(part, "needs_graph"):
            if module.trainer.world_size > 1 or module.trainer.precision == "16-mixed":
                raise UserError(
                    f"{type(part).__name__} needs second derivatives, which are right in one "
                    "process and without a scaled loss only: --trainer.devices=1, no 16-mixed"
                )
            with_graph: Any = partial(_backward, type(module).backward, module)
            module.backward = with_graph  # type: ignore[method-assign]


def _flatten(optimizer: Optimizer) -> None:
    """Have weights, and so their gradients, in a layout of which `view` makes a vector or matrix.

    Many optimizers do that; those of torch but LBFGS don't, and take channels last as well.
    """
    own = type(optimizer).__module__.startswith(("torch.", "anneal."))
    for group in optimizer.param_groups if not own or isinstance(optimizer, LBFGS) else ():
        for p in group["params"]:
            if not p.is_contiguous():
                p.data = p.data.contiguous()


def _backward(backward: Any, module: LightningModule, loss: Tensor, *args: Any) -> None:
    with warnings.catch_warnings():
        # The gradients' graph lives until they are set to None before the next step.
        warnings.filterwarnings("ignore", ".*create_graph=True", UserWarning)
        backward(module, loss, *args, create_graph=True)


def _closure(
    trainer: Any,
    is_part: bool,
    first: bool,
    optimizer: Optimizer,
    args: Any,
    kwargs: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Call a step's closure `first` if it needs a gradient; refuse two calls where wrong."""
    closure = kwargs.get("closure") or (args[1:] and args[1])
    called = False
    reason = f"{type(optimizer).__name__} computes the loss several times a step"
    if first and not closure:
        raise UserError(f"{reason}: not with --trainer.precision={trainer.precision}")

    def once_or_alone() -> Any:
        nonlocal called
        if called and (is_part or trainer.accumulate_grad_batches > 1):
            where = (
                "beside others in rules" if is_part else "over --trainer.accumulate_grad_batches"
            )
            raise UserError(f"{reason}: not {where}")
        called = True
        return closure()

    _ = once_or_alone() if first else None
    return args[:1], {**kwargs, "closure": once_or_alone} if closure else kwargs
