"""A failed step of a training once more: which layer, tensor and sample it fails at first."""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed import DistError
from torch.utils.data import BatchSampler, Subset

from anneal.callbacks import non_finite_guard
from anneal.callbacks.failure_recorder import keys_of, loader_of, place_of, state_of
from anneal.callbacks.non_finite_guard import NonFiniteGuard
from anneal.callbacks.seed_every_epoch import SeedEveryEpoch, collect, restore
from anneal.commands.watch import Layers, Rows, Step, Trouble, about
from anneal.errors import UserError, first_line
from anneal.launch import is_lost
from anneal.lightning_internals import callbacks_of
from anneal.progress import Clock
from anneal.runs.folder import read_checkpoint
from anneal.vision.loader import UnreadableImage

Failure = dict[str, Any]


def read_failure(file: Path) -> Failure:
    """Return what a failed run has left; raise UserError if the file is something else."""
    try:
        failure: Failure = json.loads(file.read_text())
        return {**failure, "config": str(failure["config"])}
    except (OSError, ValueError, KeyError, TypeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not what a run leaves of a failed step"
        raise UserError(f"{file}: {reason}") from e


def replay(run: Any, file: Path) -> None:
    """Repeat the step that a run failed in: at which layer, tensor and sample.

    Args:
        file: What the run has left of that step, failure-STEP.json in its folder; the word alone
            will do.
    """
    trainer, failure = run.trainer, read_failure(file)
    if trainer.world_size != failure["processes"]:
        raise UserError(f"{file}: that run had {failure['processes']} processes: start as many")
    start = file.parent / failure["checkpoint"] if failure["checkpoint"] else None
    if start and (not start.is_file() or read_checkpoint(start)["global_step"] > failure["step"]):
        raise UserError(f"{start}, to start from, is gone or from after step {failure['step']}")
    watch = Watch(failure)
    trainer.callbacks[:] = [Clock(), *trainer.callbacks, SeedEveryEpoch(), watch]
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # the error of a kernel is raised where it starts
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), watch.recorded(trainer, run.model):
            trainer.fit(run.model, run.data, ckpt_path=start)
    except Exception as e:
        if watch.elsewhere:
            raise DistError("the step fails in another process") from e
        if not watch.found:
            raise
    if not watch.found:
        raise watch.passed
    many = f" in {trainer.world_size} processes" if trainer.world_size > 1 else ""
    found = f"replayed {file}{many} from {start or 'the start'}: {watch.found}"
    if many:
        raise UserError(found, status=0)  # shown once, whichever process it is
    print(found)


