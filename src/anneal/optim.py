"""From configuration to what `configure_optimizers` returns: parameter groups, optimizer, schedule.

A LightningModule takes `optimizer`, `schedule` and `decay_norm_and_bias` and hands them to
`configure_optimizers` below. Nothing else in the project builds an optimizer.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import AdamW, Optimizer

from anneal.callbacks.conductor import Conductor
from anneal.errors import UserError
from anneal.schedule import RunSchedule, Schedule

OptimizerCallable = Callable[[Iterable], Optimizer]

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def configure_optimizers(
    module: LightningModule,
    optimizer: OptimizerCallable | None = None,
    schedule: Schedule | None = None,
    decay_norm_and_bias: bool = True,
) -> OptimizerLRSchedulerConfig:
    """The return value of a LightningModule's `configure_optimizers`.

    Also puts a `Conductor` among the trainer's callbacks, which tells the schedule how long the run
    is and how its validations went.

    SGD and Adam add `weight_decay` to the gradient (L2); AdamW decouples it from the gradient
    (Loshchilov and Hutter 2019, arXiv 1711.05101). Under SGD both give the same path; under Adam
    they do not.

    Args:
        module: The module whose parameters are trained, attached to a trainer.
        optimizer: Called with the parameters or parameter groups; None: torch's AdamW.
        schedule: How the learning rate changes; None: not at all.
        decay_norm_and_bias: Whether `weight_decay` applies to all parameters (He et al. 2015) or
            not to norms and biases (Goyal et al. 2017, arXiv 1706.02677, section 5.3). In the
            second case the groups are named `decay` and `no_decay`.

    Raises:
        UserError: The optimizer or the scheduler refuses its arguments.
    """
    built = build_optimizer(
        optimizer or AdamW, parameter_groups(module, decay_norm_and_bias), may_fuse(module.trainer)
    )
    run_schedule = RunSchedule(built, schedule or Schedule())
    Conductor.attach(module.trainer, run_schedule)
    return {
        "optimizer": built,
        "lr_scheduler": {"scheduler": run_schedule, "interval": "step", "name": "lr"},
    }


def parameter_groups(module: nn.Module, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Trainable parameters in one group, or split into `decay` and `no_decay`.

    Every parameter stands in exactly one group; an empty group is left out.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise UserError(f"{type(module).__name__} has no parameter to train")
    if decay_norm_and_bias:
        return [{"params": trainable}]
    exempt = {
        id(p)
        for m in module.modules()
        for name, p in m.named_parameters(recurse=False)
        if isinstance(m, NORMS) or name.endswith("bias")
    }
    groups: list[dict[str, Any]] = [
        {"name": "decay", "params": [p for p in trainable if id(p) not in exempt]},
        {
            "name": "no_decay",
            "params": [p for p in trainable if id(p) in exempt],
            "weight_decay": 0.0,
        },
    ]
    return [g for g in groups if g["params"]]


def build_optimizer(
    optimizer: OptimizerCallable, groups: list[dict[str, Any]], fuse: bool = True
) -> Optimizer:
    """Calls `optimizer` with the groups, fused where torch can and nothing else was asked for.

    The fused step is 1.7 to 4 times as fast on a CPU and never torch's default.
    """
    given = getattr(optimizer, "keywords", {})
    free = given.get("fused") is None and not (given.get("foreach") or given.get("differentiable"))
    real = all(p.is_floating_point() for g in groups for p in g["params"])
    try:
        built = None
        if fuse and free and real:
            # TypeError: it has no such argument. RuntimeError: not on this device.
            with suppress(TypeError, RuntimeError):
                built = optimizer(_copies(groups), fused=True)  # type: ignore[call-arg]
        built = built or optimizer(_copies(groups))
    except (TypeError, ValueError, RuntimeError) as e:
        raise UserError(f"optimizer: {e}") from e
    for group in built.param_groups:
        half = any(p.dtype == torch.float16 for p in group["params"])
        if half and torch.tensor(group.get("eps", 1.0), dtype=torch.float16) == 0:
            raise UserError(
                f"optimizer: eps={group['eps']:g} is 0 in fp16, so a zero gradient gives NaN: use "
                "trainer.precision=bf16-mixed or 16-mixed, or set optimizer.eps to 1e-4"
            )
    return built


def _copies(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same parameters; an optimizer writes its defaults into the dictionaries it is given."""
    return [dict(group) for group in groups]


def may_fuse(trainer: Trainer) -> bool:
    """Whether a fused step goes with the rest of the run.

    With fp16 it unscales gradients itself, after they would have been clipped: Lightning refuses.
    """
    return not (trainer.precision == "16-mixed" and trainer.gradient_clip_val)
