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
from torchmetrics import Metric, MetricCollection

from anneal.callbacks import non_finite_guard
from anneal.callbacks.accumulation import RescaleLastAccumulation
from anneal.callbacks.failure_recorder import loader_of, place_of, state_of
from anneal.callbacks.seed_every_epoch import SeedEveryEpoch, collect, restore
from anneal.data.sampler import EpochSampler
from anneal.errors import UserError, first_line
from anneal.progress import SampleCounter
from anneal.runs.folder import read_checkpoint
from anneal.vision.loader import UnreadableImage

Failure = dict[str, Any]
Rows = Sequence[int]
SHOWN = 3  # samples


def read_failure(file: Path) -> Failure:
    """Return what a failed run has left; raise UserError if the file is something else."""
    try:
        failure: Failure = json.loads(file.read_text())
        return {**failure, "config": str(failure["config"]), "stage": failure["stage"]}
    except (OSError, ValueError, KeyError, TypeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not what a run leaves of a failed step"
        raise UserError(f"{file}: {reason}") from e


def repeat(trainer: Trainer, model: LightningModule, data: LightningDataModule, file: Path) -> str:
    """Train up to a step that has failed, and return what there is to say about it.

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
    return f"replayed {file} from {start or 'the start'}: {watch.found}"


class Passed(Exception):
    """The step is done, and has not failed."""


class Trouble(NamedTuple):
    """What is no number, or raises, and the batch (empty rows: it doesn't tell which of them)."""

    layer: str
    tensor: str
    about: str
    rows: Rows = ()
    batch: int = 0


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
        late = trainer.strategy.root_device.type != "cpu"  # the run has read it so much later
        since = self.failure["step"] - 2 - ((every or self.failure["step"]) if late else 0)
        if trainer.state.stage != self.failure["stage"] or trainer.global_step < since:
            return
        if not self._root:
            self._attach(module)
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
        if trainer.world_size > 1 and isinstance(exception, UserError) and not self._trouble:
            return  # another process has met it
        how = "bit for bit"
        if place != {key: failure[key] for key in place}:
            how = f"which the run noticed in step {failure['step']}"
        elif other := [k for k, v in state_of(pl_module).items() if v != failure["state"][k]]:
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


def halved(rows: Rows, fails: Callable[[Rows], bool]) -> Rows:
    """Return which of some samples fail on their own; all of them, if they fail together only."""
    half = len(rows) // 2
    parts = [part for part in (rows[:half], rows[half:]) if half and fails(part)]
    return [row for part in parts for row in halved(part, fails)] or rows


def unread(
    trainer: Trainer, loader: Any, keys: list[Any], random: Any, e: BaseException
) -> Trouble:
    """Return which sample of a batch can't be read, collated or brought to its device."""
    loader = getattr(loader, "loader", loader)
    samples, everything = [], range(len(keys))
    if not keys or not hasattr(loader, "dataset"):
        return Trouble(type(loader).__name__, "input", about(e), everything)
    restore(random)
    for row, key in enumerate(keys):
        try:
            samples.append(loader.dataset[key])
        except Exception as own:
            e, samples = own, [*samples, UnreadableImage("", "")]
        if isinstance(samples[-1], UnreadableImage):
            return Trouble(type(loader.dataset).__name__, "input", about(e), [row])

    def fails(rows: Rows, transfer: bool = True) -> bool:
        try:
            batch = loader.collate_fn([samples[row] for row in rows])
            if transfer:
                trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        except Exception:
            return True
        return False

    if not fails(everything, transfer=False):
        return Trouble("batch", "input", about(e), halved(everything, fails))
    odd = [row for row in everything if not fails([r for r in everything if r != row], False)]
    return Trouble("collate_fn", "input", about(e), odd or everything)


def about(e: BaseException) -> str:
    """Return what an exception says, and where in the project it was raised."""
    frames = traceback.extract_tb(e.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    return f"{type(e).__name__}: {first_line(e)} ({own[-1].filename}:{own[-1].lineno})"


def in_words(loader: Any, keys: list[Any], rows: Rows) -> str:
    """Name samples of a batch: by index in the data, and by path."""
    if not rows:
        return "none of its own: the batch as a whole"
    dataset = getattr(getattr(loader, "loader", loader), "dataset", None)
    names = [name(dataset, keys[row]) if row < len(keys) else "?" for row in rows[:SHOWN]]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    whole = ": all of the batch" if len(rows) == len(keys) > 1 else ""
    return f"{', '.join(names)}{more} (row {', '.join(map(str, rows[:SHOWN]))}){whole}"


def name(dataset: Any, key: Any) -> str:
    """Return a sample's index in a data set, and the path of its file if it has one."""
    while isinstance(dataset, Subset):
        dataset, key = dataset.dataset, dataset.indices[key]
    index = key[-1] if isinstance(key, tuple) else key
    with suppress(Exception):  # of the many kinds of data sets
        has = hasattr(dataset, "pictures")
        return f"{index} ({dataset.pictures.path(index) if has else dataset.samples[index][0]})"
    return str(index)
