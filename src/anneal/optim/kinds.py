"""What some optimizers need of a training beside gradients, as their class says.

A class says it by an attribute; those of well-known names that don't are listed here.
"""

import warnings
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from anneal.errors import UserError
from anneal.optim.evaluation_weights import EvaluationWeights
from anneal.optim.exact_state import keep_exactly
from anneal.optim.joint import parts

# Attribute to names: `backward` is called with create_graph=True, for second derivatives; the
# closure is called once before each step, which only calls it for further gradients.
NAMES = {
    "needs_graph": {"AdaHessian", "Adahessian", "SophiaH"},
    "needs_gradient": {"SAM", "LookSAM", "FriendlySAM", "BSAM"},
}


def needs(optimizer: Optimizer, attribute: str) -> bool:
    """Return whether an optimizer's class has a name or an attribute that says so."""
    names = {cls.__name__ for cls in type(optimizer).__mro__}
    return bool(getattr(optimizer, attribute, names & NAMES[attribute]))


def adapt(module: LightningModule, optimizer: Optimizer) -> None:
    """Have a training give an optimizer what it needs, and keep all of its state."""
    trainer = module.trainer
    keep_exactly(optimizer)
    EvaluationWeights.attach(trainer, optimizer)
    optimizer.register_step_pre_hook(partial(_closure, trainer))
    for part in parts(optimizer):
        _flatten(part)
    vars(module).pop("backward", None)
    if any(needs(part, "needs_graph") for part in parts(optimizer)):
        if trainer.world_size > 1:
            raise UserError(
                f"{type(optimizer).__name__} needs second derivatives, which torch has in one "
                "process only: --trainer.devices=1"
            )
        module.backward = partial(_backward, type(module).backward, module)  # type: ignore[method-assign]


def _flatten(optimizer: Optimizer) -> None:
    """Have weights, and so their gradients, in a layout of which `view` makes a vector or matrix.

    Many optimizers do that; those of torch but LBFGS don't, and take channels last as well.
    """
    own = type(optimizer).__module__.startswith(("torch.", "anneal."))
    for group in optimizer.param_groups if not own or isinstance(optimizer, LBFGS) else ():
        for p in group["params"]:
            if not p.is_contiguous():
                p.data = p.data.contiguous()


def _backward(
    backward: Any, module: LightningModule, loss: Tensor, *args: Any, **kwargs: Any
) -> None:
    with warnings.catch_warnings():
        # The gradients' graph lives until they are set to None before the next step.
        warnings.filterwarnings("ignore", ".*create_graph=True", UserWarning)
        backward(module, loss, *args, **{"create_graph": True, **kwargs})


def _closure(
    trainer: Trainer, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Count how often a step calls its closure, and call it before if the gradient is needed."""
    closure, name = kwargs.get("closure"), type(optimizer).__name__
    calls = 0

    def counted() -> Any:
        nonlocal calls
        calls += 1
        if calls > 1 and trainer.accumulate_grad_batches > 1:
            raise UserError(
                f"{name} computes the loss several times a step, which can't be done for batches "
                "that are accumulated: leave out --trainer.accumulate_grad_batches"
            )
        return closure()  # type: ignore[misc]

    if needs(optimizer, "needs_gradient"):
        if closure is None:
            raise UserError(
                f"{name} computes the loss several times a step, which Lightning can't do with "
                f"--trainer.precision={trainer.precision}: use bf16-mixed or 32-true"
            )
        counted()
    return args, {**kwargs, "closure": counted} if closure else kwargs
