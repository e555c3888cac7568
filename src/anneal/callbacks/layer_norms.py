"""How long the weights, gradients and updates of each layer are, on request."""

import math

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from anneal.lightning_internals import logged_step, unscales
from anneal.progress import is_logged, log


class LayerNorms:
    """Log the norms of each layer's weights, gradient and update, in the steps that are logged.

    A layer is a module with parameters of its own, of which those with a gradient count. Weights
    are those before the step, gradients those before clipping. Nothing is read from a GPU before
    `NonFiniteGuard` waits for it anyway; other steps cost nothing.
    """

    def __init__(self) -> None:
        # By name: the parameter, its value before the step, the norm of its gradient.
        self._kept: dict[str, tuple[nn.Parameter, Tensor, Tensor]] = {}

    def before_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Keep what a step that is logged starts from; of several in a batch, the first."""
        if not is_logged(trainer, logged_step(trainer) + 1):
            return
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        scaler = getattr(trainer.precision_plugin, "scaler", None) if unscales(optimizer) else None
        for name, p in module.named_parameters():
            if id(p) in own and p.grad is not None and name not in self._kept:
                norm = _norm(p.grad.detach())
                norm = norm / scaler.scale(torch.ones_like(norm)) if scaler else norm
                self._kept[name] = p, p.detach().clone(), norm

    def log(self, trainer: Trainer) -> None:
        """Log the norms of the step that was just made, if it is one that is logged."""
        kept, self._kept = self._kept, {}
        if not kept:
            return
        rows = [torch.stack([_norm(w), g, _norm(p.detach() - w)]) for p, w, g in kept.values()]
        layers: dict[str, list[list[float]]] = {}
        for name, row in zip(kept, torch.stack(rows).tolist(), strict=True):
            layers.setdefault(name.rpartition(".")[0] or "module", []).append(row)
        values = {}
        for layer, of_parameters in layers.items():
            norms = [math.hypot(*column) for column in zip(*of_parameters, strict=True)]
            for what, value in zip(("weight", "gradient", "update"), norms, strict=True):
                values[f"norms/{layer}/{what}"] = value
            if norms[0]:
                values[f"norms/{layer}/ratio"] = norms[2] / norms[0]
        log(trainer, values)


def _norm(value: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(value).float()
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
