"""Batches of decoded images: torch's DataLoader over one process's share of a split."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anneal.data.sampler import EpochSampler, derive_seed
from anneal.errors import UserError
from anneal.lightning_internals import HasWorkers
from anneal.vision.decode import UnreadableImageError
from anneal.vision.files import ImageSource


class UnreadableImage(NamedTuple):
    """An image that can't be read, or, without a path, the reason why none can.

    A value, as an exception in a worker would end it.
    """

    path: str
    reason: str


CPU = torch.device("cpu")
Collated = tuple[Tensor, Tensor, list[UnreadableImage]]


@dataclass(eq=False)
class DecodedDataset(Dataset[tuple[Tensor, Any] | UnreadableImage]):
    """Images by (epoch, place, index): decoded and transformed with random numbers of their own.

    They follow from the seed, the epoch and the place in the epoch's order, whatever process or
    worker draws them.
    """

    pictures: ImageSource
    transform: Callable[[Tensor, int], Tensor]  # of an image, to a size in pixels
    size: Callable[[int], int]  # of an epoch
    seed: int
    device: torch.device = CPU  # of the batches

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Any] | UnreadableImage:
        epoch, place, index = key
        try:
            image = self.pictures.image(index)
        except UnreadableImageError as e:
            return UnreadableImage(self.pictures.path(index), str(e))
        except UserError as e:  # not this image, but the place of all of them
            return UnreadableImage("", str(e))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would look at every kind of device, for 0.1 ms.
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, place))
            image = self.transform(image, self.size(epoch))
        return image, self.pictures.labels[index]


class ImageLoader(HasWorkers):
    """A DataLoader with an `EpochSampler`, whose workers stay from epoch to epoch.

    A batch is images (N, 3, H, W) uint8 and the rows of an `ImageSource`'s labels. As a DataLoader
    itself it could not skip a batch in which no image can be read, Lightning would refuse its
    sampler on several processes, and warn of it in predictions.

    Workers that `give_way` leave the cores to this process, which computes on a CPU. For an image
    that can't be read, `on_unreadable` raises what is to end the training; otherwise the batch does
    without the image.
    """

    def __init__(
        self,
        decoded: DecodedDataset,
        batch_sampler: EpochSampler,
        num_workers: int,
        give_way: bool,
        on_unreadable: Callable[[UnreadableImage], None],
    ) -> None:
        self.batch_sampler = batch_sampler
        self.on_unreadable = on_unreadable
        # These tell Lightning that a run can resume within an epoch.
        self.state_dict = batch_sampler.state_dict
        self.load_state_dict = batch_sampler.load_state_dict
        self.loader = DataLoader(
            decoded,
            batch_sampler=batch_sampler,
            num_workers=num_workers,
            collate_fn=collate,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available() and decoded.device.type == "cpu",
            worker_init_fn=_idle if give_way else None,
            # They share what they read from; other ways pickle it, and all that it refers to.
            multiprocessing_context="fork" if num_workers and hasattr(os, "fork") else None,
        )

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch, (images, labels, unreadable) in enumerate(self.loader):
            for image in unreadable:
                if not image.path:
                    raise UserError(image.reason, status=1)
                self.on_unreadable(image)
            if len(labels):
                yield images, labels
            elif self.batch_sampler.world_size > 1:
                raise UserError(f"no picture of a batch can be read, such as {unreadable[0].path}")
            else:
                self.batch_sampler.skipped.append(batch)


def _idle(worker: int) -> None:
    """Have a worker run while a core is free, where the system (Linux) has a class for it.

    torch's threads wait for one another, so that a worker that holds up one holds up all: with as
    many threads as cores a training on small photos takes 1.4 times as long.
    """
    with suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def collate(samples: list[Any] | Collated) -> Collated:
    """Return images, targets and what can't be read; in the worker, so that one tensor travels."""
    if isinstance(samples, tuple):  # a batch already
        return samples
    good = [s for s in samples if not isinstance(s, UnreadableImage)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    labels = torch.from_numpy(np.array([label for _, label in good]))
    return images, labels, [s for s in samples if isinstance(s, UnreadableImage)]
