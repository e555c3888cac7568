"""Samples held in memory, served in batches by index and split over processes."""

import os
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor


class Batches:
    """One process's share of a split, batch by batch: indexing into tensors, without workers.

    Every sample comes exactly once, in one process, and all processes make the same number of
    steps: the order is cut into batches of `batch_size * world_size`, of which each process takes
    every `world_size`-th sample. A rest of fewer than two samples for each process joins the batch
    before it, as batch norm can't train on one and a process can't step on none.

    Args:
        images: All images of the split, (N, ...).
        labels: All labels of the split, (N,).
        batch_size: Samples in a batch of one process.
        rank: Number of this process.
        world_size: How many processes there are.
        seed: Shuffles by this number and the epoch, whatever else has drawn random numbers. None:
            the order of the tensors.
        position: Tells, when the first batch is asked for, the epoch and the batch to begin with.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
        position: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.position = position

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.batch_size * self.world_size)
        return max(1, whole + (rest >= 2 * self.world_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, start = self.position() if self.position else (0, 0)
        order = torch.arange(len(self.labels))
        if self.seed is not None:
            order = torch.randperm(len(order), generator=generator_of(self.seed, epoch))
        step = self.batch_size * self.world_size
        for batch in range(start, len(self)):
            end = (batch + 1) * step if batch + 1 < len(self) else None
            index = order[batch * step : end][self.rank :: self.world_size]
            yield self.images[index], self.labels[index]

    def state_dict(self) -> dict[str, int]:
        """Empty: `position` says where to go on. That it is there tells Lightning that we can."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load."""


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


def generator_of(*key: int) -> torch.Generator:
    """A generator that depends on these numbers only, and is unrelated for any others."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))
