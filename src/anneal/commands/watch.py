"""All that a module computes in a step: the first layer, tensor and sample that fails it."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import BatchSampler

from anneal.callbacks import non_finite_guard
from anneal.callbacks.failure_recorder import loader_of, place_of, state_of
from anneal.callbacks.seed_every_epoch import collect, restore
from anneal.commands.blame import Rows, Trouble, about, halved, in_words, unread
from anneal.data.sampler import EpochSampler
from anneal.errors import UserError, first_line
from anneal.launch import is_lost

Failure = dict[str, Any]


class Passed(Exception):
    """The step is done, and has not failed."""


class Batch(NamedTuple):
    """A batch, its size, and what there is before its step."""

    number: int
    values: Any
    size: int
    keys: list[Any]  # of its samples in the data set
    random: dict[str, Any]
    buffers: list[Tensor]


class Watch(Callback):
    """Look at all that a module computes in the step that failed, and say where it fails.

    Args:
        failure: What the run has left.

    Attributes:
        found: What there is to say; empty: nothing has failed yet.
        elsewhere: Whether it is another process that fails.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        self.found = self._root = ""
        self.elsewhere = False
        self._keys: dict[int, list[Any]] = {}  # of batches to come, by sampler
        self._drawn: dict[str, Any] = {}  # random numbers before the last of these is read
        self._step = -1  # of the last update
        self._batch: Batch | None = None  # in which something is computed now
        self._trouble: tuple[Trouble, Batch] | None = None  # the first since the last update
        self._bad: set[tuple[str, str]] = set()  # layers and their tensors since then
        self._usual: set[tuple[str, str]] = set()  # in good steps, such as -inf behind a mask
        self._forget()

    def _forget(self) -> None:
        self._inside: list[str] = []  # layers that compute now
        self._ends: dict[Any, list[str]] = {}  # layers that give and take a node's output
        self._at: tuple[str, str] | None = None  # layer and tensor, behind the forward pass

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Note within a block which samples the samplers give."""

        def record(sampler: Any, batches: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
            self._keys[id(sampler)] = keys = []
            for batch in batches(sampler):
                if isinstance(batch, tuple):
                    epoch, places, index = batch
                    both = zip(places.tolist(), index.tolist(), strict=True)
                    keys.append([(epoch, place, i) for place, i in both])
                else:
                    keys.append(list(batch))
                self._drawn = collect()
                yield batch

        ours, torchs = EpochSampler.batches, BatchSampler.__iter__
        with (
            patch.object(EpochSampler, "batches", lambda sampler: record(sampler, ours)),
            patch.object(BatchSampler, "__iter__", lambda sampler: record(sampler, torchs)),
            patch.object(non_finite_guard, "waits", lambda value: False),  # nothing is read late
        ):
            yield

    def _next_keys(self, trainer: Trainer) -> list[Any]:
        loader = loader_of(trainer)
        return self._keys.get(id(getattr(loader, "batch_sampler", loader))) or [[]]

    # ---- the steps

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, number: int, *args: Any
    ) -> None:
        keys, failed = self._next_keys(trainer).pop(0), self.failure["step"]
        if trainer.global_step > failed:
            raise Passed
        # On a GPU a run reads its loss late; the step before shows what is usual.
        late = trainer.log_every_n_steps or failed  # type: ignore[attr-defined]
        if trainer.state.stage != self.failure["stage"] or trainer.global_step < failed - 2 - late:
            return
        if not self._root:
            self._step = trainer.global_step
            self._attach(pl_module)
        for guard in trainer.callbacks if trainer.global_step == failed else ():  # type: ignore[attr-defined]
            if isinstance(guard, non_finite_guard.NonFiniteGuard):
                guard.skip = guard.skipped  # the run may have left out others before
        self._forget()
        size = 0
        with suppress(Exception):
            size = extract_batch_size(batch)
        keys = keys if len(keys) == size else []  # some photos may have been left out
        buffers = [b.clone() for b in pl_module.buffers()]
        self._batch = Batch(number, batch, size, keys, collect(), buffers)
        self._look("batch", "input", batch)

    on_validation_batch_start = on_train_batch_start  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._batch = None
        self._forget()
        if trainer.global_step != self._step:  # it was good, or left out
            if not {"loss", "gradient"} & {tensor for _, tensor in self._bad}:
                self._usual |= self._bad
            self._step, self._trouble, self._bad = trainer.global_step, None, set()

    def on_validation_batch_end(self, *args: Any) -> None:
        if self._batch:
            self._batch = self._trouble = None

    def on_before_backward(self, trainer: Any, pl_module: LightningModule, loss: Tensor) -> None:
        self._at = self._root, "gradient"
        self._look(self._root, "loss", loss)

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        self._at = type(optimizer).__name__, "parameter"
        # What hooks have made of them; of several processes it may be another one's.
        for name, p in module.named_parameters() if trainer.world_size == 1 else ():
            self._look(name.rpartition(".")[0] or self._root, "gradient", p.grad)

    # ---- within a step

    def _attach(self, module: LightningModule) -> None:
        """Have each layer and each parameter show what it computes."""
        self._root = type(module).__name__
        for path, layer in module.named_modules():
            name = path or self._root
            layer.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
            layer.register_forward_hook(partial(self._leave, name))
            for p in layer.parameters(recurse=False):
                if p.requires_grad:
                    hook = partial(lambda name, p: self._look(name, "gradient", p.grad), name)
                    p.register_post_accumulate_grad_hook(hook)

    def _enter(self, name: str, layer: Any, args: Any, kwargs: Any) -> None:
        self._inside.append(name)
        self._look(name, "parameter", dict(layer.named_parameters(recurse=False)))
        self._look(name, "buffer", dict(layer.named_buffers(recurse=False)))
        self._look(name, "input", [args, kwargs])
        for tensor in tensors([args, kwargs]):
            if tensor.grad_fn in self._ends:
                self._ends[tensor.grad_fn][1] = name

    def _leave(self, name: str, layer: Any, args: Any, output: Any) -> None:
        while self._inside and self._inside.pop() != name:
            pass
        for tensor in tensors(output):
            self._look(name, "activation" if tensor.ndim else "loss", tensor)
            if tensor.grad_fn is not None and tensor.grad_fn not in self._ends:
                self._ends[tensor.grad_fn] = ends = [name, name]
                tensor.register_hook(partial(self._flows, ends))

    def _flows(self, ends: list[str], gradient: Tensor) -> None:
        self._at = ends[0], "gradient"
        self._look(ends[1], "gradient", gradient)

    def _look(self, layer: str, tensor: str, values: Any) -> None:
        """Note what is no number."""
        batch = self._batch
        for value in tensors(values) if batch else ():
            if (bad := ~value.detach().isfinite()).any():
                self._bad.add((layer, tensor))
                if batch and not self._trouble and (layer, tensor) not in self._usual:
                    by_row = bad.reshape(len(bad), -1).any(1) if bad.ndim else bad[None][:0]
                    rows = by_row.nonzero()[:, 0].tolist() if len(by_row) == batch.size else ()
                    text = f"{list(value.shape)} {value.dtype}, {bad.sum()} of {bad.numel()}"
                    trouble = Trouble(layer, tensor, f"{text} not finite", rows)
                    self._trouble = trouble, batch

    # ---- the failure

    def on_exception(self, trainer: Trainer, pl_module: Any, e: BaseException) -> None:
        failure, place = self.failure, place_of(trainer)
        if isinstance(e, Passed) or place is None:
            return
        guarded = isinstance(e, UserError) and trainer.world_size > 1 and not self._trouble
        if guarded or is_lost(e):
            self.elsewhere = True
            return
        how, then = "bit for bit", failure["state"]
        if place != {key: failure[key] for key in place}:
            how = f"where the run went on until step {failure['step']}"
        elif other := [k for k, v in state_of(pl_module).items() if then.get(k, v) != v]:
            how = f"but other {' and '.join(other)}"
        trouble, batch = self._trouble or (self._raised(e), self._batch)
        keys = batch.keys if batch else self._next_keys(trainer)[0]
        if place["fetches"]:
            trouble = unread(loader_of(trainer), keys, self._drawn, e)
        elif batch:
            trouble = trouble._replace(rows=self._rows(trainer, pl_module, trouble, batch))
        self.found = (
            f"epoch {place['epoch']}, batch {place['batch']}, step {place['step']}, {how}\n"
            f"error   {type(e).__name__}: {first_line(e)}\nlayer   {trouble.layer}\n"
            f"tensor  {trouble.tensor}: {trouble.about}\n"
            f"sample  {in_words(loader_of(trainer), keys, trouble.rows)}"
        )

    def _raised(self, e: BaseException) -> Trouble:
        where = self._at or (self._inside[-1] if self._inside else self._root, "input")
        return Trouble(*where, about(e), ())

    def _rows(self, trainer: Trainer, module: Any, trouble: Trouble, batch: Batch) -> Rows:
        """Return the samples that are the reason, by trying each if the tensor doesn't tell."""
        every = range(batch.size)
        if trouble.tensor in ("parameter", "buffer"):
            return ()
        if batch.size < 2 or 0 < len(trouble.rows) < batch.size:
            return trouble.rows or every
        with patch.object(module, "log"), patch.object(module, "log_dict"):
            fails = partial(self._fails, trainer, module, trouble, batch)
            return halved(every, fails) if module.automatic_optimization and fails(every) else ()

    def _fails(
        self, trainer: Trainer, module: Any, trouble: Trouble, batch: Batch, rows: Rows
    ) -> bool:
        """Return whether some of a batch's samples fail as all of them do."""

        taken = list(rows) * (2 if len(rows) == 1 else 1)  # a norm can't train on one

        def of(value: Any) -> Any:
            return value[taken] if value.ndim and len(value) == batch.size else value

        restore(batch.random)
        for buffer, before in zip(module.buffers(), batch.buffers, strict=True):
            buffer.data.copy_(before)
        self._forget()
        self._trouble, self._usual, self._batch = None, set(), batch
        step = module.training_step if trainer.training else module.validation_step
        n = len(inspect.signature(step).parameters)
        module.zero_grad()
        try:
            with trainer.precision_plugin.train_step_context():
                output = step(*(apply_to_collection(batch.values, Tensor, of), batch.number, 0)[:n])
            if trainer.training:
                loss = output["loss"] if isinstance(output, dict) else output
                self.on_before_backward(trainer, module, loss)
                loss.backward()
        except Exception as e:
            self._trouble = self._trouble or (self._raised(e), batch)
        return bool(self._trouble and self._trouble[0][:2] == trouble[:2])


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors in a collection, but for sparse ones, which can't be looked at."""
    found: list[Tensor] = []
    apply_to_collection(values, Tensor, found.append)
    return [tensor for tensor in found if tensor.layout == torch.strided]
