"""Parameter groups, optimizer and schedule: what `configure_optimizers` returns.

A LightningModule takes `optimizer` and `schedule`, and whatever else it likes of the arguments of
`configure_optimizers` below, and hands them over. Nothing else builds an optimizer.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import AdamW, Optimizer

from anneal.errors import UserError
from anneal.optim.callback import ScheduleCallback
from anneal.optim.groups import OptimizerCallable, Rule, parameter_groups
from anneal.optim.joint import joined
from anneal.optim.kinds import adapt
from anneal.optim.muon import flag_rules, with_muon
from anneal.optim.run_schedule import RunSchedule, arguments
from anneal.optim.schedule import Schedule, class_of, name_of


def configure_optimizers(
    module: LightningModule,
    optimizer: OptimizerCallable | None = None,
    schedule: Schedule | None = None,
    decay_norm: bool = True,
    decay_bias: bool = True,
    lr_batch_size: int | None = None,
    rules: Sequence[Rule] = (),
) -> OptimizerLRSchedulerConfig:
    """Build the return value of a LightningModule's `configure_optimizers`.

    Also put a `ScheduleCallback` among the trainer's callbacks, which tells the schedule how long
    the run is and how its validations went.

    Args:
        module: The module whose parameters are trained, attached to a trainer.
        optimizer: Called with the parameters or parameter groups; None: torch's AdamW.
        schedule: How the learning rate changes; None: not at all.
        decay_norm: Whether `weight_decay` applies to the parameters of norms.
        decay_bias: Whether it applies to the biases of all other layers. He et al. (2015) decay
            everything, Goyal et al. (2017, arXiv 1706.02677, section 5.3) neither of the two.
        lr_batch_size: The number of samples in a step that `lr` is given for; with more or fewer it
            grows or shrinks in proportion (Goyal et al., section 2.1). None: `lr` as it is.
        rules: What applies to some of the parameters only: settings, or another optimizer.

    Raises:
        UserError: The optimizer or the scheduler refuses its arguments, or one has no effect.
    """
    if lr_batch_size is not None and lr_batch_size < 1:
        raise UserError(f"{lr_batch_size=} must be at least 1")
    optimizer, rules = with_muon(module, optimizer, [*rules, *flag_rules(optimizer)])
    groups = parameter_groups(module, decay_norm, decay_bias, rules)
    built = build_optimizers(optimizer or AdamW, groups, may_fuse(module.trainer))
    factor = batch_factor(module.trainer, built, lr_batch_size) if lr_batch_size else 1.0
    schedule = schedule or Schedule()
    if schedule != Schedule() and any("lr" not in group for group in built.param_groups):
        rank_zero_warn(f"{type(built).__name__} has no lr: the schedule has no effect")
    for group in built.param_groups:  # by its own factor too; one without a rate has 1
        group["lr"] = group.get("lr", 1.0) * factor * group.pop("lr_factor", 1.0)
        if not math.isfinite(group["lr"]):
            raise UserError(f"optimizer: lr={group['lr']} is no learning rate")
    if lr_batch_size or any({"lr", "lr_factor"} & group.keys() for group in groups):
        schedule.check_follows_optimizer()
    run_schedule = RunSchedule(built, schedule)
    ScheduleCallback.attach(module.trainer, run_schedule)
    adapt(module, built)
    stepped: Any = {"scheduler": run_schedule, "interval": "step", "name": "lr"}
    return {"optimizer": built, "lr_scheduler": stepped}


def batch_factor(trainer: Trainer, optimizer: Optimizer, lr_batch_size: int) -> float:
    """Return samples in a step over those that `lr` is given for, and print the arithmetic."""
    batch_size = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
    if batch_size is None:
        raise UserError("lr_batch_size needs a data module that says its batch_size")
    world, accumulate = trainer.world_size, trainer.accumulate_grad_batches
    samples = world * batch_size * accumulate
    factor = float(samples / lr_batch_size)
    lr = optimizer.param_groups[0]["lr"]
    rank_zero_info(
        f"{world} device{'s' * (world > 1)} x batch_size {batch_size} x accumulate {accumulate} = "
        f"{samples} samples a step; lr {lr:g} is for {lr_batch_size}: lr {lr * factor:g}"
    )
    return factor


def build_optimizers(
    optimizer: OptimizerCallable, groups: list[dict[str, Any]], fuse: bool = True
) -> Optimizer:
    """Build the optimizer of each group, by default `optimizer`; several act as one."""
    own: dict[int, tuple[OptimizerCallable, list[dict[str, Any]]]] = {}
    for group in groups:
        make = group.pop("optimizer", optimizer)
        own.setdefault(id(make), (make, []))[1].append(group)
    return joined([build_optimizer(make, theirs, fuse) for make, theirs in own.values()])


def build_optimizer(
    optimizer: OptimizerCallable, groups: list[dict[str, Any]], fuse: bool = True
) -> Optimizer:
    """Call `optimizer` with the groups, fused where torch can and nothing else was asked for.

    The fused step is 1.7 to 4 times as fast on a CPU and never torch's default.
    """
    given = getattr(optimizer, "keywords", {})
    free = given.get("fused") is None and not (given.get("foreach") or given.get("differentiable"))
    real = all(p.is_floating_point() for g in groups for p in g["params"])
    cls = class_of(optimizer)
    free = free and (cls is None or "fused" in arguments(cls))  # not only by **kwargs
    try:
        built = None
        if fuse and free and real:
            # TypeError: it has no such argument. RuntimeError: not on this device.
            with suppress(TypeError, RuntimeError):
                built = optimizer([dict(g) for g in groups], fused=True)  # type: ignore[call-arg]
        # Copies, as an optimizer writes its defaults into the dictionaries it is given.
        built = built or optimizer([dict(group) for group in groups])
        for group in groups:
            _check_settings(optimizer, group, built.defaults)
    except (TypeError, ValueError, RuntimeError) as e:
        raise UserError(f"optimizer: {name_of(optimizer)}: {e}") from e
    own = {key for group in groups for key in group} - {"params", "name", "lr_factor"}
    if (unknown := own - built.defaults.keys()) and type(built).__module__.startswith("torch."):
        known = ", ".join(built.defaults)
        raise UserError(f"rules: {name_of(optimizer)} has no setting {min(unknown)}: {known}")
    for group in built.param_groups:
        half = any(p.dtype == torch.float16 for p in group["params"])
        if half and torch.tensor(group.get("eps", 1.0), dtype=torch.float16) == 0:
            raise UserError(
                f"optimizer: eps={group['eps']:g} is 0 in fp16, so a zero gradient gives NaN: use "
                "trainer.precision=bf16-mixed or 16-mixed, or set optimizer.eps to 1e-4"
            )
    return built


def _check_settings(make: Any, group: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Have an optimizer check what a group has of its own, as it checks its arguments."""
    own = {key: value for key, value in group.items() if key in defaults}
    if all(type(v) in (int, float) and type(defaults[k]) in (int, float) for k, v in own.items()):
        return  # a rule has checked its numbers
    p = group["params"][0]
    try:
        if any(len(own[k]) != len(v) for k, v in defaults.items() if k in own and type(v) is tuple):
            raise ValueError("of another length than its default")
        make([nn.Parameter(torch.empty(p.shape, dtype=p.dtype))], **own)
    except Exception as e:  # of any type, as libraries do
        raise UserError(f"rules: {name_of(make)} refuses {own}: {e}") from e


def may_fuse(trainer: Trainer) -> bool:
    """Return whether a fused step goes with the rest of the run.

    With fp16 it unscales gradients itself, after they would have been clipped: Lightning refuses,
    with bf16 too. On parameters in pieces torch has no fused SGD.
    """
    mixed = trainer.precision in ("16-mixed", "bf16-mixed")
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    return not sharded and not (mixed and trainer.gradient_clip_val)
