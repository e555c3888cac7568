"""Several optimizers that act as one, each on parameter groups of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from anneal.errors import UserError


class JointOptimizer(Optimizer):
    """Several optimizers as one: one schedule over all their groups, one step, one state.

    Groups and state are the optimizers' own, in their order. A group that is added later is the
    last one's.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers: list[Optimizer] = []
        super().__init__([group for o in optimizers for group in o.param_groups], {})
        for optimizer in optimizers:
            self.state.update(optimizer.state)
        self.optimizers = list(optimizers)
        self._share()

    def _share(self) -> None:
        """Have all optimizers look up their state in one place."""
        for optimizer in self.optimizers:
            optimizer.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of each optimizer, on the gradients of one closure."""
        loss: Any = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            _ = optimizer.step(lambda: loss) if closure else optimizer.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the last optimizer."""
        if self.optimizers:
            self.optimizers[-1].add_param_group(param_group)
            param_group = self.optimizers[-1].param_groups[-1]
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load each optimizer's part of the state as it does by itself."""
        groups = iter(state_dict["param_groups"])
        if len(state_dict["param_groups"]) != len(self.param_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        state: dict[Any, Any] = {}
        for optimizer in self.optimizers:
            own = [next(groups) for _ in optimizer.param_groups]
            ids = {i for group in own for i in group["params"]}
            part = {i: values for i, values in state_dict["state"].items() if i in ids}
            optimizer.load_state_dict({"state": part, "param_groups": own})
            state |= optimizer.state
        self.state.clear()
        self.state.update(state)
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]
        self._share()


def parts(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that act as one, or the one there is."""
    return optimizer.optimizers if isinstance(optimizer, JointOptimizer) else [optimizer]


def with_owners(optimizer: Optimizer) -> list[tuple[dict[str, Any], Optimizer]]:
    """Return each parameter group with the optimizer that steps it."""
    return [(group, part) for part in parts(optimizer) for group in part.param_groups]


def joined(optimizers: Sequence[Optimizer]) -> Optimizer:
    """Return the optimizer there is, or several as one."""
    if len(optimizers) == 1:
        return optimizers[0]
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UserError("rules: LBFGS computes the loss several times a step: it goes alone")
        if any(isinstance(p, DTensor) for g in optimizer.param_groups for p in g["params"]):
            raise UserError("rules: several optimizers need whole weights: trainer.strategy=ddp")
    return JointOptimizer(optimizers)
