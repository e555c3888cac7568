"""Batches of decoded pictures: torch's DataLoader over one process's share of a split."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anneal.data.sampler import EpochSampler
from anneal.data.seeding import derive_seed
from anneal.errors import UserError
from anneal.vision.decode import UnreadableImageError, decode
from anneal.vision.files import ImageSource


class UnreadableImage(NamedTuple):
    """A picture that can't be read, or none if it has no path: a value, as an exception in a worker
    would end it."""

    path: str
    reason: str


class DecodedDataset(Dataset[tuple[Tensor, int] | UnreadableImage]):
    """Pictures by (epoch, place, index): decoded and transformed with random numbers of their own.

    Args:
        pictures: Where they come from.
        transform: Makes of a picture and a size in pixels an image of that size.
        size: That size, by epoch.
        seed: Random numbers follow from it, the epoch and the place in the epoch's order, whatever
            process or worker draws them.
    """

    def __init__(
        self,
        pictures: ImageSource,
        transform: Callable[[Tensor, int], Tensor],
        size: Callable[[int], int],
        seed: int,
    ) -> None:
        self.pictures = pictures
        self.transform = transform
        self.size = size
        self.seed = seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int] | UnreadableImage:
        epoch, place, index = key
        try:
            image = decode(self.pictures.read(index))
        except UnreadableImageError as e:
            return UnreadableImage(self.pictures.path(index), str(e))
        except UserError as e:  # not this picture, but where all of them lie
            return UnreadableImage("", str(e))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would look at every kind of device, for 0.1 ms.
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, place))
            image = self.transform(image, self.size(epoch))
        return image, int(self.pictures.labels[index])


class ImageLoader(EpochSampler):
    """A share of a split of pictures, decoded by worker processes that stay from epoch to epoch.

    A batch is images (N, 3, H, W) uint8 and labels (N,) int64.

    Args:
        decoded: The pictures.
        batch_size: Pictures in a batch of one process.
        num_workers: Processes that decode; 0: this one.
        give_way: Whether they leave the cores to this process, which computes on a CPU.
        on_broken: Told of every picture that can't be read; the batch goes on without it, so it
            raises what is to end the training.
        **share: The other arguments of `EpochSampler`.
    """

    def __init__(
        self,
        decoded: DecodedDataset,
        batch_size: int,
        num_workers: int,
        give_way: bool,
        on_broken: Callable[[UnreadableImage], None],
        **share: Any,
    ) -> None:
        super().__init__(len(decoded.pictures), batch_size, **share)
        self.on_broken = on_broken
        self.loader = DataLoader(
            decoded,
            batch_sampler=Keys(self),
            num_workers=num_workers,
            collate_fn=collate,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_idle if give_way else None,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, broken in self.loader:
            for picture in broken:
                if not picture.path:
                    raise UserError(picture.reason, status=1)
                self.on_broken(picture)
            if len(labels):
                yield images, labels
            elif self.world_size > 1:
                raise UserError(f"no picture of a batch can be read, such as {broken[0].path}")

    # Lightning ends the workers of a DataLoader by this name. Left to the garbage collector each of
    # them takes 5 s to end.
    @property
    def _iterator(self) -> Any:
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self.loader._iterator = value


def _idle(worker: int) -> None:
    """Has a worker run while a core is free, where the system (Linux) has a class for it.

    torch's threads wait for one another, so that a worker that holds up one holds up all: with as
    many threads as cores a training on small photos takes 1.4 times as long.
    """
    with suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def collate(samples: list[Any]) -> tuple[Tensor, Tensor, list[UnreadableImage]]:
    """In the worker, so that a batch travels as one tensor."""
    good = [s for s in samples if not isinstance(s, UnreadableImage)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    labels = torch.tensor([label for _, label in good], dtype=torch.int64)
    return images, labels, [s for s in samples if isinstance(s, UnreadableImage)]


class Keys:
    """A share as the DataLoader takes it: a list of (epoch, place, index) for each batch."""

    def __init__(self, share: EpochSampler) -> None:
        self.share = share

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for epoch, places, index in self.share.batches():
            yield [(epoch, p, i) for p, i in zip(places.tolist(), index.tolist(), strict=True)]
