"""A failed step of a training once more: which layer, tensor and sample it fails at first."""

import inspect
import json
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed import DistError
from torch.utils.data import BatchSampler, Subset
from torchmetrics import Metric, MetricCollection

from anneal.callbacks.accumulation import RescaleLastAccumulation
from anneal.callbacks.failure_recorder import fingerprints, loader_of, place_of
from anneal.callbacks.non_finite_guard import NonFiniteGuard, waits
from anneal.callbacks.seed_every_epoch import SeedEveryEpoch, collect, restore
from anneal.data.sampler import EpochSampler
from anneal.errors import UserError, first_line
from anneal.progress import SampleCounter
from anneal.runs.folder import read_checkpoint
from anneal.vision.loader import UnreadableImage

Failure = dict[str, Any]
PLACE = ("stage", "epoch", "batch", "fetches")
SHOWN = 3  # samples


class Trouble(NamedTuple):
    """What is no number, or raises.

    Attributes:
        layer: Qualified name of the module.
        tensor: parameter, buffer, input, activation, loss or gradient.
        about: What is wrong with it.
        rows: Its samples' places in the batch; empty: it doesn't tell.
    """

    layer: str
    tensor: str
    about: str
    rows: Sequence[int] = ()


@dataclass
class Step:
    """What a step begins with."""

    batch: Any
    number: int
    size: int
    random: dict[str, Any]
    buffers: list[Tensor]


class Passed(Exception):
    """The step is done, and has not failed."""


def read_failure(file: Path) -> Failure:
    """Return what a failed run has left; raise UserError if the file is something else."""
    try:
        failure: Failure = json.loads(file.read_text())
        if not isinstance(failure["config"], str):
            raise TypeError
        return failure
    except OSError as e:
        raise UserError(f"{file}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file} is not what a run leaves of a step that fails") from e