class Watch(Callback):
    """Keep the last steps of a training, and say where one fails.

    Attributes:
        found: What there is to say; empty: nothing has failed yet.
        elsewhere: Whether it is another process that fails.
        passed: Raised after the step if it has not failed.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        self.found = ""
        self.elsewhere = False
        again = f"step {failure['step']} does not fail again: {failure['error']}"
        self.passed = UserError(again, status=1)
        self._keys: dict[tuple[int, int], Any] = {}  # by torch's sampler and number of the batch
        self._drawn: dict[str, Any] = {}  # random numbers before the last of these is read
        self._update = -1  # the next one
        self._steps: list[Step] = []  # since the one before
        self._good: list[Step] = []

    @contextmanager
    def recorded(self, trainer: Trainer, module: LightningModule) -> Iterator[None]:
        """Keep within a block the steps and what torch's samplers give; read nothing late."""
        given, strategy = BatchSampler.__iter__, trainer.strategy

        def sampled(sampler: BatchSampler) -> Iterator[list[int]]:
            for number, batch in enumerate(given(sampler)):
                self._keys[id(sampler), number] = batch
                self._drawn = collect()
                yield batch

        keep = partial(self._keep, trainer, module)
        with (
            patch.object(BatchSampler, "__iter__", sampled),
            patch.object(non_finite_guard, "waits", lambda value: False),
            patch.object(strategy, "training_step", partial(keep, strategy.training_step)),
            patch.object(strategy, "validation_step", partial(keep, strategy.validation_step)),
        ):
            yield

    def _keep(self, trainer: Trainer, module: LightningModule, make: Any, *args: Any) -> Any:
        update, failed = trainer.global_step, self.failure["step"]
        if update > failed:
            raise self.passed
        for guard in callbacks_of(trainer, NonFiniteGuard) if update == failed else ():
            guard.skip = guard.skipped  # the run may have left out others before
        if update != self._update or not trainer.training:
            self._update, self._good, self._steps = update, self._steps[-1:], []
        number = (place_of(trainer) or {"batch": 0})["batch"]
        copied = apply_to_collection(args, Tensor, torch.clone)
        buffers = [buffer.clone() for buffer in module.buffers()]
        self._steps.append(Step(number, copied, collect(), buffers))
        return make(*args)

    def on_exception(self, trainer: Trainer, module: LightningModule, e: BaseException) -> None:
        failure, place = self.failure, place_of(trainer)
        if e is self.passed or not place or not isinstance(e, Exception) or is_lost(e):
            return
        how = "bit for bit"
        if place != {key: failure[key] for key in place}:
            how = f"where the run went on until step {failure['step']}"
        elif other := [k for k, v in state_of(module).items() if failure["state"].get(k, v) != v]:
            how = f"but other {' and '.join(other)}"
        keys = self._keys_of(trainer, place["batch"])
        if place["fetches"]:
            trouble = unread(loader_of(trainer), keys, self._drawn, e)
        else:
            layers = Layers(trainer, module)
            trouble = raised = layers.raised(e)
            with suppress(RuntimeError):  # a device that has failed makes no step again
                trouble = layers.find(e, self._steps, self._good)
                trouble = trouble._replace(rows=layers.blame(trouble))
            alike = trouble.about == raised.about
            if alike and isinstance(e, UserError) and trainer.world_size > 1:
                self.elsewhere = True
                return
        if step := trouble.step:
            keys = self._keys_of(trainer, step.number)
            keys = keys if len(keys) == step.size else []  # some photos may have been left out
        self.found = (
            f"epoch {place['epoch']}, batch {place['batch']}, step {place['step']}, {how}\n"
            f"error   {type(e).__name__}: {first_line(e)}\nlayer   {trouble.layer}\n"
            f"tensor  {trouble.tensor}: {trouble.about}\n"
            f"sample  {in_words(loader_of(trainer), keys, trouble.rows)}"
        )

    def _keys_of(self, trainer: Trainer, batch: int) -> list[Any]:
        sampler = getattr(loader_of(trainer), "batch_sampler", None)
        return keys_of(trainer, batch) or self._keys.get((id(sampler), batch), [])


def unread(loader: Any, keys: list[Any], random: dict[str, Any], e: Exception) -> Trouble:
    """Return which sample of a batch can't be read, or collated with the others."""
    loader = getattr(loader, "loader", loader)
    samples: list[Any] = []
    every = range(len(keys)) if hasattr(loader, "dataset") else ()
    if random:
        restore(random)
    for row in every:
        try:
            samples.append(loader.dataset[keys[row]])
            if isinstance(samples[-1], UnreadableImage):
                raise e
        except Exception as own:
            return Trouble(type(loader.dataset).__name__, "input", about(own), [row])

    def fails(rows: Rows) -> bool:
        with suppress(Exception):
            loader.collate_fn([samples[row] for row in rows])
            return False
        return True

    if not every or not fails(every):  # it is moved to a device, or changed there
        return Trouble("batch", "input", about(e))
    odd = [row for row in every if not fails([r for r in every if r != row])]
    return Trouble("collate_fn", "input", about(e), odd)


def in_words(loader: Any, keys: list[Any], rows: Rows) -> str:
    """Name samples of a batch: by index in the data, by path, by row."""
    if not rows:
        return "none of its own: the batch as a whole"
    dataset = getattr(getattr(loader, "loader", loader), "dataset", None)
    names = [name_of(dataset, keys[row]) if row < len(keys) else "?" for row in rows[:3]]
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    whole = ": all of the batch" if len(rows) == len(keys) > 1 else ""
    return f"{', '.join(names)}{more} (row {', '.join(map(str, rows[:3]))}){whole}"


def name_of(dataset: Any, key: Any) -> str:
    """Return the index of a sample in its data set, and its path if it has one."""
    while isinstance(dataset, Subset):
        dataset, key = dataset.dataset, dataset.indices[key]
    index = key[-1] if isinstance(key, tuple) else key
    with suppress(Exception):  # of the many kinds of data sets
        pictures = getattr(dataset, "pictures", None)
        return f"{index} ({pictures.path(index) if pictures else dataset.samples[index][0]})"
    return str(index)
