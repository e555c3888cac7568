"""A failed step of a training once more: which layer, tensor and sample it fails at first."""

import inspect
import json
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed import DistError
from torch.utils.data import BatchSampler, Subset

from anneal.callbacks import non_finite_guard
from anneal.callbacks.accumulation import RescaleLastAccumulation
from anneal.callbacks.failure_recorder import loader_of, place_of, state_of
from anneal.callbacks.seed_every_epoch import SeedEveryEpoch, collect, restore
from anneal.data.sampler import EpochSampler
from anneal.errors import UserError, first_line
from anneal.launch import is_lost
from anneal.progress import SampleCounter
from anneal.runs.folder import read_checkpoint
from anneal.vision.loader import UnreadableImage

Failure = dict[str, Any]
Rows = Sequence[int]


def read_failure(file: Path) -> Failure:
    """Return what a failed run has left; raise UserError if the file is something else."""
    try:
        failure: Failure = json.loads(file.read_text())
        return {**failure, "config": str(failure["config"])}
    except (OSError, ValueError, KeyError, TypeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not what a run leaves of a failed step"
        raise UserError(f"{file}: {reason}") from e


def repeat(trainer: Trainer, model: LightningModule, data: LightningDataModule, file: Path) -> str:
    """Train up to the step that failed, and return what there is to say about it.

    Args:
        trainer: With the run's settings, but without loggers and checkpoints.
        model: The run's.
        data: Likewise.
        file: What the run has left.

    Raises:
        UserError: The step does not fail again, or there is nothing to start from.
    """
    failure = read_failure(file)
    if trainer.world_size != failure["processes"]:
        raise UserError(f"{file}: that run had {failure['processes']} processes: start as many")
    start = file.parent / failure["checkpoint"] if failure["checkpoint"] else None
    if start and (not start.is_file() or read_checkpoint(start)["global_step"] > failure["step"]):
        raise UserError(f"{start}, to start from, is gone or from after step {failure['step']}")
    watch = Watch(failure)
    more = [SampleCounter(), RescaleLastAccumulation(), SeedEveryEpoch(), watch]
    trainer.callbacks += more  # type: ignore[attr-defined]
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # the error of a kernel is raised where it starts
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), watch.recorded():
            warnings.simplefilter("ignore")
            trainer.fit(model, data, ckpt_path=start)
    except Exception as e:
        if not watch.found and not isinstance(e, Passed):
            if trainer.world_size > 1:
                raise DistError("the step fails in another process") from e
            raise
    if not watch.found:
        raise UserError(f"step {failure['step']} does not fail again: {failure['error']}", status=1)
    many = f" in {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return f"replayed {file}{many} from {start or 'the start'}: {watch.found}"


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


class Trouble(NamedTuple):
    """What is no number or raises, and by which samples of its batch, if that is known."""

    layer: str
    tensor: str
    about: str
    rows: Rows


