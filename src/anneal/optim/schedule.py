"""The schedule as it is configured, and the torch scheduler that it names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from anneal.errors import UserError
from anneal.optim.torch_schedulers import WSD
from anneal.runs.metrics import direction

SchedulerCallable = Callable[[Optimizer], LRScheduler]

# Counted in optimizer steps unless the schedule's `interval` says otherwise; all others in epochs.
PER_STEP = (
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.CyclicLR,
    lr_scheduler.LinearLR,
    lr_scheduler.OneCycleLR,
    lr_scheduler.PolynomialLR,
    WSD,
)
LENGTHS = ("T_max", "total_steps", "total_iters")


@dataclass
class Schedule:
    """The learning rate over a run.

    Args:
        scheduler: Any torch scheduler by class (`StepLR`, `CosineAnnealingLR`, `OneCycleLR`,
            `ReduceLROnPlateau`, ...) or import path. None: constant, after the warmup.
        interval: What the scheduler counts: `epoch` or optimizer `step`. None: steps for
            CosineAnnealingLR, CyclicLR, LinearLR, OneCycleLR, PolynomialLR and WSD, epochs for
            all others. Lengths such as `T_max` are in this unit, and follow from the run if not
            given.
        warmup_epochs: Length of a linear warmup in front of the scheduler, which starts when the
            warmup ends, as in torch's SequentialLR.
        warmup_steps: The same in optimizer steps. Give one of the two.
        warmup_interval: Whether the learning rate rises at every optimizer `step` or once an
            `epoch`.
        warmup_start_factor: The warmup starts at this fraction of the scheduler's first learning
            rate, 0 to 1.
        monitor: The metric that ReduceLROnPlateau watches, after every validation.
    """

    scheduler: SchedulerCallable | None = None
    interval: Literal["epoch", "step"] | None = None
    warmup_epochs: float = 0.0
    warmup_steps: int = 0
    warmup_interval: Literal["epoch", "step"] = "step"
    warmup_start_factor: float = 0.01
    monitor: str = "val/loss"

    def __post_init__(self) -> None:
        if self.warmup_epochs and self.warmup_steps:
            raise UserError("schedule: give warmup_epochs or warmup_steps, not both")
        if self.warmup_epochs < 0 or self.warmup_steps < 0:
            raise UserError("schedule: a warmup can't be shorter than 0")
        if self.warmup_interval == "epoch" and (self.warmup_steps or self.warmup_epochs % 1):
            raise UserError("schedule: warmup_interval=epoch needs warmup_epochs, a whole number")
        if not 0 <= self.warmup_start_factor <= 1:
            raise UserError("schedule: warmup_start_factor must lie between 0 and 1")

    @property
    def unit(self) -> Literal["epoch", "step"]:
        """The unit that the scheduler counts."""
        return self.interval or ("step" if self._names(PER_STEP) else "epoch")

    @property
    def is_plateau(self) -> bool:
        """True if the scheduler is a ReduceLROnPlateau, as far as is known before it is built."""
        return self._names(lr_scheduler.ReduceLROnPlateau)

    @property
    def counts_epochs(self) -> bool:
        """True if the learning rate depends on how many steps an epoch has."""
        stairs = self.scheduler and self.unit == "epoch" and not self.is_plateau
        return bool(self.warmup_epochs or stairs)

    def check_follows_optimizer(self) -> None:
        """Raise UserError if the scheduler has a learning rate of its own, one for all groups."""
        given = getattr(self.scheduler, "keywords", {})
        names = ("base_lr", "max_lr")
        if own := [name for name in names if isinstance(given.get(name), int | float)]:
            raise UserError(
                f"schedule.scheduler.{own[0]}={given[own[0]]:g} takes the place of the optimizer's "
                "lr, so that lr_batch_size, body_lr_factor and the rates of rules have no effect: "
                "leave one of them out"
            )

    def build(self, optimizer: Optimizer, length: int | None, warmup: int = 0) -> Any:
        """Build the torch scheduler at its start; None: the learning rate is constant.

        In the scheduler's unit, `length` is from the end of the `warmup` to that of the run (None:
        endless).
        """
        if self.scheduler is None:
            return None
        missing = {k for k, v in getattr(self.scheduler, "keywords", {}).items() if v is None}
        follow: dict[str, Any] = {}
        for name in missing.intersection(LENGTHS):
            if length is None:
                raise UserError(
                    f"schedule: {name} follows from the length of the run, and this run has no "
                    "end: set trainer.max_epochs or trainer.max_steps, or give "
                    f"schedule.scheduler.{name}"
                )
            follow[name] = length
        if "mode" in missing:
            follow["mode"] = direction(self.monitor, None, "schedule.scheduler")
        try:
            built = self.scheduler(optimizer, **follow)
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as e:
            raise UserError(f"schedule.scheduler: {name_of(self.scheduler)}: {e}") from e
        if isinstance(built, WSD):
            built.warmup = warmup
            if built.branches and self.unit == "epoch":
                raise UserError("schedule: WSD keeps its branches by the step: leave interval out")
            if (kept := len(built.kept_steps)) < built.branches:
                few = f"only {kept} of branches={built.branches} begin to decay after it"
                rank_zero_warn(f"schedule: the warmup takes {warmup} steps: {few}")
        if isinstance(built, lr_scheduler.ReduceLROnPlateau):
            self._check_plateau(built)
        elif length is not None:
            self._check_length(built, length)
        return built

    def _names(self, kinds: type | tuple[type, ...]) -> bool:
        """Return whether the scheduler is a class, or a partial of one, of these kinds."""
        cls = class_of(self.scheduler)
        return cls is not None and issubclass(cls, kinds)

    def _check_plateau(self, built: lr_scheduler.ReduceLROnPlateau) -> None:
        if self.interval == "step":
            raise UserError(
                "schedule: ReduceLROnPlateau looks at a metric after each validation and counts "
                "validations: leave interval out (trainer.val_check_interval validates more often)"
            )
        direction(self.monitor, built.mode, "schedule.scheduler")

    def _check_length(self, built: Any, length: int) -> None:
        if getattr(built, "total_steps", length) < length:
            raise UserError(
                f"schedule: {type(built).__name__} ends after {built.total_steps} {self.unit}s and "
                f"the run has {length}: leave scheduler.total_steps out"
            )
        if getattr(built, "T_max", length) < length:
            rank_zero_warn(
                f"schedule: T_max={built.T_max} {self.unit}s and the run has {length}: after T_max "
                "the rate rises again. Leave T_max out, or set schedule.interval."
            )


def class_of(make: Any) -> type | None:
    """Return the class that `make` is, or that it is a partial of."""
    parts = (make, getattr(make, "func", None), *getattr(make, "args", ()))
    return next((part for part in parts if isinstance(part, type)), None)


def name_of(make: Any) -> str:
    """Return the name of that class, or of a function."""
    return getattr(class_of(make) or make, "__name__", type(make).__name__)
