"""Which samples make each batch of each process, and batches of samples held in memory."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from anneal.callbacks.samples import SamplesSeen
from anneal.errors import UserError


class Share:
    """One process's share of a split: which samples make each of its batches.

    Every sample comes exactly once, in one process, and all processes make the same number of
    steps: the order is cut into batches of `batch_size * world_size`, of which each process takes
    every `world_size`-th sample. A rest of fewer than two samples for each process joins the batch
    before it, as batch norm can't train on one and a process can't step on none.

    Args:
        size: Samples in the split.
        batch_size: Samples in a batch of one process.
        rank: Number of this process.
        world_size: How many processes there are.
        seed: Shuffles by this number and the epoch, whatever else has drawn random numbers. None:
            the order as it is.
        position: Tells, when the first batch is asked for, the epoch, how many of its batches are
            done, and how many samples these had in all processes; 0 if that is not known.
        shuffle: The permutation of a generator, if not any is as good.
        repeats: How often each sample in turn stands in the order, which keeps its length: an epoch
            then sees a part of them several times (Hoffer et al. 2020, arXiv 1901.09335).
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
        position: Callable[[], tuple[int, int, int]] | None = None,
        shuffle: Callable[[torch.Generator], Tensor] | None = None,
        repeats: int = 1,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.position = position
        self.shuffle = shuffle
        self.repeats = repeats

    def __len__(self) -> int:
        return self.left(0)

    def left(self, samples: int) -> int:
        """Batches that are left of an epoch when so many samples are done."""
        whole, rest = divmod(self.size - samples, self.batch_size * self.world_size)
        return max(1, whole + (rest >= 2 * self.world_size))

    def batches(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The epoch, places in its order and the samples that stand there, batch by batch."""
        epoch, done, samples = self.position() if self.position else (0, 0, 0)
        order = torch.arange(self.size)
        if self.seed is not None:
            generator = generator_of(self.seed, epoch)
            if self.shuffle:
                order = self.shuffle(generator)
            else:
                order = torch.randperm(self.size, generator=generator)
            # On as many processes as there are repeats each gets one of them; on fewer, one whole
            # step follows the other, so that no picture meets itself in a batch.
            block = 1 if self.world_size >= self.repeats else self.batch_size * self.world_size
            if self.repeats > 1:
                blocks = order.split(block)
                order = torch.cat([b.repeat(self.repeats) for b in blocks])[: self.size]
        step = self.batch_size * self.world_size
        start = samples or done * step
        last = self.left(start) - 1
        for batch in range(last + 1):
            end = start + step if batch < last else self.size
            places = torch.arange(start, end)[self.rank :: self.world_size]
            yield epoch, places, order[places]
            start = end

    def state_dict(self) -> dict[str, int]:
        """Empty: `position` says where to go on. That it is there tells Lightning that we can."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load."""


class Batches(Share):
    """A share of samples held in memory: indexing into tensors, without workers.

    Args:
        images: All images of the split, (N, ...).
        labels: All labels of the split, (N,).
        batch_size: Samples in a batch of one process.
        **share: The other arguments of `Share`.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, **share: Any) -> None:
        super().__init__(len(labels), batch_size, **share)
        self.images = images
        self.labels = labels

    @classmethod
    def in_run(
        cls,
        trainer: Trainer | None,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        shuffle: bool = False,
    ) -> "Batches":
        """The share of this process in a run: what a data module's loaders return.

        Args:
            trainer: The data module's; None: outside of a run, everything.
            images: All images of the split, (N, ...).
            labels: All labels of the split, (N, ...).
            batch_size: Samples in a batch of one process.
            shuffle: Whether each epoch has an order of its own. It follows from seed and epoch, so
                a resumed run goes on in it.
        """
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        fixed = bool(trainer and trainer.overfit_batches)  # type: ignore[attr-defined]
        return cls(
            images,
            labels,
            batch_size,
            rank=rank,
            world_size=world_size,
            seed=run_seed() if shuffle and not fixed else None,
            position=partial(position_in, trainer) if shuffle else None,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _, _, index in self.batches():
            yield self.images[index], self.labels[index]


def check_size(name: str, split: str, size: int, batch_size: int, processes: int) -> None:
    """Raises UserError if a split has no sample for a process, or that to train on no full batch.

    Args:
        name: Of the data.
        split: `train` is the one to train on.
        size: Its samples.
        batch_size: Samples in a batch of one process.
        processes: How many there are.
    """
    if size < processes:
        raise UserError(
            f"{name} has {size} {split} images, fewer than the {processes} processes: lower "
            "trainer.devices"
        )
    if split == "train" and size < batch_size * processes:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"{name} has {size} {split} images, fewer than a batch of {batch_size}{each}: lower "
            "data.batch_size"
        )


def stratified_split(
    labels: Tensor, held_out: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Splits 0..N-1 in two, with each class in the same proportion in both.

    Returns:
        The indices that stay and the `held_out` others, both in rising order.
    """
    n = len(labels)
    shuffled = torch.randperm(n, generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Evenly spaced places in a list sorted by class meet each class in proportion.
    picked = torch.zeros(n, dtype=torch.bool)
    picked[(2 * torch.arange(held_out) + 1) * n // (2 * held_out)] = True
    return by_class[~picked].sort().values, by_class[picked].sort().values


def run_seed() -> int:
    """What `seed_everything` was last set to; 0 if never."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def seed_of(*key: int) -> int:
    """A seed that depends on these numbers only, and is unrelated for any others."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def generator_of(*key: int) -> torch.Generator:
    """A generator seeded with `seed_of` these numbers."""
    return torch.Generator().manual_seed(seed_of(*key))


def position_in(trainer: Trainer | None) -> tuple[int, int, int]:
    """The epoch, how many of its batches are done, and how many samples they had (0: not counted).

    Lightning's own counters, which it restores from a checkpoint, and those of `SamplesSeen`: they
    are right after any resume, in the middle of an epoch too.
    """
    if trainer is None:
        return 0, 0, 0
    loop = trainer.fit_loop
    seen = SamplesSeen.of(trainer)
    return (
        loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
        loop.epoch_loop.batch_progress.current.ready,
        seen.in_epoch(trainer) if seen else 0,
    )
