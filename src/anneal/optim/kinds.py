"""What some optimizers need of a training beside gradients, as their class says.

A class says it by an attribute; those of well-known names that don't are listed here.
"""

import warnings
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from anneal.errors import UserError
from anneal.optim.exact_state import keep_exactly
from anneal.optim.joint import parts

NAMES = {
    # `backward` with create_graph=True, for second derivatives
    "needs_graph": {"AdaHessian", "Adahessian", "SophiaH"},
    # a gradient before each step, which calls its closure for further ones only
    "needs_gradient": {"SAM", "LookSAM", "FriendlySAM", "BSAM"},
}
TRAINED = "training_weights"  # in the groups of a checkpoint's optimizer


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
    trainer: Any, is_part: bool, first: bool, optimizer: Optimizer, args: Any, kwargs: Any
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
            steps = "over --trainer.accumulate_grad_batches"
            raise UserError(f"{reason}: not {'beside others in rules' if is_part else steps}")
        called = True
        return closure()

    _ = once_or_alone() if first else None
    return args[:1], {**kwargs, "closure": once_or_alone} if closure else kwargs


# ---- two sets of weights: those they train on, and those to be looked at


class EvaluationWeights(Callback):
    """Show the weights of `optimizer.eval()` wherever the module is looked at.

    That is in validations, in the `state_dict` of checkpoints and after the training, as the
    schedule-free optimizers ask for. The weights of `optimizer.train()` are set aside meanwhile,
    since the way back would round them; a checkpoint has them beside the optimizer's state.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.trained: list[Tensor] = []  # while the others are shown
        optimizer.register_state_dict_post_hook(self._save)
        for part in parts(optimizer):
            part.register_load_state_dict_pre_hook(self._load)

    @classmethod
    def attach(cls, trainer: Trainer, optimizer: Optimizer) -> None:
        """Put one of these before a trainer's callbacks if the optimizer needs it."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [c for c in callbacks if not isinstance(c, cls)]
        if any(map(_has_modes, parts(optimizer))):
            if isinstance(trainer.strategy, ModelParallelStrategy):
                raise UserError(
                    f"{type(optimizer).__name__} sets whole weights aside, and trainer.strategy "
                    "keeps them in pieces: set trainer.strategy=ddp"
                )
            callbacks.insert(0, cls(optimizer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hide()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._show()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._hide()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show()

    def on_save_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        if not self.trained:
            self._show()
            shown = trainer.strategy.lightning_module_state_dict()
            checkpoint["state_dict"] = {name: t.clone() for name, t in shown.items()}
            self._hide()

    def _show(self) -> None:
        # Without a step it may not know how; in a resumed run the loaded ones are shown already.
        if self.optimizer.state and not self.trained:
            self.trained = [p.detach().clone() for p in self._parameters()]
            self._switch("eval")

    @torch.no_grad()
    def _hide(self) -> None:
        self._switch("train")
        for p, trained in zip(self._parameters(), self.trained, strict=False):
            p.copy_(trained)
        self.trained = []

    def _switch(self, mode: str) -> None:
        for part in filter(_has_modes, parts(self.optimizer)):
            getattr(part, mode)()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _save(self, _: Optimizer, saved: dict[str, Any]) -> None:
        weights = iter(self.trained or [p.detach() for p in self._parameters()])
        for group in saved["param_groups"]:
            group[TRAINED] = [next(weights) for _ in group["params"]]

    def _load(self, _: Optimizer, saved: dict[str, Any]) -> None:
        groups = saved["param_groups"]
        self.trained += [weight for group in groups for weight in group.get(TRAINED, [])]
        saved["param_groups"] = [{k: v for k, v in g.items() if k != TRAINED} for g in groups]


def _has_modes(optimizer: Optimizer) -> bool:
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))
