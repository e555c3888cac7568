"""Optimizers of a user's own that need more of a training than gradients, one of each kind."""

from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer


class Twice(Optimizer):
    """Computes the loss again in the middle of a step."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        for _ in range(2):
            with torch.enable_grad():
                loss = closure()
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] / 2 * p.grad
        return loss


class Ascent(Optimizer):
    """Sharpness-aware: from the gradient that is there it climbs, and computes the loss again."""

    needs_gradient = True

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        every = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in every]
        for p in every:
            p += 0.05 * p.grad.sign()
        with torch.enable_grad():
            closure()
        for p, old in zip(every, before, strict=True):
            p.copy_(old - self.param_groups[0]["lr"] * p.grad)


class Curved(Optimizer):
    """Divides the gradient by its own derivative."""

    needs_graph = True

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        loss = closure() if closure else None
        every = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in every]
        second = torch.autograd.grad(grads, every, [torch.ones_like(g) for g in grads])
        with torch.no_grad():
            for p, h in zip(every, second, strict=True):
                p -= self.param_groups[0]["lr"] * p.grad / (1 + h.abs())
        return loss


class TwoModes(Optimizer):
    """Schedule-free SGD, looked at in bfloat16: the way there and back rounds."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.mode, self.k = "eval", 0

    def train(self):
        self._go("train", 0.1)

    def eval(self):
        self._go("eval", 1 - 1 / 0.9)

    @torch.no_grad()
    def _go(self, mode, weight):
        if self.mode != mode:
            self.mode = mode
            for group in self.param_groups if self.k else ():
                for p in group["params"]:
                    p.lerp_(self.state[p]["z"], weight)
                    p.copy_(p.bfloat16() if mode == "eval" else p)

    @torch.no_grad()
    def step(self, closure=None):
        if self.mode != "train":
            raise RuntimeError("not in train mode")
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure()
        self.k += 1
        for group in self.param_groups:
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, 1 / self.k).add_(
                    p.grad, alpha=group["lr"] * (0.9 * (1 - 1 / self.k) - 1)
                )
                z.sub_(p.grad, alpha=group["lr"])
        return loss


class Notes:
    """What an optimizer may keep of a parameter: an object of its own."""

    def __init__(self, like: Tensor) -> None:
        self.steps, self.total = 0, torch.zeros_like(like)


class Way(IntEnum):
    """What an optimizer may keep in a parameter group."""

    DOWN = 1


class Keeps(Optimizer):
    """Keeps something everywhere it can: each changes the next step."""

    def __init__(self, params, lr=0.1, beta=0.5):
        super().__init__(params, {"lr": lr, "beta": beta, "d": 1.0, "way": Way.DOWN})
        self.count, self._norms, self.last = 0, [], None

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure()
        self.count += 1
        for group in self.param_groups:
            group["beta"] *= 0.99  # an argument
            group["d"] += 0.125  # none
            for p in group["params"]:
                state: dict[str, Any] = self.state[p]
                if not state:
                    state["seen"] = torch.tensor(2**24)  # float32 has no 2 ** 24 + 1
                    state["mean"] = torch.zeros_like(p, dtype=torch.float64)
                    state["mask"] = torch.ones_like(p, dtype=torch.bool)
                    state["how"], state["notes"] = "up", Notes(p)
                state["seen"] += 1
                state["mean"].lerp_(p.grad.double(), 0.1)
                state["how"] = "down" if state["how"] == "up" else "up"
                state["mask"] ^= p.grad > 0
                state["notes"].steps += 1
                state["notes"].total += p.grad
                self._norms = [*self._norms[-2:], float(p.grad.norm())]
                self.last = p.grad.sum()
                rate = (
                    group["lr"] * group["beta"] * group["d"] / (1 + self.count + sum(self._norms))
                )
                rate *= 1 + int(state["seen"] % 3) + (state["how"] == "up")
                rate *= 1 if group["way"] is Way.DOWN else -1
                p -= rate * (state["mean"].float() * state["mask"] + p.grad)
                p -= 0.01 * rate * state["notes"].total * self.last.sign()
        return loss


class Around(SGD):
    """One that has arguments its base takes, too, without a type."""

    def __init__(self, params, lr=0.1, **kwargs):
        super().__init__(params, lr=lr, **kwargs)
