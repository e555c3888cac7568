"""Learning-rate schedulers by short name: torch's own, with lengths that may follow, and WSD.

A parameter that is None here (`T_max`, `total_steps`, `total_iters`, `max_lr`, `mode`) is worked
out when training starts, by `Schedule.build` in `anneal.optim.schedule`. Everything else is
torch's: formulas, and further arguments by `**kwargs`.
"""

import math
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from anneal.optim.joint import JointOptimizer
from anneal.runs.drops import branch_steps


class CosineAnnealingLR(lr_scheduler.CosineAnnealingLR):
    """Half a cosine from the learning rate given down to `eta_min`: SGDR without restarts.

    lr(t) = eta_min + (lr - eta_min) (1 + cos(pi t / T_max)) / 2
    (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5)

    Args:
        optimizer: Given by the run.
        T_max: Length in the schedule's interval; None: from the end of the warmup to the end of
            the run.
        **kwargs: Such as `eta_min`.
    """

    def __init__(self, optimizer: Optimizer, T_max: int | None = None, **kwargs: Any):
        super().__init__(optimizer, _known(T_max), **kwargs)


class OneCycleLR(lr_scheduler.OneCycleLR):
    """Up to the optimizer's learning rate and far down again, momentum the other way round.

    (Smith and Topin 2018, arXiv 1708.07120)

    Args:
        optimizer: Given by the run.
        max_lr: Peak; None: the optimizer's `lr`.
        total_steps: Length in the schedule's interval (by default optimizer steps); None: to the
            end of the run.
        cycle_momentum: Whether momentum (beta1 in Adam) falls while the learning rate rises; not
            that of several optimizers as one.
        **kwargs: Such as `pct_start`, `div_factor` and `final_div_factor`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | None = None,
        total_steps: int | None = None,
        cycle_momentum: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            optimizer,
            [g["lr"] for g in optimizer.param_groups] if max_lr is None else max_lr,
            _known(total_steps),
            cycle_momentum=cycle_momentum and not isinstance(optimizer, JointOptimizer),
            **kwargs,
        )


class PolynomialLR(lr_scheduler.PolynomialLR):
    """lr(t) = lr (1 - t / total_iters) ** power; power 1 is the straight line to zero.

    Args:
        optimizer: Given by the run.
        total_iters: Length in the schedule's interval; None: to the end of the run.
        **kwargs: Such as `power`.
    """

    def __init__(self, optimizer: Optimizer, total_iters: int | None = None, **kwargs: Any):
        super().__init__(optimizer, _known(total_iters), **kwargs)


class LinearLR(lr_scheduler.LinearLR):
    """A straight line from lr * start_factor to lr * end_factor.

    For a warmup use the schedule's `warmup_epochs` or `warmup_steps`: it goes in front of any
    scheduler.

    Args:
        optimizer: Given by the run.
        start_factor: Factor at the start, 0 < factor <= 1.
        end_factor: Factor at the end, 0 to 1.
        total_iters: Length in the schedule's interval; None: to the end of the run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0,
        end_factor: float = 0.0,
        total_iters: int | None = None,
    ):
        super().__init__(optimizer, start_factor, end_factor, _known(total_iters))


class ReduceLROnPlateau(lr_scheduler.ReduceLROnPlateau):
    """Multiply the learning rate by `factor` when the schedule's `monitor` stops getting better.

    Patience counts validations. (He et al. 2015, arXiv 1512.03385, section 3.4: "divided by 10
    when the error plateaus")

    Args:
        optimizer: Given by the run.
        mode: Whether lower (`min`) or higher (`max`) is better; None: as the metric's name says.
        **kwargs: Such as `factor`, `patience` and `min_lr`.
    """

    def __init__(
        self, optimizer: Optimizer, mode: Literal["min", "max"] | None = None, **kwargs: Any
    ):
        super().__init__(optimizer, _known(mode), **kwargs)


class WSD(LRScheduler):
    """Warmup, stable, decay: the learning rate stays what it is and falls to 0 in the last part.

    lr(t) = lr (1 - sqrt(t)), t from 0 to 1 over the decay; or lr (1 - t), or half a cosine
    (Hu et al. 2024, arXiv 2404.06395; the shapes in Haegele et al. 2024, arXiv 2405.18392)

    Args:
        optimizer: Given by the run.
        total_steps: Length in the schedule's interval; None: from the end of the warmup to the end
            of the run.
        decay: Fraction of the run, its warmup counted too, that the decay takes, > 0, <= 1.
        shape: Of the decay.
        branches: Of how many budgets, each half of the one before (the run's own length, a half, a
            quarter, ...), to keep the checkpoint at which a run of that length begins to decay.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        decay: float = 0.2,
        shape: Literal["sqrt", "linear", "cosine"] = "sqrt",
        branches: int = 0,
    ):
        self.total_steps = _known(total_steps)
        self.warmup = 0  # steps of the run before these; `Schedule.build` sets it
        self.decay, self.shape, self.branches = decay, shape, branches
        if not 0 < decay <= 1 or branches < 0:
            raise ValueError(f"decay={decay} must be in (0, 1], branches={branches} at least 0")
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group, from the number of steps alone."""
        total = self.warmup + self.total_steps
        first = max(self.warmup, branch_steps(total, self.decay)[0][1])
        t = (self.warmup + self.last_epoch - first) / max(1, total - first)
        t = min(1.0, max(0.0, t))
        left = {"sqrt": 1 - t**0.5, "linear": 1 - t, "cosine": (1 + math.cos(math.pi * t)) / 2}
        return [lr * left[self.shape] for lr in self.base_lrs]

    @property
    def kept_steps(self) -> set[int]:
        """The steps of the run at which to keep a checkpoint: where `branches` leave it."""
        budgets = branch_steps(self.warmup + self.total_steps, self.decay, self.branches)
        return {first for _, first in budgets if first >= max(1, self.warmup)}


def _known(value: Any) -> Any:
    """Return a value that a Schedule has worked out; raise TypeError if none has."""
    if value is None:
        raise TypeError("a value that follows from the run is missing: build it through a Schedule")
    return value