def repeat(trainer: Trainer, model: LightningModule, data: LightningDataModule, file: Path) -> str:
    """Train up to a step that has failed, and return what is to say about it.

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
        with warnings.catch_warnings(), watch.samples.recorded():
            warnings.simplefilter("ignore")
            trainer.fit(model, data, ckpt_path=start)
    except Exception as e:
        if not watch.found and not isinstance(e, Passed):
            if trainer.world_size > 1:
                raise DistError("the step fails in another process") from e
            raise
    if not watch.found:
        raise UserError(f"step {failure['step']} does not fail again: {failure['error']}", status=1)
    return f"replayed {file} from {start or 'the start'}: {watch.found}"


class Samples:
    """The samples of each batch, as the samplers of the loaders give them."""

    def __init__(self) -> None:
        self.taken: dict[int, list[Any]] = {}
        self.random: dict[str, Any] = {}  # before the last batch was read

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record them within a block."""

        def recording(batches: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
            def record(sampler: Any) -> Iterator[Any]:
                taken = self.taken[id(sampler)] = []
                for batch in batches(sampler):
                    taken.append(batch)
                    self.random = collect()
                    yield batch

            return record

        ours, torchs = recording(EpochSampler.batches), recording(BatchSampler.__iter__)
        with patch.object(EpochSampler, "batches", ours):
            with patch.object(BatchSampler, "__iter__", torchs):
                yield

    def of(self, loader: Any, number: int) -> list[Any]:
        """Return a batch's keys in the data set; empty: they are not known."""
        taken = self.taken.get(id(getattr(loader, "batch_sampler", loader)), [])
        batch = taken[number] if 0 <= number < len(taken) else []
        if isinstance(batch, tuple):
            epoch, places, index = batch
            return [(epoch, p, i) for p, i in zip(places.tolist(), index.tolist(), strict=True)]
        return list(batch)


class Watch(Callback):
    """Look at all that a module computes in the step that has failed, and say where it fails.

    Args:
        failure: What the run has left.

    Attributes:
        found: What there is to say; empty: nothing has failed yet.
        samples: Which samples make the batches.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        self.found = ""
        self.samples = Samples()
        self._first = (-1, 0)  # an epoch, and the batch at which it began
        self._taken = 0  # optimizer steps
        self._names: dict[Any, str] = {}
        self._active = False
        self._step: Step | None = None
        self._trouble: tuple[Trouble, Step] | None = None  # the first, and its step
        self._bad: set[tuple[str, str]] = set()  # layers and their tensors since the last update
        self._usual: set[tuple[str, str]] = set()  # such as -inf for what a mask hides
        self._inside: list[str] = []  # layers that are at work
        self._ends: dict[Any, list[str]] = {}  # layers that give and take what a node computes
        self._backward: list[str] = []  # those of the last gradient
        self._optimizer = ""  # at work
        self._over = False  # the step was bad, which is read later
        self._root = ""

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
        failure = self.failure
        for guard in guards_of(trainer):
            if place_of(trainer) == {k: failure[k] for k in PLACE}:
                guard.skip = guard.skipped  # the run may have left out some before the checkpoint
        on_cpu = trainer.strategy.root_device.type == "cpu"
        # Elsewhere a loss is read late; the step before shows what is usual.
        early = 2 if on_cpu else 2 + (trainer.log_every_n_steps or failure["step"])
        if trainer.state.stage != failure["stage"] or trainer.global_step < failure["step"] - early:
            return
        if not self._names:
            self._attach(module)
        self._inside, self._ends, self._backward, self._optimizer = [], {}, [], ""
        size = 0
        with suppress(Exception):
            size = extract_batch_size(batch)
        buffers = [b.clone() for b in module.buffers()]
        self._step = Step(batch, number, size, collect(), buffers)
        self._active = True
        self._look("batch", "input", batch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if not self._active or trainer.global_step == self._taken:
            return
        self._taken = trainer.global_step
        ends = {"loss"} if trainer.precision == "16-mixed" else {"loss", "gradient"}
        if ends & {tensor for _, tensor in self._bad}:
            self._over = not any(g.skip for g in guards_of(trainer))  # else it was left out
        else:
            self._usual |= self._bad
        if not self._over:
            self._bad, self._trouble = set(), None
        self._active = False

    def on_validation_batch_end(self, *args: Any) -> None:
        self._active = False

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self._backward = [self._root]
        self._look(self._root, "loss", loss)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        self._optimizer = type(optimizer).__name__
        for name, p in pl_module.named_parameters() if trainer.world_size == 1 else ():
            self._look(self._owner(name), "gradient", p.grad)

    # ---- within a step

    def _attach(self, module: LightningModule) -> None:
        """Have each module and each parameter show what it computes."""
        self._root = type(module).__name__
        for name, layer in module.named_modules():
            if isinstance(layer, Metric | MetricCollection):
                continue
            enter = partial(self._enter, name or self._root)
            layer.register_forward_pre_hook(enter, with_kwargs=True)
            layer.register_forward_hook(partial(self._leave, name or self._root))
        for name, p in module.named_parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(partial(self._accumulated, self._owner(name)))

    def _owner(self, parameter: str) -> str:
        return parameter.rpartition(".")[0] or self._root

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
            if not self._active or self._over or (good := value.detach().isfinite()).all():
                return
            self._bad.add((layer, tensor))
            if self._trouble is None and (layer, tensor) not in self._usual:
                n, bad = self._step.size, ~good
                by_row = bad.flatten(1).any(1) if value.ndim > 1 else bad
                rows = by_row.nonzero().flatten().tolist() if value.ndim and len(bad) == n else []
                about = (
                    f"{list(value.shape)} {value.dtype}, {bad.sum()} of {bad.numel()} not finite"
                )
                self._trouble = Trouble(layer, tensor, about, rows), self._step

        apply_to_collection(values, Tensor, look)

    # ---- the failure

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        failure, place = self.failure, place_of(trainer)
        guarded = isinstance(exception, UserError) and trainer.world_size > 1
        if isinstance(exception, Passed) or place != {k: failure[k] for k in PLACE}:
            return
        if guarded and not self._trouble and not place["fetches"]:  # what another process has met
            return
        batch = self._step.batch if self._step else None
        now = fingerprints(pl_module, batch)
        other = [name for name, digest in now.items() if digest != failure["state"][name]]
        loader, number, names = loader_of(trainer), place["batch"], []
        if place["fetches"]:
            first = self._first[1] if self._first[0] == place["epoch"] else number
            keys = self.samples.of(loader, number - first * trainer.training)
            trouble = unread(trainer, loader, keys, self.samples.random, exception)
        else:
            trouble, step = self._trouble or (self._raised(exception), self._step)
            keys = self.samples.of(loader, step.number - self._first[1] * trainer.training)
            trouble = trouble._replace(rows=self._rows(trainer, pl_module, trouble, step))
        self.found = "\n".join(
            [
                f"epoch {place['epoch']}, batch {place['batch']}, step {failure['step']}, "
                + (f"but other {' and '.join(other)}" if other else "bit for bit"),
                f"error   {failure['error']}",
                f"layer   {trouble.layer}",
                f"tensor  {trouble.tensor}: {trouble.about}",
                f"sample  {in_words(loader, keys, trouble.rows)}",
            ]
        )

    def _raised(self, exception: BaseException) -> Trouble:
        layer = self._inside[-1] if self._inside else self._root
        if self._optimizer:
            return Trouble(self._optimizer, "parameter", about(exception))
        if self._backward:
            return Trouble(self._backward[0], "gradient", about(exception))
        return Trouble(layer, "input", about(exception))

    def _rows(
        self, trainer: Trainer, module: LightningModule, trouble: Trouble, step: Step
    ) -> Sequence[int]:
        """Return the samples that are the reason, by halving the batch if need be."""
        if trouble.tensor in ("parameter", "buffer"):
            return ()
        if step.size < 2 or 0 < len(trouble.rows) < step.size:
            return trouble.rows or range(step.size)
        if not module.automatic_optimization:
            return ()
        with patch.object(module, "log"), patch.object(module, "log_dict"):
            again = partial(self._fails, trainer, module, trouble, step)
            return halved(range(step.size), again) if again(range(step.size)) else ()

    def _fails(
        self,
        trainer: Trainer,
        module: LightningModule,
        trouble: Trouble,
        step: Step,
        rows: Sequence[int],
    ) -> bool:
        """Return whether some of a batch's samples fail as all of them do."""

        def of(value: Any) -> Any:
            return value[list(rows)] if value.ndim and len(value) == step.size else value

        restore(step.random)
        for buffer, before in zip(module.buffers(), step.buffers, strict=True):
            buffer.data.copy_(before)
        self._inside, self._ends, self._backward, self._optimizer = [], {}, [], ""
        self._trouble, self._usual, self._active, self._over = None, set(), True, False
        function = module.training_step if trainer.training else module.validation_step
        arguments = (apply_to_collection(step.batch, Tensor, of), step.number, 0)
        arguments = arguments[: len(inspect.signature(function).parameters)]
        module.zero_grad()
        try:
            with trainer.precision_plugin.train_step_context():
                output = function(*arguments)
                if trainer.training:
                    loss = output["loss"] if isinstance(output, dict) else output
                    self.on_before_backward(trainer, module, loss)
                    loss.backward()
        except Exception as e:
            found = self._trouble[0] if self._trouble else self._raised(e)
        else:
            found = self._trouble[0] if self._trouble else Trouble("", "", "")
        return found[:2] == trouble[:2]


def guards_of(trainer: Trainer) -> list[NonFiniteGuard]:
    """Return what looks at the loss and its gradient."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if isinstance(c, NonFiniteGuard)]


def halved(rows: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> Sequence[int]:
    """Return which of some samples fail on their own; all of them, if they fail together only."""
    half = len(rows) // 2
    parts = [part for part in (rows[:half], rows[half:]) if half and fails(part)]
    return [row for part in parts for row in halved(part, fails)] or rows


def unread(
    trainer: Trainer, loader: Any, keys: list[Any], random: dict[str, Any], e: BaseException
) -> Trouble:
    """Return which sample of a batch can't be read, collated or brought to its device."""
    loader = getattr(loader, "loader", loader)
    dataset = getattr(loader, "dataset", None)
    if dataset is None or not keys:
        return Trouble(type(loader).__name__, "input", about(e), range(len(keys)))
    restore(random)
    samples = []
    for row, key in enumerate(keys):
        try:
            samples.append(dataset[key])
        except Exception as own:
            return Trouble(type(dataset).__name__, "input", about(own), [row])
        if isinstance(samples[-1], UnreadableImage):
            return Trouble(type(dataset).__name__, "input", about(e), [row])

    def fails(rows: Sequence[int], transfer: bool = True) -> bool:
        try:
            batch = loader.collate_fn([samples[row] for row in rows])
            if transfer:
                trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        except Exception:
            return True
        return False

    everything = range(len(keys))
    if not fails(everything, transfer=False):
        return Trouble("batch", "input", about(e), halved(everything, fails))
    odd = [row for row in everything if not fails([r for r in everything if r != row], False)]
    return Trouble("collate_fn", "input", about(e), odd or everything)


def about(e: BaseException) -> str:
    """Return what an exception says, and where in the project it was raised."""
    frames = traceback.extract_tb(e.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename] or list(frames)
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(e).__name__}: {first_line(e)}{where}"


def in_words(loader: Any, keys: list[Any], rows: Sequence[int]) -> str:
    """Name samples of a batch: by index in the data, and by path."""
    if not rows:
        return "none of its own: the batch as a whole"
    dataset = getattr(getattr(loader, "loader", loader), "dataset", None)
    names = [name(dataset, keys[row]) if row < len(keys) else f"row {row}" for row in rows]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    whole = ": all of the batch" if len(rows) == len(keys) > 1 else ""
    return f"{', '.join(names[:SHOWN])}{more} (row {', '.join(map(str, rows[:SHOWN]))} of the batch){whole}"


def name(dataset: Any, key: Any) -> str:
    """Return a sample's index in a data set, and the path of its file if it has one."""
    while isinstance(dataset, Subset):
        dataset, key = dataset.dataset, dataset.indices[key]
    index = key[-1] if isinstance(key, tuple) else key
    path = ""
    with suppress(Exception):
        path = (
            dataset.pictures.path(index)
            if hasattr(dataset, "pictures")
            else dataset.samples[index][0]
        )
    return f"{index} ({path})" if path else f"{index}"
