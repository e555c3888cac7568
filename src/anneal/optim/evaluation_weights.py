"""Optimizers with two sets of weights: those they train on, and those to be looked at."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from anneal.errors import UserError
from anneal.optim.joint import parts

TRAINED = "training_weights"  # in the groups of a checkpoint's optimizer


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
