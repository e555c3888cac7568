"""A schedule in a run: every group's learning rate as a function of the steps taken."""

import math
import warnings
from inspect import signature
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from anneal.errors import UserError
from anneal.optim.exact_state import is_plain, is_same
from anneal.optim.joint import with_owners
from anneal.optim.schedule import Schedule
from anneal.runs.resume import lr_jump

# What torch's schedulers write into a group.
SET_BY_SCHEDULERS = {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"}
DRIVEN = {"lr", "momentum", "betas"}  # and what they change


class RunSchedule(LRScheduler):
    """The learning rate of every parameter group, as a function of the optimizer steps taken.

    Wraps the scheduler that a `Schedule` names. Its only state is the number of steps (and, for
    a plateau, what the metric did), so a resumed run follows the schedule it is given now: new
    learning rates, lengths and schedulers count, and a longer run gets the longer curve. What an
    optimizer keeps in its parameter groups, such as Prodigy's `d`, stays its own.
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
        self.first_lrs = self.get_last_lr()
        self.plateau: dict[str, Any] = {}
        self.as_configured = [_settings(*both) for both in with_owners(optimizer)]
        self.configured_before: list[dict[str, Any]] = []
        self.was_constant = False
        self.resumed: dict[str, Any] = {}  # what the checkpoint has said
        self.groups_at_first = len(self.as_configured)

    def setup(self, steps_per_epoch: int, total_steps: int | None, at: int | None = None) -> None:
        """Start, or continue after a resume, in a run of so many optimizer steps (None: endless).

        `at` says at which step the run is, if its epochs have other steps than before.
        """
        if at is not None:
            self.steps = at
            rank_zero_info(
                f"An epoch has {steps_per_epoch} steps and had {self.steps_per_epoch}: the "
                f"schedule goes on at epoch {at / steps_per_epoch:g}, now step {at}."
            )
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        epochs = self.schedule.warmup_epochs
        self.warmup = self.schedule.warmup_steps or round(epochs * steps_per_epoch)
        before = self.get_last_lr()
        # Loading a checkpoint brought the optimizer's old settings back: what is typed wins.
        self._take_new_groups()
        self._configure_groups()
        if total_steps is not None and self.warmup >= total_steps:
            rank_zero_warn(
                f"schedule: the warmup takes {self.warmup} steps and the run has {total_steps}: "
                "the learning rate is still rising at the end"
            )
        self.period = 1 if self.schedule.unit == "step" else steps_per_epoch
        had = self.resumed.get("total_steps")
        self.steps -= (ended := self.steps == had)  # where the learning rate stays at its last
        self._build()
        if self.resumed and self.inner and not self.is_plateau:
            name = type(self.inner).__name__
            if line := lr_jump(before, self.get_last_lr(), name, had, total_steps):
                rank_zero_info(line)
        if ended:
            self.step()

    def _build(self) -> None:
        """Build the inner scheduler over the groups as they are configured, and bring it here."""
        left = None if self.total_steps is None else max(1, self.total_steps - self.warmup)
        length, before = left and math.ceil(left / self.period), round(self.warmup / self.period)
        self.inner = self.schedule.build(self.optimizer, length, before)
        self.first_lrs = self.get_last_lr()
        with warnings.catch_warnings():
            # torch warns of a scheduler's step without an optimizer's, which is what a resume is.
            warnings.filterwarnings("ignore", ".*lr_scheduler.step.*", UserWarning)
            self.inner_ticks = 0
            self._sync()
        if self.is_plateau:
            self._restore_plateau()
        self._apply_warmup()

    @property
    def is_plateau(self) -> bool:
        return isinstance(self.inner, lr_scheduler.ReduceLROnPlateau)

    def step(self, metrics: Any = None) -> None:
        """Count an optimizer step and set the learning rates of the next one."""
        self.steps += 1
        if self._take_new_groups():
            self.plateau = self.state_dict().get("plateau", {})
            self._configure_groups()
            self._build()
            return
        self._sync()
        self._apply_warmup()

    def step_metric(self, value: float) -> None:
        """Show a plateau the value of `monitor` after a validation."""
        if self.is_plateau and self.steps >= self.warmup:
            before = self.get_last_lr()
            self.inner.step(value)  # type: ignore[union-attr, arg-type]
            if (after := self.get_last_lr()) != before:
                change = f"lr {before[0]:g} -> {after[0]:g}"
                rank_zero_info(f"{self.schedule.monitor} has stopped getting better: {change}")

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        return [float(g["lr"]) for g in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the position in plain values."""
        state: dict[str, Any] = {
            "configured": [{k: v for k, v in g.items() if is_plain(v)} for g in self.as_configured],
            "constant": self.was_constant,
            **{name: getattr(self, name) for name in ("steps", "steps_per_epoch", "total_steps")},
        }
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
                "lrs": self.get_last_lr(),
                "first_lrs": self.first_lrs,
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the position; `setup` works out the learning rates."""
        self.resumed = state_dict
        self.steps = state_dict["steps"]
        self.steps_per_epoch = state_dict["steps_per_epoch"]
        self.plateau = state_dict.get("plateau", {})
        self.was_constant = state_dict.get("constant", False)
        self.configured_before = before = state_dict.get("configured", [])
        later = before[self.groups_at_first :] or state_dict.get("later_groups", [])
        self.as_configured[self.groups_at_first :] = later

    def describe(self) -> str:
        """Return optimizer, groups and schedule as they are used, in a line."""
        shown = ("lr", "momentum", "betas", "nesterov", "weight_decay", "fused")
        names: dict[str, str] = {}
        for row, group in zip(self.groups(), self.as_configured, strict=True):
            settings = [f"{k}={group[k]}" for k in shown if group.get(k)]
            names.setdefault(row["optimizer"], f"{row['optimizer']}({', '.join(settings)})")
        line = " and ".join(names.values())
        if len(self.as_configured) > 1:
            counts = [f"{row['name']} {row['tensors']}" for row in self.groups()]
            line += f" on tensors: {', '.join(counts)}"
        line += f"; {type(self.inner).__name__ if self.inner else 'constant rate'}"
        if self.inner and not self.is_plateau:
            line += f" per {self.schedule.unit}"
        if self.warmup:
            line += f" after {self.warmup} warmup steps"
        end = f"{self.total_steps} steps" if self.total_steps else "no end"
        return f"{line}; {self.steps_per_epoch} steps an epoch, {end}"

    def groups(self) -> list[dict[str, Any]]:
        """Return what is trained how: a row for each parameter group, as it is configured."""
        return [
            {
                "name": configured.get("name", "later" if i >= self.groups_at_first else "all"),
                "optimizer": type(owner).__name__,
                "lr": configured["lr"],
                "weight_decay": configured.get("weight_decay", 0.0),
                "tensors": len(group["params"]),
                "parameters": sum(p.numel() for p in group["params"]),
            }
            for i, ((group, owner), configured) in enumerate(
                zip(with_owners(self.optimizer), self.as_configured, strict=True)
            )
        ]

    def _take_new_groups(self) -> bool:
        """Take in the groups that others, such as `BaseFinetuning`, have added since."""
        new = with_owners(self.optimizer)[len(self.as_configured) :]
        self.as_configured += [_settings(group, owner) for group, owner in new]
        return bool(new)

    def _configure_groups(self) -> None:
        """Set in every group what is configured anew, and leave what the optimizer itself keeps.

        That is what it takes no argument for, and an argument that it changes by itself, unless a
        scheduler does.
        """
        constant = not (self.schedule.scheduler or self.warmup)
        driven = set() if constant and self.was_constant else DRIVEN
        for i, (group, owner) in enumerate(with_owners(self.optimizer)):
            for key in SET_BY_SCHEDULERS & group.keys() - owner.defaults.keys():
                del group[key]
            own = owner.defaults.keys() - arguments(type(owner)) & group.keys()
            before = self.configured_before[i] if i < len(self.configured_before) else {}
            for key, value in self.as_configured[i].items():
                same = key in group.keys() & before.keys() and is_same(before[key], value)
                if key not in own and not (same and key not in driven):
                    group[key] = value
        self.configured_before, self.was_constant = list(self.as_configured), constant

    def _sync(self) -> None:
        """Bring the inner scheduler to where the steps are; past the end it stays where it is."""
        if self.inner is None or self.is_plateau:
            return
        steps = self.steps if self.total_steps is None else min(self.steps, self.total_steps - 1)
        while self.inner_ticks < (steps - self.warmup) // self.period:
            try:
                self.inner.step()
            except (ArithmeticError, TypeError, ValueError) as e:
                raise UserError(f"schedule.scheduler: {type(self.inner).__name__}: {e}") from e
            self.inner_ticks += 1

    def _apply_warmup(self) -> None:
        """Set lr = first lr * (s + (1 - s) step / warmup), s the start factor, as in LinearLR."""
        if self.steps > self.warmup or not self.warmup:
            return
        start = self.schedule.warmup_start_factor
        stair = self.steps_per_epoch if self.schedule.warmup_interval == "epoch" else 1
        risen = (self.steps - self.steps % stair) / self.warmup
        factor = start + (1 - start) * risen  # exactly 1 at the end
        for group, lr in zip(self.optimizer.param_groups, self.first_lrs, strict=True):
            group["lr"] = lr * factor

    def _scale(self) -> list[float]:
        """Return the factors by which a plateau has cut each group's first learning rate."""
        pairs = zip(self.optimizer.param_groups, self.first_lrs, strict=False)
        return [g["lr"] / lr if lr and self.steps >= self.warmup else 1.0 for g, lr in pairs]

    def _restore_plateau(self) -> None:
        inner: Any = self.inner
        saved, watched = dict(self.plateau), (self.schedule.monitor, inner.mode)
        if (saved.pop("monitor", None), saved.pop("mode", None)) != watched:
            return
        scale = saved.pop("scale")
        lrs, first_lrs = saved.pop("lrs", []), saved.pop("first_lrs", None)
        for i, (group, factor) in enumerate(zip(self.optimizer.param_groups, scale, strict=False)):
            # The rate itself if nothing else is configured: the product may be off by a bit.
            same = first_lrs is not None and first_lrs[i] == self.first_lrs[i]
            group["lr"] = lrs[i] if same and lrs[i] else group["lr"] * factor
        vars(inner).update(saved)


def _settings(group: dict[str, Any], owner: Optimizer) -> dict[str, Any]:
    left_out = {"params", *SET_BY_SCHEDULERS} - owner.defaults.keys()
    return {k: v for k, v in group.items() if k not in left_out}


def arguments(optimizer: type[Optimizer]) -> set[str]:
    """Return what a class of optimizers is configured with."""
    return {name for c in optimizer.__mro__[:-1] for name in signature(c.__init__).parameters}  # type: ignore[misc]