class Watch(Callback):
    """Look at all that a module computes in the step that failed, and say where it fails.

    Args:
        failure: What the run has left.

    Attributes:
        found: What there is to say; empty: nothing has failed yet.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        self.found = self._root = ""
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

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, number: int) -> None:
        if trainer.global_step > self.failure["step"]:
            raise Passed
        self._begin(trainer, module, batch, number)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, number: int, loader: int = 0
    ) -> None:
        self._begin(trainer, pl_module, batch, number)

    def _begin(self, trainer: Trainer, module: LightningModule, batch: Any, number: int) -> None:
        keys, failed = self._next_keys(trainer).pop(0), self.failure["step"]
        since = failed - 2
        if reads_late(trainer):
            since -= trainer.log_every_n_steps or failed  # type: ignore[attr-defined]
        if trainer.state.stage != self.failure["stage"] or trainer.global_step < since:
            return
        if not self._root:
            self._step = trainer.global_step
            self._attach(module)
        for guard in trainer.callbacks if trainer.global_step == failed else ():  # type: ignore[attr-defined]
            if isinstance(guard, non_finite_guard.NonFiniteGuard):
                guard.skip = guard.skipped  # the run may have left out others before
        self._forget()
        size = 0
        with suppress(Exception):
            size = extract_batch_size(batch)
        keys = keys if len(keys) == size else []  # some photos may have been left out
        buffers = [b.clone() for b in module.buffers()]
        self._batch = Batch(number, batch, size, keys, collect(), buffers)
        self._look("batch", "input", batch)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._batch = None
        if trainer.global_step != self._step:  # it was good, or left out
            if not {"loss", "gradient"} & {tensor for _, tensor in self._bad}:
                self._usual |= self._bad
            self._step, self._trouble, self._bad = trainer.global_step, None, set()

    def on_validation_batch_end(self, *args: Any) -> None:
        self._batch = None

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
                    p.register_post_accumulate_grad_hook(partial(self._accumulated, name))

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

    def _accumulated(self, name: str, parameter: Tensor) -> None:
        self._look(name, "gradient", parameter.grad)

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
        seen = self._trouble or not isinstance(e, UserError) or trainer.world_size == 1
        if isinstance(e, Passed) or place is None or is_lost(e) or not seen:
            return  # not seen: it is another process that fails
        how, then = "bit for bit", failure["state"]
        if place != {key: failure[key] for key in place}:
            how = f"which the run noticed in step {failure['step']}"
        elif other := [k for k, v in state_of(pl_module).items() if then.get(k, v) != v]:
            how = f"but other {' and '.join(other)}"
        if place["fetches"]:
            keys = self._next_keys(trainer)[0]
            trouble = unread(loader_of(trainer), keys, self._drawn, e)
        else:
            batch: Any = self._batch
            trouble, batch = self._trouble or (self._raised(e), batch)
            keys = batch.keys
            trouble = trouble._replace(rows=self._rows(trainer, pl_module, trouble, batch))
        self.found = (
            f"epoch {place['epoch']}, batch {place['batch']}, step {place['step']}, {how}\n"
            f"error   {failure['error']}\nlayer   {trouble.layer}\n"
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

        def of(value: Any) -> Any:  # twice, as a norm can't train on one
            return value[[*rows, *rows]] if value.ndim and len(value) == batch.size else value

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


def reads_late(trainer: Trainer) -> bool:
    """Return whether a run looks at a loss some steps later, so as not to wait for a GPU."""
    return trainer.strategy.root_device.type != "cpu"


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors in a collection."""
    found: list[Tensor] = []
    apply_to_collection(values, Tensor, found.append)
    return found


def halved(rows: Rows, fails: Callable[[Rows], bool]) -> Rows:
    """Return which of some samples fail on their own; all of them, if they fail together only."""
    half = len(rows) // 2
    parts = [part for part in (rows[:half], rows[half:]) if half and fails(part)]
    return [row for part in parts for row in halved(part, fails)] or rows


def unread(loader: Any, keys: list[Any], random: Any, e: BaseException) -> Trouble:
    """Return which sample of a batch can't be read, or collated with the others."""
    loader = getattr(loader, "loader", loader)
    samples, every = [], range(len(keys))
    if not keys or not hasattr(loader, "dataset"):
        return Trouble("batch", "input", about(e), every)
    restore(random)
    for row, key in enumerate(keys):
        try:
            samples.append(loader.dataset[key])
        except Exception as own:
            return Trouble(type(loader.dataset).__name__, "input", about(own), [row])
        if isinstance(samples[-1], UnreadableImage):
            return Trouble(type(loader.dataset).__name__, "input", about(e), [row])

    def fails(rows: Rows) -> bool:
        try:
            loader.collate_fn([samples[row] for row in rows])
        except Exception:
            return True
        return False

    if not fails(every):  # it is moved to a device, or changed there
        return Trouble("batch", "input", about(e), ())
    odd = [row for row in every if not fails([r for r in every if r != row])]
    return Trouble("collate_fn", "input", about(e), odd)


def about(e: BaseException) -> str:
    """Return what an exception says, and where in the project it was raised."""
    frames = traceback.extract_tb(e.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    return f"{type(e).__name__}: {first_line(e)} ({own[-1].filename}:{own[-1].lineno})"


def in_words(loader: Any, keys: list[Any], rows: Rows) -> str:
    """Name samples of a batch: by index in the data, by path, by row."""
    dataset = getattr(getattr(loader, "loader", loader), "dataset", None)
    names = []
    for row in rows[:3]:
        source: Any = dataset
        key = keys[row] if row < len(keys) else "?"
        while isinstance(source, Subset):
            source, key = source.dataset, source.indices[key]
        key, path = key[-1] if isinstance(key, tuple) else key, ""
        with suppress(Exception):  # of the many kinds of data sets
            found = (
                source.samples[key][0] if hasattr(source, "samples") else source.pictures.path(key)
            )
            path = f" ({found})"
        names.append(f"{key}{path}")
    if not rows:
        return "none of its own: the batch as a whole"
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    whole = ": all of the batch" if len(rows) == len(keys) > 1 else ""
    return f"{', '.join(names)}{more} (row {', '.join(map(str, rows[:3]))}){whole}"
