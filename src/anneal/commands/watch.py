"""Steps made again behind their training: where one is no number first, and by which samples."""

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer

from anneal.callbacks.seed_every_epoch import restore
from anneal.errors import first_line

Rows = Sequence[int]


class Step(NamedTuple):
    """What a step of a module is called with, and what there is before it."""

    number: int  # of the batch in its epoch
    args: tuple[Any, ...]
    random: dict[str, Any]
    buffers: list[Tensor]

    @property
    def size(self) -> int:
        """The samples in the batch."""
        return next((len(tensor) for tensor in tensors(self.args) if tensor.ndim), 0)


class Trouble(NamedTuple):
    """What is no number or raises, by which samples if that is known, and in which step."""

    layer: str
    tensor: str
    about: str
    rows: Rows = ()
    step: Step | None = None


class Layers:
    """All that the layers of a module take and give in a step, and their gradients."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer, self.module = trainer, module
        self.root = self.backward = type(module).__name__  # the layer whose backward pass runs
        self.size = -1  # of the batch
        self.found: dict[tuple[str, str], Trouble] = {}
        self.names = {layer: name or self.root for name, layer in module.named_modules()}
        for layer, name in self.names.items():
            layer.register_forward_pre_hook(partial(self.enter, name), with_kwargs=True)
            layer.register_forward_hook(partial(self.leave, name))

    def find(self, e: Exception, steps: list[Step], good: list[Step]) -> Trouble:
        """Return what is wrong first in the steps since the last update, of which one has raised.

        What is infinite in `good` ones before that, such as a mask, is no reason.
        """
        if self.trainer.world_size == 1:  # of several processes it may be another one's
            self.look_at_gradients()
        left = self.found.values()  # by hooks of the module
        bad = [trouble for step in steps for trouble in self.make(step)[0]]
        raised = self.raised(e)._replace(step=steps[-1] if steps else None)
        usual = {trouble[:2] for step in good for trouble in self.make(step)[0]}
        if {"loss", "gradient"} & {tensor for _, tensor in usual}:  # a step that was left out
            usual = set()
        return [*(trouble for trouble in bad if trouble[:2] not in usual), *left, raised][0]

    def blame(self, trouble: Trouble) -> Rows:
        """Return the samples that are the reason, by trying each if the tensor doesn't tell."""
        step = trouble.step
        if step is None or trouble.tensor in ("parameter", "buffer"):
            return ()
        every = range(step.size)
        if step.size < 2 or 0 < len(trouble.rows) < step.size:
            return trouble.rows or every

        def fails(rows: Rows) -> bool:
            return trouble[:2] in [t[:2] for found in self.make(step, rows) for t in found]

        return halved(every, fails) if self.module.automatic_optimization and fails(every) else ()

    def make(self, step: Step, rows: Rows = ()) -> tuple[list[Trouble], list[Trouble]]:
        """Make a step, or that of some samples; return what is no number and what is raised."""
        module, training, raised = self.module, self.trainer.training, []
        taken = list(rows) * (2 if len(rows) == 1 else 1)  # a norm can't train on one

        def part(value: Tensor) -> Tensor:
            return value[taken] if rows and value.shape[:1] == (step.size,) else value.clone()

        restore(step.random)
        for buffer, before in zip(module.buffers(), step.buffers, strict=True):
            buffer.data.copy_(before)
        module.zero_grad()
        self.found, self.size, self.backward = {}, len(taken) or step.size, self.root
        args = apply_to_collection(step.args, Tensor, part)
        self.look("batch", "input", args)
        forward = module.training_step if training else module.validation_step
        context = self.trainer.precision_plugin.train_step_context()
        try:
            with context, patch.object(module, "log"), patch.object(module, "log_dict"):
                output = forward(*args)
            loss = output["loss"] if isinstance(output, dict) else output
            if training and isinstance(loss, Tensor):
                self.look(self.root, "loss", loss)
                module.backward(loss)
                self.look_at_gradients()
        except Exception as e:
            raised = [self.raised(e)]
        return [trouble._replace(step=step) for trouble in self.found.values()], raised

    def raised(self, e: Exception) -> Trouble:
        """Return the layer in which something was raised."""
        where = self.root, "input"
        for frame, _ in traceback.walk_tb(e.__traceback__):
            owner = frame.f_locals.get("self")
            if isinstance(owner, Optimizer):
                where = type(owner).__name__, "parameter"
            elif isinstance(owner, nn.Module) and owner in self.names:
                backward = frame.f_code.co_name == "backward"
                where = (self.backward, "gradient") if backward else (self.names[owner], "input")
        return Trouble(*where, about(e))

    # ---- looks

    def look(self, layer: str, tensor: str, values: Any) -> None:
        """Note what is no number."""
        for value in tensors(values):
            if (bad := ~value.detach().isfinite()).any() and (layer, tensor) not in self.found:
                whole = bad.shape[:1] == (self.size,)
                rows = bad.reshape(self.size, -1).any(1).nonzero()[:, 0].tolist() if whole else ()
                text = f"{list(bad.shape)} {value.dtype}, {bad.sum()} of {bad.numel()} not finite"
                self.found[layer, tensor] = Trouble(layer, tensor, text, rows)

    def look_at_gradients(self) -> None:
        """Note parameters whose gradient is no number, from the last layer to the first."""
        self.size = -1  # no row of theirs is a sample
        for name, p in reversed(list(self.module.named_parameters())):
            self.look(name.rpartition(".")[0] or self.root, "gradient", p.grad)

    def enter(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        """Look at what a layer has and takes."""
        self.look(name, "parameter", list(layer.parameters(recurse=False)))
        self.look(name, "buffer", list(layer.buffers(recurse=False)))
        self.look(name, "input", [args, kwargs])
        for tensor in tensors([args, kwargs]):
            if tensor.grad_fn:
                node: Any = tensor.grad_fn.metadata
                node["taker"] = name

    def leave(self, name: str, layer: nn.Module, args: Any, output: Any) -> None:
        """Look at what a layer gives, and have its gradient looked at, which its taker makes."""
        for tensor in tensors(output):
            self.look(name, "activation" if tensor.ndim else "loss", tensor)
            node: Any = tensor.grad_fn.metadata if tensor.grad_fn else {"taker": ""}
            if "taker" not in node:
                node["taker"] = name
                tensor.register_hook(partial(self.flow, name, node))

    def flow(self, name: str, node: dict[str, str], gradient: Tensor) -> None:
        """Look at the gradient with which the backward pass of a layer begins."""
        self.backward = name
        self.look(node["taker"], "gradient", gradient)


def halved(rows: Rows, fails: Callable[[Rows], bool]) -> Rows:
    """Return which of some samples fail on their own; all of them, if they fail together only."""
    half = len(rows) // 2
    parts = [part for part in (rows[:half], rows[half:]) if half and fails(part)]
    return [row for part in parts for row in halved(part, fails)] or rows


def about(e: BaseException) -> str:
    """Return what an exception says, and where in the project it was raised."""
    frames = traceback.extract_tb(e.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    return f"{type(e).__name__}: {first_line(e)} ({own[-1].filename}:{own[-1].lineno})"


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors in a collection, but for sparse ones, which can't be looked at."""
    found: list[Tensor] = []
    apply_to_collection(values, Tensor, found.append)
    return [tensor for tensor in found if tensor.layout == torch.strided]
