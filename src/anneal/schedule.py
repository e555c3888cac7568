"""The learning rate over a run: what a `Schedule` asks for, and the `RunSchedule` that does it."""

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from anneal.errors import UserError
from anneal.schedulers import Scheduler

SchedulerCallable = Callable[[Optimizer], Scheduler]

# Counted in optimizer steps unless the schedule's `interval` says otherwise; all others in epochs.
PER_STEP = (
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.CyclicLR,
    lr_scheduler.LinearLR,
    lr_scheduler.OneCycleLR,
    lr_scheduler.PolynomialLR,
)
LOWER = {"loss", "error", "err", "nll", "mse", "rmse", "mae", "perplexity", "ece", "wer", "cer"}
HIGHER = {"acc", "accuracy", "f", "auroc", "auc", "precision", "recall", "iou", "dice", "map"}
HIGHER |= {"psnr", "ssim", "bleu", "r"}
LENGTHS = ("T_max", "total_steps", "total_iters")


@dataclass
class Schedule:
    """How the learning rate changes over a run.

    Args:
        scheduler: Any torch scheduler by class (`StepLR`, `CosineAnnealingLR`, `OneCycleLR`,
            `ReduceLROnPlateau`, ...) or import path. None: constant, after the warmup.
        interval: What the scheduler counts: `epoch` or optimizer `step`. None: steps for
            CosineAnnealingLR, CyclicLR, LinearLR, OneCycleLR and PolynomialLR, epochs for all
            others. Lengths such as `T_max` are in this unit, and follow from the run if not given.
        warmup_epochs: Length of a linear warmup in front of the scheduler, which starts when the
            warmup ends, as in torch's SequentialLR.
        warmup_steps: The same in optimizer steps. Give one of the two.
        warmup_interval: Whether the rate rises at every optimizer `step` or once an `epoch`.
        warmup_start_factor: The warmup starts at this fraction of the scheduler's first rate, 0
            to 1.
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


class RunSchedule(LRScheduler):
    """The rate of every parameter group, as a function of the optimizer steps taken.

    Wraps the scheduler that a `Schedule` names. Its only state is the number of steps (and, for
    a plateau, what the metric did), so a resumed run follows the plan it is given now: new rates,
    lengths and schedules count, and a longer run gets the longer curve.

    Args:
        optimizer: The optimizer, with the rates it was configured with.
        schedule: What to follow.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.steps = 0
        self.steps_per_epoch = 1
        self.total_steps: int | None = None
        self.warmup = 0
        self.inner: LRScheduler | None = None
        self.inner_ticks = 0
        self.period = 1  # optimizer steps to a tick of the inner scheduler
        self.first_lrs = [g["lr"] for g in optimizer.param_groups]
        self.plateau: dict[str, Any] = {}
        self.as_configured = [
            {k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups
        ]

    def begin(self, steps_per_epoch: int, total_steps: int | None) -> None:
        """Starts, or goes on after a resume, in a run of known length.

        Args:
            steps_per_epoch: Optimizer steps in an epoch.
            total_steps: Optimizer steps from the very start to the end; None: endless.

        Raises:
            UserError: The schedule needs an end and there is none, or its arguments don't fit.
        """
        if self.steps and steps_per_epoch != self.steps_per_epoch:
            epochs = self.steps / self.steps_per_epoch
            self.steps = round(epochs * steps_per_epoch)
            rank_zero_info(
                f"An epoch has {steps_per_epoch} steps and had {self.steps_per_epoch}: the "
                f"schedule goes on at epoch {epochs:g}, now step {self.steps}."
            )
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.warmup = self.schedule.warmup_steps or round(
            self.schedule.warmup_epochs * steps_per_epoch
        )
        # Loading a checkpoint brought the optimizer's old settings back: what is typed wins.
        for group, configured in zip(self.optimizer.param_groups, self.as_configured, strict=True):
            parameters = group["params"]
            group.clear()
            group.update(configured, params=parameters)
        if total_steps is not None and self.warmup >= total_steps:
            rank_zero_warn(
                f"schedule: the warmup takes {self.warmup} steps and the run has {total_steps}: "
                "the rate is still rising at the end"
            )
        self.inner, self.period = self._build()
        self.first_lrs = [g["lr"] for g in self.optimizer.param_groups]
        with warnings.catch_warnings():
            # torch warns of a scheduler's step without an optimizer's, which is what a resume is.
            warnings.filterwarnings("ignore", ".*lr_scheduler.step.*", UserWarning)
            self.inner_ticks = 0
            self._catch_up()
        if self.is_plateau:
            self._restore_plateau()
        self._warm()

    @property
    def watches(self) -> bool:
        """Whether the schedule names a plateau, as far as can be known before it is built."""
        return self._names(lr_scheduler.ReduceLROnPlateau)

    @property
    def interval(self) -> str:
        """What the scheduler counts."""
        return self.schedule.interval or ("step" if self._names(PER_STEP) else "epoch")

    @property
    def counts_epochs(self) -> bool:
        """Whether the rate depends on how many steps an epoch has."""
        stairs = self.schedule.scheduler and self.interval == "epoch" and not self.watches
        return bool(self.schedule.warmup_epochs or stairs)

    def _names(self, kinds: type | tuple[type, ...]) -> bool:
        """Whether the scheduler asked for is a class, or a partial of one, of these kinds."""
        make = self.schedule.scheduler
        parts = (make, getattr(make, "func", None), *getattr(make, "args", ()))
        return any(isinstance(part, type) and issubclass(part, kinds) for part in parts)

    @property
    def is_plateau(self) -> bool:
        return isinstance(self.inner, lr_scheduler.ReduceLROnPlateau)

    def step(self, metrics: Any = None) -> None:
        """Called after every optimizer step."""
        self.steps += 1
        self._catch_up()
        self._warm()

    def observe(self, value: float) -> None:
        """Called after every validation with the value of `monitor`: a plateau looks at it."""
        if self.is_plateau and self.steps >= self.warmup:
            before = [g["lr"] for g in self.optimizer.param_groups]
            self.inner.step(value)  # type: ignore[union-attr, arg-type]
            after = [g["lr"] for g in self.optimizer.param_groups]
            if after != before:
                rank_zero_info(
                    f"{self.schedule.monitor} has stopped getting better: "
                    f"lr {before[0]:g} -> {after[0]:g}"
                )

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        return [float(g["lr"]) for g in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Plain values only."""
        state: dict[str, Any] = {"steps": self.steps, "steps_per_epoch": self.steps_per_epoch}
        if self.is_plateau:
            inner: Any = self.inner
            state["plateau"] = {
                "monitor": self.schedule.monitor,
                "mode": inner.mode,
                "best": float(inner.best),
                "num_bad_epochs": inner.num_bad_epochs,
                "cooldown_counter": inner.cooldown_counter,
                "last_epoch": inner.last_epoch,
                "scale": self._scale(),
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the position; `begin` works out the rates."""
        self.steps = state_dict["steps"]
        self.steps_per_epoch = state_dict["steps_per_epoch"]
        self.plateau = state_dict.get("plateau", {})

    def describe(self) -> str:
        """One line for a person: optimizer, groups and schedule as they are used."""
        group = self.as_configured[0]
        shown = ("lr", "momentum", "betas", "nesterov", "weight_decay", "fused")
        settings = [f"{k}={group[k]}" for k in shown if group.get(k)]
        line = f"{type(self.optimizer).__name__}({', '.join(settings)})"
        if len(self.optimizer.param_groups) > 1:
            counts = [f"{g['name']} {len(g['params'])}" for g in self.optimizer.param_groups]
            line += f" on tensors: {', '.join(counts)}"
        line += f"; {type(self.inner).__name__ if self.inner else 'constant rate'}"
        if self.inner and not self.is_plateau:
            line += f" per {'step' if self.period == 1 else 'epoch'}"
        if self.warmup:
            line += f" after {self.warmup} warmup steps"
        end = f"{self.total_steps} steps" if self.total_steps else "no end"
        return f"{line}; {self.steps_per_epoch} steps an epoch, {end}"

    def _build(self) -> tuple[LRScheduler | None, int]:
        """The inner scheduler at its start, and how many optimizer steps one tick of it takes."""
        make = self.schedule.scheduler
        if make is None:
            return None, 1
        interval = self.interval
        missing = {k for k, v in getattr(make, "keywords", {}).items() if v is None}
        follow: dict[str, Any] = {}
        for name in missing.intersection(LENGTHS):
            if self.total_steps is None:
                raise UserError(
                    f"schedule: {name} follows from the length of the run, and this run has no "
                    "end: set trainer.max_epochs or trainer.max_steps, or give "
                    f"schedule.scheduler.{name}"
                )
            follow[name] = self._ticks_left(interval)
        if "mode" in missing:
            follow["mode"] = direction(self.schedule.monitor)
        try:
            inner: Any = make(self.optimizer, **follow)
        except (TypeError, ValueError) as e:
            raise UserError(f"schedule.scheduler: {e}") from e
        if isinstance(inner, lr_scheduler.ReduceLROnPlateau):
            self._check_plateau(inner)
        elif self.total_steps is not None:
            self._check_length(inner, interval)
        return inner, 1 if interval == "step" else self.steps_per_epoch

    def _ticks_left(self, interval: str) -> int:
        """From the end of the warmup to the end of the run, at least 1."""
        assert self.total_steps is not None
        left = max(1, self.total_steps - self.warmup)
        return left if interval == "step" else math.ceil(left / self.steps_per_epoch)

    def _check_plateau(self, inner: Any) -> None:
        if self.schedule.interval == "step":
            raise UserError(
                "schedule: ReduceLROnPlateau looks at a metric after each validation and counts "
                "validations: leave interval out (trainer.val_check_interval validates more often)"
            )
        try:
            expected = direction(self.schedule.monitor)
        except UserError:
            return
        if inner.mode != expected:
            raise UserError(
                f"schedule: {self.schedule.monitor} is better when it is "
                f"{'lower' if expected == 'min' else 'higher'}, and mode={inner.mode} watches for "
                f"the opposite: leave scheduler.mode out or give {expected}"
            )

    def _check_length(self, inner: Any, interval: str) -> None:
        ticks = self._ticks_left(interval)
        if getattr(inner, "total_steps", ticks) < ticks:
            raise UserError(
                f"schedule: {type(inner).__name__} ends after {inner.total_steps} {interval}s and "
                f"the run has {ticks}: leave scheduler.total_steps out"
            )
        if getattr(inner, "T_max", ticks) < ticks:
            rank_zero_warn(
                f"schedule: T_max={inner.T_max} {interval}s and the run has {ticks}: after T_max "
                "the rate rises again. Leave T_max out, or set schedule.interval."
            )

    def _catch_up(self) -> None:
        """Brings the inner scheduler to where the steps are; past the end it stays where it is."""
        if self.inner is None or self.is_plateau:
            return
        steps = self.steps if self.total_steps is None else min(self.steps, self.total_steps - 1)
        while self.inner_ticks < (steps - self.warmup) // self.period:
            try:
                self.inner.step()
            except (ArithmeticError, TypeError, ValueError) as e:
                raise UserError(f"schedule.scheduler: {type(self.inner).__name__}: {e}") from e
            self.inner_ticks += 1

    def _warm(self) -> None:
        """lr = first lr * (s + (1 - s) step / warmup) with s the start factor, as in LinearLR."""
        if self.steps > self.warmup or not self.warmup:
            return
        start = self.schedule.warmup_start_factor
        stair = self.steps_per_epoch if self.schedule.warmup_interval == "epoch" else 1
        risen = (self.steps - self.steps % stair) / self.warmup
        factor = start + (1 - start) * risen  # exactly 1 at the end
        for group, lr in zip(self.optimizer.param_groups, self.first_lrs, strict=True):
            group["lr"] = lr * factor

    def _scale(self) -> list[float]:
        """What a plateau's cuts have made of each group's first rate."""
        if self.steps < self.warmup:
            return [1.0] * len(self.first_lrs)
        return [
            g["lr"] / lr if lr else 1.0
            for g, lr in zip(self.optimizer.param_groups, self.first_lrs, strict=True)
        ]

    def _restore_plateau(self) -> None:
        inner: Any = self.inner
        saved = dict(self.plateau)
        if (saved.pop("monitor", None), saved.pop("mode", None)) != (
            self.schedule.monitor,
            inner.mode,
        ):
            return
        scale = saved.pop("scale")
        for group, factor in zip(self.optimizer.param_groups, scale, strict=True):
            group["lr"] *= factor
        vars(inner).update(saved)


def direction(metric: str) -> Literal["min", "max"]:
    """Whether lower or higher is better, from the metric's name.

    Raises:
        UserError: The name doesn't tell.
    """
    words = set(re.split(r"[^a-z]+", metric.lower()))
    if words & LOWER:
        return "min"
    if words & HIGHER:
        return "max"
    raise UserError(
        f"is a lower or a higher {metric} better? Its name doesn't say: give `mode` "
        "(checkpoint.mode, schedule.scheduler.mode)"
    )
