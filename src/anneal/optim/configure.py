"""Parameter groups, optimizer and schedule: what `configure_optimizers` returns.

A LightningModule takes `optimizer` and `schedule`, and whatever else it likes of the arguments of
`configure_optimizers` below, and hands them over. Nothing else builds an optimizer.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import AdamW, Optimizer

from anneal.errors import UserError
from anneal.optim.callback import ScheduleCallback
from anneal.optim.kinds import adapt
from anneal.optim.run_schedule import RunSchedule, arguments
from anneal.optim.schedule import Schedule as Schedule  # modules take both from here
from anneal.optim.schedule import class_of, name_of

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]

# The base of all batch and instance norms, those of other libraries too; its name is private.
BATCH_NORMS = set(nn.BatchNorm1d.__mro__) & set(nn.InstanceNorm1d.__mro__) - set(nn.Module.__mro__)
NORMS = (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def configure_optimizers(
    module: LightningModule,
    optimizer: OptimizerCallable | None = None,
    schedule: Schedule | None = None,
    decay_norm: bool = True,
    decay_bias: bool = True,
    lr_batch_size: int | None = None,
    head: nn.Module | None = None,
    body_lr_factor: float = 1.0,
) -> OptimizerLRSchedulerConfig:
    """Build the return value of a LightningModule's `configure_optimizers`.

    Also put a `ScheduleCallback` among the trainer's callbacks, which tells the schedule how long
    the run is and how its validations went.

    SGD and Adam add `weight_decay` to the gradient (L2); AdamW decouples it from the gradient
    (Loshchilov and Hutter 2019, arXiv 1711.05101). Under SGD both give the same path; under Adam
    they do not.

    Args:
        module: The module whose parameters are trained, attached to a trainer.
        optimizer: Called with the parameters or parameter groups; None: torch's AdamW.
        schedule: How the learning rate changes; None: not at all.
        decay_norm: Whether `weight_decay` applies to the parameters of norms.
        decay_bias: Whether it applies to the biases of all other layers. He et al. (2015) decay
            everything, Goyal et al. (2017, arXiv 1706.02677, section 5.3) neither of the two.
        lr_batch_size: The number of samples in a step that `lr` is given for; with more or fewer it
            grows or shrinks in proportion (Goyal et al., section 2.1). None: `lr` as it is.
        head: The part of the module that has the full learning rate if the rest has not.
        body_lr_factor: Factor of the learning rate of everything but the `head`.

    Raises:
        UserError: The optimizer or the scheduler refuses its arguments, or one has no effect.
    """
    if body_lr_factor < 0 or (lr_batch_size is not None and lr_batch_size < 1):
        raise UserError(
            f"body_lr_factor={body_lr_factor} must be at least 0, lr_batch_size={lr_batch_size} "
            "at least 1"
        )
    groups = parameter_groups(module, decay_norm, decay_bias, head, body_lr_factor)
    built = build_optimizer(optimizer or AdamW, groups, may_fuse(module.trainer))
    factor = batch_factor(module.trainer, built, lr_batch_size) if lr_batch_size else 1.0
    for group in built.param_groups:
        group["lr"] *= factor * group.pop("lr_factor", 1.0)
    schedule = schedule or Schedule()
    if lr_batch_size or (head and body_lr_factor != 1):
        schedule.check_follows_optimizer()
    run_schedule = RunSchedule(built, schedule)
    ScheduleCallback.attach(module.trainer, run_schedule)
    adapt(module, built)
    return {
        "optimizer": built,
        "lr_scheduler": {"scheduler": run_schedule, "interval": "step", "name": "lr"},
    }


def parameter_groups(
    module: nn.Module,
    decay_norm: bool = True,
    decay_bias: bool = True,
    head: nn.Module | None = None,
    body_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the trainable parameters in one group, or split by what applies to them.

    Every parameter stands in exactly one group; an empty group is left out. The groups are named
    `decay` and `no_decay` if some parameters are exempt from weight decay, `body` and `head` if
    these have other learning rates, and `body_decay` and so on if both.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise UserError(f"{type(module).__name__} has no parameter to train")
    exempt = {
        id(p)
        for m in module.modules()
        for name, p in m.named_parameters(recurse=False)
        if not (decay_norm if isinstance(m, NORMS) else decay_bias or not name.endswith("bias"))
    }
    in_head = {id(p) for p in head.parameters()} if head and body_lr_factor != 1 else set()
    groups: dict[str, dict[str, Any]] = {}
    for p in trainable:
        settings: dict[str, Any] = {}
        words = []
        if in_head:
            words.append("head" if id(p) in in_head else "body")
            settings["lr_factor"] = 1.0 if id(p) in in_head else body_lr_factor
        if not (decay_norm and decay_bias):
            words.append("no_decay" if id(p) in exempt else "decay")
            if id(p) in exempt:
                settings["weight_decay"] = 0.0
        name = "_".join(words)
        named = {"name": name} if name else {}
        groups.setdefault(name, {**named, "params": [], **settings})["params"].append(p)
    return [groups[name] for name in sorted(groups)]


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
                built = optimizer(_copies(groups), fused=True)  # type: ignore[call-arg]
        built = built or optimizer(_copies(groups))
    except (TypeError, ValueError, RuntimeError) as e:
        raise UserError(f"optimizer: {name_of(optimizer)}: {e}") from e
    for group in built.param_groups:
        half = any(p.dtype == torch.float16 for p in group["params"])
        if half and torch.tensor(group.get("eps", 1.0), dtype=torch.float16) == 0:
            raise UserError(
                f"optimizer: eps={group['eps']:g} is 0 in fp16, so a zero gradient gives NaN: use "
                "trainer.precision=bf16-mixed or 16-mixed, or set optimizer.eps to 1e-4"
            )
    return built


def _copies(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copy the groups: an optimizer writes its defaults into the dictionaries it is given."""
    return [dict(group) for group in groups]


def may_fuse(trainer: Trainer) -> bool:
    """Return whether a fused step goes with the rest of the run.

    With fp16 it unscales gradients itself, after they would have been clipped: Lightning refuses,
    with bf16 too. On parameters in pieces torch has no fused SGD.
    """
    mixed = trainer.precision in ("16-mixed", "bf16-mixed")
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    return not sharded and not (mixed and trainer.gradient_clip_val)
