"""What a module computes in a step that fails: the first layer, tensor and sample to blame."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from unittest.mock import patch

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import BatchSampler
from torchmetrics import Metric, MetricCollection

from anneal.callbacks import non_finite_guard
from anneal.callbacks.failure_recorder import loader_of, place_of, state_of
from anneal.callbacks.seed_every_epoch import collect, restore
from anneal.commands.trouble import Rows, Trouble, about, halved, in_words, unread
from anneal.data.sampler import EpochSampler
from anneal.errors import UserError
from anneal.launch import is_lost

Failure = dict[str, Any]


class Passed(Exception):
    """The step is done, and has not failed."""


class Watch(Callback):
    """Look at all that a module computes in the step that has failed, and say where it fails.

    Args:
        failure: What the run has left.

    Attributes:
        found: What there is to say; empty: nothing has failed yet.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        self.found = ""
        self._taken: dict[int, list[Any]] = {}  # batches of samples, by sampler
        self._drawn: dict[str, Any] = {}  # random numbers before the last of these was read
        self._first = (-1, 0)  # an epoch, and the batch at which it began
        self._root = ""
        self._active = False
        self._begins: dict[int, Any] = {}  # what a batch begins with, since the last update
        self._number = self._size = 0  # of the batch
        self._step = 0  # of the last update
        self._trouble: Trouble | None = None
        self._bad: set[tuple[str, str]] = set()  # layers and their tensors since the last update
        self._usual: set[tuple[str, str]] = set()  # in good steps, such as -inf behind a mask
        self._forget()

    def _forget(self) -> None:
        self._inside: list[str] = []  # layers that compute now
        self._ends: dict[Any, list[str]] = {}  # layers that give and take what a node computes
        self._backward: list[str] = []  # those of the last gradient
        self._optimizer = ""  # that is at work

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Note within a block which samples the samplers give."""

        def recording(batches: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
            def record(sampler: Any) -> Iterator[Any]:
                taken = self._taken[id(sampler)] = []
                for batch in batches(sampler):
                    taken.append(batch)
                    self._drawn = collect()
                    yield batch

            return record

        ours, torchs = recording(EpochSampler.batches), recording(BatchSampler.__iter__)
        with (
            patch.object(EpochSampler, "batches", ours),
            patch.object(BatchSampler, "__iter__", torchs),
            patch.object(non_finite_guard, "waits", lambda value: False),  # nothing is read late
        ):
            yield

    # ---- the steps

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self.failure["step"]:
            raise Passed
        if self._first[0] != trainer.current_epoch:
            self._first = (trainer.current_epoch, batch_idx)
        self._begin(trainer, pl_module, batch, batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        self._begin(trainer, pl_module, batch, batch_idx)

    def _begin(self, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        late = (every or self.failure["step"]) if reads_late(trainer) else 0
        since = self.failure["step"] - 2 - late
        if trainer.state.stage != self.failure["stage"] or trainer.global_step < since:
            return
        if not self._root:
            self._step = trainer.global_step
            self._attach(module)
        for guard in trainer.callbacks:  # type: ignore[attr-defined]
            if (
                isinstance(guard, non_finite_guard.NonFiniteGuard)
                and trainer.global_step == self.failure["step"]
            ):
                guard.skip = guard.skipped  # the run may have left out others before
        self._forget()
        self._active, self._size = True, 0
        with suppress(Exception):
            self._size = extract_batch_size(batch)
        self._begins[number] = batch, collect(), [b.clone() for b in module.buffers()]
        self._number = number
        self._look("batch", "input", batch)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._active = False
        if trainer.global_step != self._step:  # it was good, or left out
            if not {"loss", "gradient"} & {tensor for _, tensor in self._bad}:
                self._usual |= self._bad
            self._step, self._trouble, self._bad, self._begins = (
                trainer.global_step,
                None,
                set(),
                {},
            )

    def on_validation_batch_end(self, *args: Any) -> None:
        self._active = False

    def on_before_backward(self, trainer: Any, pl_module: LightningModule, loss: Tensor) -> None:
        self._backward = [self._root]
        self._look(self._root, "loss", loss)

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        self._optimizer = type(optimizer).__name__
        # What hooks have made of them; of several processes it may be another one's.
        for name, p in module.named_parameters() if trainer.world_size == 1 else ():
            self._look(name.rpartition(".")[0] or self._root, "gradient", p.grad)

    # ---- within a step

    def _attach(self, module: LightningModule) -> None:
        """Have each layer and each parameter show what it computes."""
        self._root = type(module).__name__
        for name, layer in module.named_modules(remove_duplicate=True):
            if not isinstance(layer, Metric | MetricCollection):
                enter = partial(self._enter, name or self._root)
                layer.register_forward_pre_hook(enter, with_kwargs=True)
                layer.register_forward_hook(partial(self._leave, name or self._root))
                for p in layer.parameters(recurse=False):
                    if p.requires_grad:
                        hook = partial(self._accumulated, name or self._root)
                        p.register_post_accumulate_grad_hook(hook)

    def _enter(self, name: str, layer: Any, args: Any, kwargs: Any) -> None:
        self._inside.append(name)
        self._look(name, "parameter", dict(layer.named_parameters(recurse=False)))
        self._look(name, "buffer", dict(layer.named_buffers(recurse=False)))
        self._look(name, "input", [args, kwargs])

        def take(tensor: Tensor) -> None:
            if tensor.grad_fn in self._ends:
                self._ends[tensor.grad_fn][1] = name

        apply_to_collection([args, kwargs], Tensor, take)

    def _leave(self, name: str, layer: Any, args: Any, output: Any) -> None:
        while self._inside and self._inside.pop() != name:
            pass

        def give(tensor: Tensor) -> None:
            self._look(name, "activation" if tensor.ndim else "loss", tensor)
            if tensor.grad_fn is not None and tensor.grad_fn not in self._ends:
                self._ends[tensor.grad_fn] = ends = [name, name]
                tensor.register_hook(partial(self._flows, ends))

        apply_to_collection(output, Tensor, give)

    def _flows(self, ends: list[str], gradient: Tensor) -> None:
        self._backward = ends
        self._look(ends[1], "gradient", gradient)

    def _accumulated(self, name: str, parameter: Tensor) -> None:
        self._look(name, "gradient", parameter.grad)

    def _look(self, layer: str, tensor: str, values: Any) -> None:
        """Note what is no number."""

        def look(value: Tensor) -> None:
            if not self._active or (bad := ~value.detach().isfinite()).any().logical_not():
                return
            self._bad.add((layer, tensor))
            if self._trouble is None and (layer, tensor) not in self._usual:
                whole = not value.ndim or len(value) != self._size
                rows = [] if whole else bad.reshape(len(value), -1).any(1).nonzero()[:, 0].tolist()
                text = f"{list(value.shape)} {value.dtype}, {bad.sum()} of {bad.numel()} not finite"
                self._trouble = Trouble(layer, tensor, text, rows, self._number)

        apply_to_collection(values, Tensor, look)

    # ---- the failure

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        failure, place = self.failure, place_of(trainer)
        if isinstance(exception, Passed) or place is None:
            return
        seen = self._trouble or not isinstance(exception, UserError) or trainer.world_size == 1
        if is_lost(exception) or not seen:  # it is another process that fails
            return
        how, then = "bit for bit", failure["state"]
        if place != {key: failure[key] for key in place}:
            how = f"which the run noticed in step {failure['step']}"
        elif other := [k for k, v in state_of(pl_module).items() if then.get(k, v) != v]:
            how = f"but other {' and '.join(other)}"
        loader, first = loader_of(trainer), self._first[1] if trainer.training else 0
        if place["fetches"]:
            first = first if self._first[0] == place["epoch"] else place["batch"] * trainer.training
            keys = self._keys(loader, place["batch"] - first)
            trouble = unread(trainer, loader, keys, self._drawn, exception)
        else:
            trouble = self._trouble or self._raised(exception)
            keys = self._keys(loader, trouble.batch - first)
            trouble = trouble._replace(rows=self._rows(trainer, pl_module, trouble))
        self.found = (
            f"epoch {place['epoch']}, batch {place['batch']}, step {place['step']}, {how}\n"
            f"error   {failure['error']}\nlayer   {trouble.layer}\n"
            f"tensor  {trouble.tensor}: {trouble.about}\n"
            f"sample  {in_words(loader, keys, trouble.rows)}"
        )

    def _keys(self, loader: Any, number: int) -> list[Any]:
        """Return what a batch's samples are called in the data set; empty: it is not known."""
        taken = self._taken.get(id(getattr(loader, "batch_sampler", loader)), [])
        batch = taken[number] if 0 <= number < len(taken) else []
        if not isinstance(batch, tuple):
            return list(batch)
        epoch, places, index = batch
        return [(epoch, p, i) for p, i in zip(places.tolist(), index.tolist(), strict=True)]

    def _raised(self, exception: BaseException) -> Trouble:
        where = self._inside[-1] if self._inside else self._root, "input"
        if self._optimizer:
            where = self._optimizer, "parameter"
        elif self._backward:
            where = self._backward[0], "gradient"
        return Trouble(*where, about(exception), batch=self._number)

    def _rows(self, trainer: Trainer, module: LightningModule, trouble: Trouble) -> Rows:
        """Return the samples that are the reason, by halving the batch if need be."""
        n = self._size
        if trouble.tensor in ("parameter", "buffer"):
            return ()
        if n < 2 or 0 < len(trouble.rows) < n or not module.automatic_optimization:
            return trouble.rows or range(n)
        with patch.object(module, "log"), patch.object(module, "log_dict"):
            fails = partial(self._fails, trainer, module, trouble)
            return halved(range(n), fails) if fails(range(n)) else ()

    def _fails(self, trainer: Trainer, module: Any, trouble: Trouble, rows: Rows) -> bool:
        """Return whether some of a batch's samples fail as all of them do."""

        def of(value: Any) -> Any:  # twice, as a norm can't train on one
            return value[[*rows, *rows]] if value.ndim and len(value) == self._size else value

        batch, random, buffers = self._begins[trouble.batch]
        restore(random)
        for buffer, before in zip(module.buffers(), buffers, strict=True):
            buffer.data.copy_(before)
        self._forget()
        self._trouble, self._usual, self._active = None, set(), True
        function = module.training_step if trainer.training else module.validation_step
        n = len(inspect.signature(function).parameters)
        module.zero_grad()
        try:
            with trainer.precision_plugin.train_step_context():
                output = function(*(apply_to_collection(batch, Tensor, of), trouble.batch, 0)[:n])
            if trainer.training:
                loss = output["loss"] if isinstance(output, dict) else output
                self.on_before_backward(trainer, module, loss)
                loss.backward()
        except Exception as e:
            self._trouble = self._trouble or self._raised(e)
        found: Any = self._trouble or ()
        return bool(found[:2] == trouble[:2])


def reads_late(trainer: Trainer) -> bool:
    """Return whether a run looks at a loss some steps later, so as not to wait for a GPU."""
    return trainer.strategy.root_device.type != "cpu"
